"""Tasks, verbs and tools of the command, and its help. Imports nothing heavy."""

import sys
from difflib import get_close_matches

from attention_vision.runs.tasks import TASKS

COMMANDS = {name: task.summary for name, task in TASKS.items()}
TOOLS = {
    "data": "say what a folder of data is, what would be read, and write a first experiment",
    "explain": "visualize the attention of a trained run, as pictures and arrays",
    "profile": "measure what networks and mechanisms cost: parameters, operations, time, memory",
    "study": "run, report and export a study: cells of an experiment, with seeds and statistics",
    "claims": "list published claims and whether they were reproduced here",
}
VERBS = {
    "fit": "train; writes config, metrics, checkpoints and pictures into a run folder",
    "validate": "measure a run's best checkpoint on the validation set",
    "test": "measure a run's best checkpoint on the test set",
    "predict": "apply a run's best checkpoint to a folder of images; a GAN draws new ones",
}


def table(rows: dict[str, str]) -> str:
    """One line for each name, with its text."""
    return "\n".join(f"  {name:<16}{text}" for name, text in rows.items())


HELP = f"""\
usage: attention-vision TASK {{{",".join(VERBS)}}} -c FILE [-c FILE ...] [--dotted.key VALUE ...]

tasks:
{table(COMMANDS)}

verbs:
{table(VERBS)}

other commands, each with a --help of its own:
{table(TOOLS)}

Experiments are files in experiments/; a second -c merges a profile from experiments/profiles/.
  attention-vision classification fit -c experiments/demo/vit_digits.yaml
  attention-vision classification fit -c FILE --weights WEIGHTS   fine-tunes a file, run or name
  attention-vision classification fit --help       keys with their defaults
  attention-vision classification fit --data.help CIFAR10   those of one class
  attention-vision --version
A failure is one line; --debug, with any command, prints its traceback.
"""


def unknown(kind: str, given: str, known: dict[str, str]) -> int:
    """Print one line that names the nearest of `known`, for exit code 2."""
    near = get_close_matches(given, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    print(f"attention-vision: error: unknown {kind} '{given}'; {hint}", file=sys.stderr)
    return 2
