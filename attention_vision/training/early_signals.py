"""SIGUSR1 before training can answer it; imports nothing heavy."""

import signal
from types import FrameType


class KeepSignal:
    """Handler that keeps the number of a signal, for `signals.StopAtStep` to answer."""

    received: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = number


KEPT = KeepSignal()


def keep_early_signals() -> None:
    """Keep SIGUSR1, by which SLURM warns of a job's end, where it would kill the process.

    Its default effect would end a job during imports that SLURM then does not requeue.
    """
    if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, KEPT)
