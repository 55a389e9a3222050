"""What makes a run resumable bit by bit, for all tasks. Written against the loops of Lightning 2.6.

A run that is killed and resumed must not differ from one that was not. Lightning restores weights,
optimiser, schedule and the position in the data; these parts restore the rest: the random stream of
each step (`StepSeed`), the mean of an epoch cut in two (`EpochMean`), and the curves on disk
(`StepLog`).
"""

import os
import random
import time
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
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
    validation instead; the epoch's end is left to a checkpoint with `every_n_epochs`.

    Give it save_on_train_epoch_end=False.
    """

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            return
        fit_loop = trainer.fit_loop
        if fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher):
            self._defer_save_until_validation = True
            return
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)


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
