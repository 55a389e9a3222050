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
    """Once SLURM has sent its signal, saves between two steps and puts the job back into the queue.

    Lightning 2.6 does both inside the signal's handler: in the middle of a step, in each process at
    another one, and in loaders too. Here the signal is noted, and the processes agree on the next
    batch behind which a resume is exact, see `StepCheckpoint`. A validation may take longer than
    SLURM waits: the job leaves it at once, and goes on from the checkpoint before.

    Args:
        file: the checkpoint that the next attempt starts from.
    """

    def __init__(self, file: Path):
        self.file, self.active, self.asked = file, False, False

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        environment = trainer._accelerator_connector.cluster_environment
        self.active = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        if self.active:  # Lightning leaves a signal alone that has a handler
            signal.signal(environment.requeue_signal, self._note)

    def _note(self, *_: Any) -> None:
        self.asked = True

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        inexact = trainer.is_last_batch or trainer.fit_loop._should_accumulate()
        if not self.active or inexact or is_validated_next(trainer):
            return
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            trainer.save_checkpoint(self.file)
            self._requeue(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.asked:
            self._requeue(trainer)

    def _requeue(self, trainer: Trainer) -> None:
        """SLURM then ends the job; where it refuses, training goes on."""
        self.asked = False
        if not trainer.is_global_zero:
            return
        job = os.environ["SLURM_JOB_ID"]
        if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
            job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        try:
            subprocess.run(["scontrol", "requeue", job], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            warnings.warn(f"the job is not back in the queue: {error}", stacklevel=2)
