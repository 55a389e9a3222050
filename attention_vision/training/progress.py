"""Console output of a run: progress, messages, and filters for the advice of libraries."""

import logging
import time
import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class ProgressLines(Callback):
    """One line per epoch, and one per minute inside long epochs.

    For output that is not a terminal: a log file needs lines, not a bar that redraws itself.
    """

    def __init__(self, seconds: float = 60.0):
        self.seconds = seconds
        self._epoch_start = self._last_line = time.monotonic()
        self._ended, self._validated = "", False

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._end(trainer)
        self._epoch_start = self._last_line = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._last_line > self.seconds:
            self._line(trainer, f"{epoch(trainer)}  {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        # The module logs the epoch's means after this hook: the line waits for them.
        self._ended = epoch(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._validated = True

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        if self._ended:
            self._line(trainer, self._ended)
        self._ended = ""

    @rank_zero_only
    def _line(self, trainer: Trainer, position: str) -> None:
        self._last_line = time.monotonic()
        metrics = [
            f"{key} {float(value):.4g}"
            for key, value in trainer.callback_metrics.items()
            if (key in trainer.progress_bar_metrics or key.endswith("loss"))
            and (self._validated or not key.startswith("val/"))  # Lightning keeps old epochs'
        ]
        self._validated = False
        seconds = f"{self._last_line - self._epoch_start:.0f} s"
        print("  ".join([position, *sorted(metrics), seconds]), flush=True)


def epoch(trainer: Trainer) -> str:
    last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
    return f"epoch {trainer.current_epoch + 1}{last}"


@rank_zero_only
def say(line: str) -> None:
    print(line, flush=True)


def quiet() -> None:
    """Silence library advice that does not help a user; print other warnings on one line."""
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(worth_reading)
    for message in (
        r"Checkpoint directory .* exists and is not empty",  # a continued run
        r"The dirpath has changed",  # a moved run, see BestCheckpoint
        r"Be aware that when using `ckpt_path`",  # validate needs none of fit's callbacks
        r"It is recommended to use `self.log.*sync_dist=True",  # torchmetrics did it
        r".* does not have many workers",  # the recipe chose their number
        r"Using ModelCheckpoint with manual optimization",  # weights after the step are meant
        r"This DataLoader will create \d+ worker processes",  # likewise
        r".*isinstance\(treespec, LeafSpec\).* is deprecated",  # Lightning's own call of torch
        r"'set_vital' is deprecated",  # torchdata's own call of torch
    ):
        warnings.filterwarnings("ignore", message)


def worth_reading(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("💡 Tip", "TPU available: False"))
