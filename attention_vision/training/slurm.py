"""Preemption under SLURM: save between two steps, then requeue the job."""

import os
import re
import signal
import subprocess
import warnings
from pathlib import Path

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer

from attention_vision.training.signals import StopAtStep


class SlurmRequeue(StopAtStep):
    """Stop as `StopAtStep` does; after SLURM's warning or a preemption requeue the job.

    A preemption with a time of grace sends SIGTERM, as `scancel` does: SLURM itself requeues the
    job only where it outlives that time, so one that saves and ends would be lost.

    Lightning 2.6 does both inside the signal's handler: in the middle of a step, at another one in
    each process, and in loaders too. A validation may take longer than SLURM waits: the job leaves
    it at once, and resumes from the checkpoint before it.

    Args:
        file: the checkpoint that the next attempt starts from.
    """

    def __init__(self, file: Path):
        super().__init__(file)
        self._requeue_signal: int | None = None

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        super().setup(trainer, module, stage)
        environment = trainer._accelerator_connector.cluster_environment
        self._requeue_signal = None
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue_signal = environment.requeue_signal
        if self._requeue_signal is not None:
            self.signals = [*{*self.signals, self._requeue_signal}]
            # Before training too: Lightning leaves a signal alone that has a handler.
            signal.signal(self._requeue_signal, self._request)

    def stop(self, trainer: Trainer) -> None:
        """End the run, or ask SLURM to requeue the job, which then ends it."""
        if trainer.is_global_zero and self._requeue_signal is not None and self._is_to_requeue():
            job = job_number()
            try:
                subprocess.run(["scontrol", "requeue", job], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                warnings.warn(f"the job is not back in the queue: {error}", stacklevel=2)
        if self.received != self._requeue_signal:
            super().stop(trainer)
        self.received = None  # training continues until SLURM ends the job

    def _is_to_requeue(self) -> bool:
        warned = self.received == self._requeue_signal
        return warned or (self.received == signal.SIGTERM and is_preempted(job_number()))


def job_number() -> str:
    """The number of this process's job, as `scontrol` takes it."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def is_preempted(job: str) -> bool:
    """Whether SLURM makes room for another job in the place of this one."""
    command = ["scontrol", "show", "job", "--oneliner", job]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    return bool(re.search(r"\bPreemptTime=\d", shown))
