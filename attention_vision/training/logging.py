"""Curves that a resumed run continues without a gap or a repeated row."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import MeanMetric

from attention_vision.training.metrics_csv import MetricsCSV
from attention_vision.training.steps import step_number


class ResumableMean(MeanMetric):
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


class StepLogger(Callback):
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


def log_now(trainer: Trainer, metrics: dict[str, float], step: int | None = None) -> None:
    """Gives metrics to all loggers at once, as Lightning would: with epoch and step number."""
    step = step_number(trainer) if step is None else step
    for logger in trainer.loggers:
        logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=step)
        logger.save()


def log_epoch_mean(module: LightningModule, key: str, mean: ResumableMean) -> None:
    """Logs an epoch's mean at its end, and starts the next; for `on_train_epoch_end`."""
    value = mean.compute().item()
    mean.reset()
    module.log(key, value, logger=False)  # for callbacks that monitor it
    # The checkpoint of the epoch's end comes before Lightning's own row.
    log_now(module.trainer, {key: value}, step_number(module.trainer) - 1)


def run_folder(trainer: Trainer) -> Path:
    """The folder of metrics.csv; the trainer's `default_root_dir` where nothing is logged."""
    folders = [logger.save_dir for logger in trainer.loggers if isinstance(logger, MetricsCSV)]
    return Path(*folders[:1] or [trainer.default_root_dir])
