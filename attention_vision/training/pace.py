"""Running loss, images per second and time to go of a training; imports nothing heavy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

MOST_APART = 100  # losses on the device before they are added up


def clock(seconds: float) -> str:
    """Format a duration: 2.4 s, 41 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def finished_share(trainer: Trainer) -> float | None:
    """Finished fraction of a training in 0..1; None without an end in epochs or in steps."""
    shares = []
    if trainer.max_epochs not in (None, -1):
        batches = trainer.fit_loop.total_batch_idx + 1
        shares.append(batches / max(1, trainer.num_training_batches * trainer.max_epochs))
    if trainer.max_steps != -1:
        shares.append(trainer.global_step / max(1, trainer.max_steps))
    return min(1.0, max(shares)) if shares else None


class Pace:
    """What a training did in this epoch so far, and how long the rest of the run takes.

    The loss is the mean over this process's batches; it stays on the device until it is read. The
    losses are added up then, or a hundred at a time: each sum would be three kernels. The speed
    does not count validation, the time to go does, once there has been one.
    """

    def __init__(self) -> None:
        self._began, self._share = time.monotonic(), 0.0
        self.start_epoch()

    def start(self, trainer: Trainer) -> None:
        self._began, self._share = time.monotonic(), finished_share(trainer) or 0.0
        self.start_epoch()

    def start_epoch(self) -> None:
        self._loss: Any = 0.0
        self._losses: list[Any] = []  # of steps, not in the sum yet
        self._accumulated = 1  # batches of a step
        self._batches = self._images = 0
        self._seconds, self._since = 0.0, time.monotonic()

    def pause(self) -> None:
        """Stop the clock of the speed, for a validation or after the epoch."""
        self._seconds, self._since = self._training_seconds(), None

    def resume(self) -> None:
        self._since = time.monotonic()

    def add(self, trainer: Trainer, outputs: Any, batch: Any) -> None:
        """Count a batch, whose first item is taken to be its images."""
        self._losses.append(outputs["loss"].detach())
        self._accumulated = trainer.accumulate_grad_batches  # by which Lightning divided the loss
        if len(self._losses) >= MOST_APART:
            self._add_up()
        self._batches += 1
        self._images += len(batch[0]) * trainer.world_size

    def loss(self) -> float | None:
        """Mean loss of the epoch so far; waits for the device."""
        self._add_up()
        return float(self._loss) / self._batches if self._batches else None

    def _add_up(self) -> None:
        """Add the latest losses to the sum, but those that are not finite, of steps left out."""
        import torch

        if self._losses:
            losses = torch.stack(self._losses).float().nan_to_num(0.0, 0.0, 0.0)
            self._loss = self._loss + losses.sum() * self._accumulated
            self._losses.clear()

    def images_per_second(self) -> int:
        """Images of all processes per second of training in this epoch."""
        return round(self._images / max(1e-9, self._training_seconds()))

    def seconds_to_go(self, trainer: Trainer) -> float | None:
        """Estimate from this process's time so far; None before a step or without an end."""
        left = []
        share = finished_share(trainer)
        if share is not None and share > self._share:
            elapsed = time.monotonic() - self._began
            left.append(elapsed * (1 - share) / (share - self._share))
        callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] set from afar
        for callback in callbacks:  # of `max_time`
            if (remaining := getattr(callback, "time_remaining", None)) is not None:
                left += [seconds for seconds in [remaining()] if seconds is not None]
        return max(0.0, min(left)) if left else None

    def _training_seconds(self) -> float:
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return self._seconds + running
