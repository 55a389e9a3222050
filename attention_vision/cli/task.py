"""`attention-vision TASK VERB`: runs it, and prints an error as one line."""

import sys
import time

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from attention_vision.config.trust import trusting
from attention_vision.errors import ConfigError, InputError, one_line
from attention_vision.runs.command import TRUST, VERBS, prepare
from attention_vision.training.progress import quiet


def main(task: str, verb: str, words: list[str]) -> int:
    """Runs one verb of one task; returns the exit code."""
    quiet()
    try:
        with trusting(TRUST in words):  # of the runs that its config names, too
            VERBS[verb](prepare(task, verb, words))
    except InputError as error:
        if rank_zero_only.rank:
            time.sleep(3)  # rank zero meets most errors too, and then ends the others
        print(f"attention-vision: error: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0
