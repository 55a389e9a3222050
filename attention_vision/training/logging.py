"""Logging that a resumed run continues without a gap or a repeated row."""

import math
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import MeanMetric

from attention_vision.training.metrics_csv import MetricsCSV
from attention_vision.training.steps import step_number


@runtime_checkable
class ImageLogger(Protocol):
    """A logger of images, such as `MetricsCSV` and Lightning's `WandbLogger`."""

    def log_image(
        self, key: str, images: list[Any], step: int | None = None, **options: Any
    ) -> None: ...


@runtime_checkable
class RewindableLogger(Protocol):
    """A logger that drops the rows which a resumed run is about to repeat: `MetricsCSV`."""

    def rewind(self, step: int) -> None: ...


@runtime_checkable
class RunFolderLogger(Protocol):
    """A logger whose files belong in the run folder: `WeightsAndBiases`."""

    def write_to(self, run: Path) -> None: ...


class WithoutPictures(Callback):
    """Tells the other callbacks of a trainer to draw nothing: `--pictures false`."""


class WithoutReports(Callback):
    """Tells the other callbacks of a trainer to write no file of an evaluation: it is compared."""


def draws_pictures(trainer: Trainer) -> bool:
    """Whether pictures are wanted, in training as in predict."""
    return not _has(trainer, WithoutPictures)


def writes_reports(trainer: Trainer) -> bool:
    """Whether the run folder's files of an evaluation are to be of this one."""
    return not _has(trainer, WithoutReports)


def _has(trainer: Trainer, kind: type[Callback]) -> bool:
    callbacks = getattr(trainer, "callbacks", ())  # Lightning sets it without declaring it
    return any(isinstance(one, kind) for one in callbacks)


def image_loggers(trainer: Trainer) -> list[ImageLogger]:
    """The trainer's loggers that take images; none where no pictures are wanted."""
    if not draws_pictures(trainer):
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, ImageLogger)]


class FiniteMean(MeanMetric):
    """Weighted mean of the values that are finite; no update waits for the device."""

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")  # a check would wait for the GPU at every step

    def update(self, value: Tensor, weight: float = 1.0) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Add a scalar, such as the loss of a batch of `weight` images."""
        # torchmetrics' own sets every weight to 1 where it does not look for NaN. Few kernels of a
        # GPU: `isfinite` alone would be four.
        finite = value.abs() < math.inf
        self.mean_value = self.mean_value + weight * value.nan_to_num(0.0, 0.0, 0.0).to(self.dtype)
        self.weight = self.weight + weight * finite


class ResumableMean(FiniteMean):
    """Mean over an epoch's batches, with its state saved: a checkpoint may cut the epoch in two.

    `state_dict` holds the sum over all processes (a collective, as Lightning's saving is), and
    loading returns it to rank zero alone: after a resume the processes together have the sum that
    they had, bit-exact in one process, up to the order of the sum in several.

    A value that is not finite is left out: `FiniteSteps` stops at it, or counts it. All batches of
    a training are of one size.
    """

    def __init__(self) -> None:
        super().__init__()
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
    """Log the loss, learning rate and images per second every `trainer.log_every_n_steps` steps.

    An epoch without such a step is logged at its last one. The keys are train/loss_step, train/lr
    and train/images_per_second. They go straight to the loggers: a row is on disk before the
    checkpoint that follows it, whereas Lightning writes the values of `self.log` after the
    checkpoint. Rows have the step number that Lightning uses for validation, so both share a row. A
    resumed run first drops the rows that it is about to repeat.

    The first item of a batch is taken to be its images.
    """

    def __init__(self) -> None:
        self._seen, self._since, self._lr = 0, 0.0, 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Manual optimisation counts the steps of every optimiser, the rows count batches.
        steps = trainer.global_step
        if not module.automatic_optimization:
            steps = trainer.fit_loop.total_batch_idx + 1
        for logger in trainer.loggers:
            if isinstance(logger, RewindableLogger):
                logger.rewind(steps)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._restart_clock()

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Lightning moves the schedule on before the batch ends; the row has the rate of this step,
        # the largest one if the groups differ.
        self._lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._restart_clock()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seen += len(batch[0])
        step = step_number(trainer)
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] set from afar
        if trainer.fit_loop._should_accumulate():
            return
        steps = -(-(batch_idx + 1) // trainer.accumulate_grad_batches)  # of this epoch
        unlogged = (step + 1) // every == (step + 1 - steps) // every
        if (step + 1) % every and not (unlogged and ends_epoch(trainer)):
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


def ends_epoch(trainer: Trainer) -> bool:
    """Whether the step that just ended is the last of its epoch, or of a run that ends in it."""
    return trainer.is_last_batch or 0 <= trainer.max_steps <= trainer.global_step


def log_now(trainer: Trainer, metrics: dict[str, float], step: int | None = None) -> None:
    """Log metrics to all loggers at once, with epoch and step number as Lightning does.

    A number that is not finite is left out: a curve has a gap there.
    """
    step = step_number(trainer) if step is None else step
    metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
    for logger in trainer.loggers:
        logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=step)
        logger.save()


def log_finite(
    module: LightningModule, metrics: Mapping[str, Tensor | float], prog_bar: Collection[str] = ()
) -> None:
    """Log the metrics of an evaluation but those that are not finite, which measure nothing.

    A mean over no classes, say: neither best.ckpt nor a schedule or a results file may take it for
    a number. All processes call it, with the same numbers.

    Args:
        module: logs them.
        metrics: numbers by key.
        prog_bar: keys that the progress bar shows.
    """
    for key, value in metrics.items():
        if math.isfinite(value):
            module.log(key, value, prog_bar=key in prog_bar)
        elif module.trainer.is_global_zero:
            print(f"{key} is not finite: nothing was measured, and it is not logged", flush=True)


def log_epoch_mean(module: LightningModule, key: str, mean: ResumableMean) -> None:
    """Log an epoch's mean and reset it; for `on_train_epoch_end`."""
    value = mean.compute().item()
    mean.reset()
    if not math.isfinite(value):  # every step was left out
        return
    module.log(key, value, logger=False)  # for callbacks that monitor it
    # The checkpoint of the epoch's end comes before Lightning's own row.
    log_now(module.trainer, {key: value}, step_number(module.trainer) - 1)


def run_folder(trainer: Trainer) -> Path:
    """The folder of metrics.csv; without one, the trainer's `default_root_dir`."""
    folders = [logger.save_dir for logger in trainer.loggers if isinstance(logger, MetricsCSV)]
    return Path(*folders[:1] or [trainer.default_root_dir])
