"""The one command: `attention-vision TASK {fit,validate,test,predict} -c FILE`.

Also `python -m attention_vision ...`. Imports nothing heavy until a task runs: importing Lightning
takes seconds, and `--help`, `--version` and a misspelt command must not wait for it.
"""

import os
import sys

from attention_vision import __version__

COMMANDS = {
    "classification": "train, validate, test and apply image classifiers",
    "detection": "the same for object detectors: DETR, Faster R-CNN and Attention R-CNN",
    "generation": "the same for image generators: SAGAN, and Attention U-Net from image to image",
}
TOOLS = {
    "explain": "where the network of a run looks, as pictures and arrays",
    "profile": "measure what networks and mechanisms cost: parameters, operations, time, memory",
    "study": "run, report and export a study: cells of an experiment, with seeds and statistics",
    "claims": "what papers and articles claim, and what became of it here",
}
VERBS = {
    "fit": "train; writes config, metrics, checkpoints and pictures into a run folder",
    "validate": "measure a run's best checkpoint on the validation set",
    "test": "measure a run's best checkpoint on the test set",
    "predict": "apply a run's best checkpoint to a folder of images; a GAN draws new ones",
}


def table(rows: dict[str, str]) -> str:
    return "\n".join(f"  {name:<16}{text}" for name, text in rows.items())


HELP = f"""\
usage: attention-vision TASK {{{",".join(VERBS)}}} -c FILE [-c FILE ...] [--dotted.key VALUE ...]

tasks:
{table(COMMANDS)}

what to do with it:
{table(VERBS)}

without a verb, with a --help of their own:
{table(TOOLS)}

Experiments are files in experiments/; a second -c merges a profile from experiments/profiles/.
  attention-vision classification fit -c experiments/demo/vit_digits.yaml
  attention-vision classification fit -c FILE --weights WEIGHTS   fine-tunes a file, run or name
  attention-vision classification fit --help       keys with their defaults
  attention-vision classification fit --data.help CIFAR10   those of one class
  attention-vision --version
"""


def unknown(kind: str, given: str, known: dict[str, str]) -> int:
    """Prints one line that names the nearest of `known`, for exit code 2."""
    from difflib import get_close_matches

    near = get_close_matches(given, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    print(f"attention-vision: error: unknown {kind} '{given}'; {hint}", file=sys.stderr)
    return 2


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    0 for success, 1 for bad input met while running, 2 for a command or config that does not parse.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if os.getcwd() not in sys.path:  # `class_path: mine.Mine`; a console script leaves it out
        sys.path.append(os.getcwd())
    task, verb = (*arguments[:2], "", "")[:2]
    if not task or task in ("-h", "--help"):
        print(HELP, end="")
        return 0 if task else 2
    if task == "--version":
        print(f"attention-vision {__version__}")
        return 0
    if task == "explain":
        from attention_vision.cli.explain import main as explain

        return explain(arguments[1:])
    if task == "profile":
        from attention_vision.cli.profile import main as profile

        return profile(arguments[1:])
    if task == "study":
        from attention_vision.cli.study import main as study

        return study(arguments[1:])
    if task == "claims":
        from attention_vision.cli.claims import main as claims

        return claims(arguments[1:])
    if task not in COMMANDS:
        return unknown("task", task, COMMANDS | TOOLS)
    if not verb or verb in ("-h", "--help"):
        print(f"attention-vision {task}: {COMMANDS[task]}\n\n{table(VERBS)}")
        return 0 if verb else 2
    if verb not in VERBS:
        return unknown("verb", verb, VERBS)

    from attention_vision.cli.task import main as run

    return run(task, verb, arguments[2:])


if __name__ == "__main__":
    sys.exit(main())
