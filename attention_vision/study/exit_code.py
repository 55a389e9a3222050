"""Exit codes of a worker process; imports nothing heavy."""

from enum import IntEnum


class ExitCode(IntEnum):
    """End of a worker.

    FINISHED: the run has its result.
    FAILED: an error, which is in the run's error.txt.
    NO_METRIC: the run does not log the study's metric, so no run of the study does.
    LOCKED: another worker is running this run.
    """

    FINISHED = 0
    FAILED = 1
    NO_METRIC = 3  # 2 is Python's own, for wrong arguments
    LOCKED = 4
