"""Preemption under SLURM: save between two steps, then requeue the job."""

import os
import signal
import subprocess
import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from attention_vision.training.steps import is_validated_next


class SlurmRequeue(Checkpoint):
    """Save and requeue the job between two steps after SLURM's signal.

    Lightning 2.6 does both inside the signal's handler: in the middle of a step, at another one in
    each process, and in loaders too. Here the handler only sets a flag, and the processes agree on
    the next batch after which a resume is exact, see `StepCheckpoint`. A validation may take longer
    than SLURM waits: the job leaves it at once, and resumes from the checkpoint before it.

    Args:
        file: the checkpoint that the next attempt starts from.
    """

    def __init__(self, file: Path):
        self.file, self.active, self.requested = file, False, False

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        environment = trainer._accelerator_connector.cluster_environment
        self.active = False
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self.active = True
            if environment.requeue_signal is not None:
                # Lightning leaves a signal alone that has a handler.
                signal.signal(environment.requeue_signal, self._request)

    def _request(self, *_: Any) -> None:
        self.requested = True

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        inexact = trainer.is_last_batch or trainer.fit_loop._should_accumulate()
        if not self.active or inexact or is_validated_next(trainer):
            return
        if trainer.strategy.reduce_boolean_decision(self.requested, all=False):
            trainer.save_checkpoint(self.file)
            self._requeue(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.requested:
            self._requeue(trainer)

    def _requeue(self, trainer: Trainer) -> None:
        """Ask SLURM to requeue the job, which then ends it; if it refuses, training continues."""
        self.requested = False
        if not trainer.is_global_zero:
            return
        job = os.environ["SLURM_JOB_ID"]
        if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
            job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        try:
            subprocess.run(["scontrol", "requeue", job], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            warnings.warn(f"the job is not back in the queue: {error}", stacklevel=2)
