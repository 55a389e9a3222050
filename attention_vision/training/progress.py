"""Console output of a run: progress, messages, and filters for the advice of libraries."""

import logging
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from attention_vision.ranges import NonNegative, checked
from attention_vision.training.pace import Pace, clock


@checked
class ProgressLines(Callback):
    """One line per epoch, and one per minute inside long epochs and evaluations.

    For output that is not a terminal: a log file needs lines, not a bar that redraws itself.
    """

    def __init__(self, seconds: NonNegative = 60.0):
        self.seconds = seconds
        self._epoch_start = self._last_line = time.monotonic()
        self._pace = Pace()
        self._ended, self._validated = "", False

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._pace.start(trainer)
        self._epoch_start = self._last_line = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._end(trainer)
        self._pace.start_epoch()
        self._epoch_start = self._last_line = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._pace.add(trainer, outputs, batch)
        if self._is_due():
            position = f"{epoch(trainer)}  {batch_idx + 1}/{trainer.num_training_batches}"
            loss = f"train/loss {self._pace.loss():.4g}"
            self._line(trainer, position, [loss, *self._metrics(trainer, "val/")])

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._pace.pause()
        # The module logs the epoch's means after this hook: the line waits for them.
        self._ended = epoch(trainer)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._pace.pause()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._pace.resume()
        self._validated = True

    def on_validation_batch_end(self, trainer: Trainer, *step: Any) -> None:
        if not trainer.sanity_checking:
            self._evaluated("validation", trainer.num_val_batches, *step)

    def on_test_batch_end(self, trainer: Trainer, *step: Any) -> None:
        self._evaluated("test", trainer.num_test_batches, *step)

    def on_predict_batch_end(self, trainer: Trainer, *step: Any) -> None:
        self._evaluated("prediction", trainer.num_predict_batches, *step)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._end(trainer)

    def _evaluated(
        self,
        name: str,
        batches: Sequence[int | float],
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        loader: int = 0,
    ) -> None:
        if self._is_due():
            self._last_line = time.monotonic()
            say(f"{name}  {batch_idx + 1}/{batches[loader]}")

    def _is_due(self) -> bool:
        return time.monotonic() - self._last_line > self.seconds

    def _end(self, trainer: Trainer) -> None:
        if self._ended:
            metrics = self._metrics(trainer)
            loss = self._pace.loss()
            if loss is not None and not any(one.startswith("train/") for one in metrics):
                metrics.append(f"train/loss {loss:.4g}")  # a GAN logs none
            self._line(trainer, self._ended, metrics)
        self._ended = ""

    @rank_zero_only
    def _line(self, trainer: Trainer, position: str, metrics: list[str]) -> None:
        self._last_line = time.monotonic()
        self._validated = False
        speed = f"{self._pace.images_per_second():,} images/s"
        seconds = f"{self._last_line - self._epoch_start:.0f} s"
        left = self._pace.seconds_to_go(trainer)
        to_go = [f"{clock(left)} to go"] if left else []
        print("  ".join([position, *sorted(metrics), speed, seconds, *to_go]), flush=True)

    def _metrics(self, trainer: Trainer, start: str = "") -> list[str]:
        """What was logged for the bar, and losses; not those of an earlier validation."""
        return [
            f"{key} {float(value):.4g}"
            for key, value in trainer.callback_metrics.items()
            if key.startswith(start)
            and (key in trainer.progress_bar_metrics or key.endswith("loss"))
            and (self._validated or not key.startswith("val/"))  # Lightning keeps old epochs'
        ]


@checked
class RunBar(TQDMProgressBar):
    """Lightning's bar with this epoch's running loss, images/s and the time to go of the run.

    Args:
        seconds: between two updates; each waits for the device, to read the loss.
    """

    def __init__(self, seconds: NonNegative = 0.2):
        super().__init__()
        self.seconds = seconds
        self._pace, self._updated = Pace(), 0.0

    def init_train_tqdm(self) -> Tqdm:
        bar = super().init_train_tqdm()
        bar.bar_format = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"  # has its own times
        return bar

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        if (loss := self._pace.loss()) is not None:
            shown = {"loss": loss, "images/s": self._pace.images_per_second()}
        if left := self._pace.seconds_to_go(trainer):
            shown["to go"] = clock(left)
        return shown | super().get_metrics(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_start()
        self._pace.start(trainer)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(epoch(trainer))
        self._pace.start_epoch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._pace.add(trainer, outputs, batch)
        now = time.monotonic()
        if now - self._updated > self.seconds or batch_idx + 1 == self.total_train_batches:
            self._updated = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pace.pause()
        super().on_train_epoch_end(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pace.pause()
        super().on_validation_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pace.resume()
        super().on_validation_end(trainer, pl_module)

    def on_exception(self, *_: Any) -> None:
        with suppress(TypeError):  # there is no bar before training
            self.train_progress_bar.close()  # the line that follows is not behind it


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
        r"The number of training batches .* is smaller than the logging interval",  # see StepLogger
        r"The `srun` command is available",  # a run on one machine of a cluster is meant
        r".* does not have many workers",  # the recipe chose their number
        r"Using ModelCheckpoint with manual optimization",  # weights after the step are meant
        r"This DataLoader will create \d+ worker processes",  # likewise
        r".*isinstance\(treespec, LeafSpec\).* is deprecated",  # Lightning's own call of torch
        r"'set_vital' is deprecated",  # torchdata's own call of torch
    ):
        warnings.filterwarnings("ignore", message)


def worth_reading(record: logging.LogRecord) -> bool:
    said_again = ("Restoring states from", "`Trainer.fit` stopped: `max_epochs=")  # by later lines
    return not record.getMessage().startswith(("💡 Tip", "TPU available: False", *said_again))
