"""`attention-vision TASK VERB`."""

from attention_vision.config.trust import trusting
from attention_vision.runs.arguments import TRUST
from attention_vision.runs.command import VERBS, prepare
from attention_vision.training.progress import quiet


def main(task: str, verb: str, words: list[str]) -> int:
    """Run one verb of one task; return 0."""
    quiet()
    with trusting(TRUST in words):  # of the runs that its config names, too
        VERBS[verb](prepare(task, verb, words))
    return 0
