"""Ends of a run by a signal: at once, or between two training steps with a checkpoint."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from attention_vision.training.early_signals import KEPT
from attention_vision.training.steps import is_validated_next

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
NOTICE = b"\nstopping: last.ckpt is saved after this step (Ctrl-C again ends at once)\n"


class Stopped(SystemExit):
    """End of a run behind a checkpoint, in all processes at the same step."""


class EndAtOnce:
    """Handler that raises SystemExit with a shell's exit code for the signal, 128 + number.

    Loaders are forked with it, and a terminal's Ctrl-C reaches them as well: there it does nothing,
    they end with their parent.
    """

    def __init__(self) -> None:
        self.process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self.process:
            raise SystemExit(128 + number)


def handlers() -> dict[int, Any]:
    """The handler of each of `SIGNALS`; none in a thread, which cannot set them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in SIGNALS}


@contextmanager
def signals_end_the_run() -> Iterator[None]:
    """Context in which signals of default effect raise SystemExit.

    SIGTERM, SIGHUP and SIGUSR1 would kill the process without its clean-up, and leave loaders
    behind. A signal that is ignored (nohup, a study's worker), has a handler (submitit), or is kept
    until training begins is left alone. At the end all are as they were, also those that the
    training took: the next run of this process would not know its handler.
    """
    before = {number: one for number, one in handlers().items() if one is not None}
    for number, handler in before.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, EndAtOnce())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopAtStep(Checkpoint):
    """Save and stop between two steps after a signal of `signals_end_the_run`.

    The handler only sets a flag. The processes agree on the next batch after which a resume is
    exact, see `StepCheckpoint`, or on the start of the next epoch, behind the epoch's own
    checkpoint. A validation may take long: it is left at once, and the run resumes from the
    checkpoint before it. A second Ctrl-C ends the run at once.

    Args:
        file: the checkpoint that the run is resumed from.
    """

    def __init__(self, file: Path):
        self.file = file
        self.signals: list[int] = []  # that are answered here
        self.received: int | None = None
        self.end_at_once = EndAtOnce()

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self.received, self.end_at_once = None, EndAtOnce()
        found = handlers()
        ours = (KEPT, *(one for one in found.values() if isinstance(one, EndAtOnce)))
        self.signals = [number for number, handler in found.items() if handler in ours]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Not before: until training begins there is nothing to save. Lightning restores the
        # handlers at its end.
        for number in self.signals:
            signal.signal(number, self._request)
        if self.signals and KEPT.received is not None:
            number, KEPT.received = KEPT.received, None
            self._request(number, None)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.end_at_once.process:
            return
        if self.received == number == signal.SIGINT:
            self.end_at_once(number, frame)
        if self.received is None and number == signal.SIGINT and rank_zero_only.rank == 0:
            os.write(2, NOTICE)  # `print` may be what was interrupted
        self.received = number
        # Or torch raises in the middle of the step when the signal has ended a loader too.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._agree(trainer):
            self.stop(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        inexact = trainer.is_last_batch or trainer.fit_loop._should_accumulate()
        if not (inexact or is_validated_next(trainer)) and self._agree(trainer):
            trainer.save_checkpoint(self.file, weights_only=False)
            self.stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.received is not None:
            self.stop(trainer)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """Raise SystemExit in the place of a failure that follows from the signal.

        A signal to the whole group ends loaders and other processes, which are then missed.
        """
        if self.received is not None and not isinstance(exception, SystemExit):
            raise SystemExit(128 + self.received) from exception

    def stop(self, trainer: Trainer) -> None:
        """End the run after `received`. Raises Stopped with a shell's exit code."""
        raise Stopped(128 + (self.received or 0))

    def _agree(self, trainer: Trainer) -> bool:
        """Whether any process was to stop, after which `received` is the same in all."""
        if self.signals and trainer.world_size > 1:
            mine = torch.tensor(self.received or 0, device=trainer.strategy.root_device)
            self.received = int(trainer.strategy.reduce(mine, reduce_op="max")) or None
        return self.received is not None
