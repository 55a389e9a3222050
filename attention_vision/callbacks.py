"""What makes a run resumable bit by bit, for all tasks. Written against the loops of Lightning 2.6.

A run that is killed and resumed must not differ from one that was not. Lightning restores weights,
optimiser, schedule and the position in the data; these parts restore the rest: the random stream of
each step (`StepSeed`), the mean of an epoch cut in two (`EpochMean`), and the curves on disk
(`StepLog`).
"""

import os
import random
import signal
import subprocess
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loops.loop import _Loop
from torchmetrics import MeanMetric


def run_seed() -> int:
    """The run's `seed_everything`, kept by Lightning in the environment; 0 where it is not set."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def mix(*numbers: int) -> int:
    """One 32-bit seed from several numbers, without the collisions of a sum."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class StepSeed(Callback):
    """Seeds torch, numpy and python before each training batch from (seed, rank, batches so far).

    MixUp, dropout and stochastic depth then depend on the step, not on what the process did before.
    A resumed run takes that step, too, where Lightning would take another.
    """

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Under `max_steps` Lightning 2.6 resumes a finished epoch as if it were running, and gives
        # it a batch of the next one. Here the next one begins, as it does under `max_epochs`.
        fit_loop = trainer.fit_loop
        if fit_loop.restarted_on_epoch_end:
            _Loop.restarting.fset(fit_loop, False)  # its own setter refuses
            fit_loop.reset()
            progress = fit_loop.epoch_progress.current
            progress.completed = progress.processed

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed = mix(run_seed(), trainer.global_rank, trainer.fit_loop.total_batch_idx)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (the global stream is meant)
        random.seed(seed)


class StepCheckpoint(ModelCheckpoint):
    """Saves inside epochs, every so many steps or minutes, where Lightning can resume bit by bit.

    That is never between a step and its validation: Lightning 2.6 resumes behind the validation,
    and from the last batch of an epoch even without the epoch's row. It is done after the
    validation instead; the epoch's end is left to a checkpoint with `every_n_epochs`. Nor is it
    between batches whose gradients add up: gradients are not saved.

    Give it save_on_train_epoch_end=False.
    """

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch or trainer.fit_loop._should_accumulate():
            return
        if is_validated_next(trainer):
            self._defer_save_until_validation = True
            return
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)


def is_validated_next(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that just ended."""
    fit_loop = trainer.fit_loop
    return fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher)


class Requeue(Checkpoint):
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


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best score when the run folder was moved, where Lightning would begin anew.

    Saves nothing where a validation does not log its key: a GAN may be trained without a score.
    """

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        if self.monitor in monitor_candidates:
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = Path(self.dirpath, "best.ckpt")
        if best.is_file() and state_dict["best_k_models"]:
            (score,) = state_dict["best_k_models"].values()
            path = str(best)
            state_dict |= {"dirpath": self.dirpath, "best_k_models": {path: score}}
            state_dict |= {"best_model_path": path, "kth_best_model_path": path}
        super().load_state_dict(state_dict)


def run_checkpoints(
    folder: Path, best: str, higher_is_better: bool, steps: int | None
) -> list[Callback]:
    """Of a training: best.ckpt, and last.ckpt at the end of each epoch and inside long ones.

    Args:
        folder: where they are written.
        best: the logged key that chooses best.ckpt.
        higher_is_better: whether more of it is better.
        steps: between two saves of last.ckpt inside an epoch; ten minutes where none are given.
    """
    mode = "max" if higher_is_better else "min"
    return [
        BestCheckpoint(folder, "best", monitor=best, mode=mode, enable_version_counter=False),
        ModelCheckpoint(
            folder,
            "last",
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
        StepCheckpoint(
            folder,
            "last",
            every_n_train_steps=steps,
            train_time_interval=None if steps else timedelta(minutes=10),
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        ),
        Requeue(folder / "last.ckpt"),
    ]


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place first: a kill leaves the old one or the new one.

    Lightning's own goes by way of the system's folder for temporary files; where that is another
    file system, the last step copies.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        part = path.with_suffix(".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, part)
        os.replace(part, path)


class EpochMean(MeanMetric):
    """Mean over an epoch whose state is saved, so that a checkpoint may cut the epoch in two.

    `state_dict` holds the sum over all processes (a collective, as Lightning's saving is), and
    loading gives it to rank zero alone: resumed, the processes together hold what they held, bit
    by bit in one process, up to the order of the sum in several.
    """

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")  # a check would wait for the GPU at every step
        self.persistent(True)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with self.sync_context(should_sync=not self._is_synced):
            return super().state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._update_count = 1  # else `compute` warns at an epoch that ends with the resume
        if self.distributed_available_fn() and torch.distributed.get_rank() > 0:
            self.reset()


class StepLog(Callback):
    """Logs train/loss_step, train/lr and train/images_per_second every `trainer.log_every_n_steps`.

    Straight to the loggers: a row is on disk before the checkpoint that follows it, whereas
    Lightning writes what was given to `self.log` after the checkpoint. Rows carry the number that
    Lightning gives to validation, so both share a row. A resumed run first drops the rows that it
    is about to repeat.

    The first item of a batch is taken for its images.
    """

    def __init__(self) -> None:
        self._seen, self._since, self._lr = 0, 0.0, 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Manual optimisation counts the steps of every optimiser, the rows count batches.
        steps = trainer.global_step
        if not module.automatic_optimization:
            steps = trainer.fit_loop.total_batch_idx + 1
        for logger in trainer.loggers:
            if hasattr(logger, "rewind"):
                logger.rewind(steps)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._restart_clock()

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Lightning moves the schedule on before the batch ends; the row tells the rate it was taken
        # with, of groups with several the largest.
        self._lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._restart_clock()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seen += len(batch[0])
        step = step_number(trainer)
        if trainer.fit_loop._should_accumulate() or (step + 1) % trainer.log_every_n_steps:
            return
        loss = outputs["loss"].item()  # waits for the device, so that the clock is right
        seconds = time.perf_counter() - self._since
        log_now(
            trainer,
            {
                "train/loss_step": loss * trainer.accumulate_grad_batches,  # Lightning divided it
                "train/lr": self._lr,
                "train/images_per_second": self._seen * trainer.world_size / seconds,
            },
        )
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._seen, self._since = 0, time.perf_counter()


def step_number(trainer: Trainer) -> int:
    """The number of the row that Lightning would write now: steps finished before this one."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def log_now(trainer: Trainer, metrics: dict[str, float], step: int | None = None) -> None:
    """Gives metrics to all loggers at once, as Lightning would: with epoch and step number."""
    step = step_number(trainer) if step is None else step
    for logger in trainer.loggers:
        logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=step)
        logger.save()


def log_epoch_mean(module: LightningModule, key: str, mean: EpochMean) -> None:
    """Logs an epoch's mean at its end, and starts the next; for `on_train_epoch_end`."""
    value = mean.compute().item()
    mean.reset()
    module.log(key, value, logger=False)  # for callbacks that monitor it
    # The checkpoint of the epoch's end comes before Lightning's own row.
    log_now(module.trainer, {key: value}, step_number(module.trainer) - 1)
