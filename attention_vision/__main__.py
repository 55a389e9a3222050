"""The one command: `attention-vision TASK {fit,validate,test,predict} -c FILE`.

Also `python -m attention_vision ...`. Imports nothing heavy until a task runs: importing Lightning
takes seconds, and `--help`, `--version` and a misspelt command must not wait for it.
"""

import os
import sys

from attention_vision import __version__
from attention_vision.cli.edge import interruptible_imports, report_failure, steady_streams
from attention_vision.cli.help import COMMANDS, HELP, TOOLS, VERBS, table, unknown
from attention_vision.errors import RUN_VARIABLE


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code.

    0 for success, 1 for bad input and failures, 2 for a command or config that does not parse, 130
    after Ctrl-C. A training that a signal ends raises SystemExit with 128 + its number.

    A failure of any kind is one line; `--debug`, anywhere among the words, prints its traceback.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        steady_streams()
    if os.environ.get("LOCAL_RANK", "0") == "0":  # not a process that this run started for DDP
        os.environ.pop(RUN_VARIABLE, None)
    try:
        return choose([word for word in arguments if word != "--debug"])
    except KeyboardInterrupt:  # before training began, or a command that only reads
        print("attention-vision: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        return report_failure(error, "--debug" in arguments)


def choose(arguments: list[str]) -> int:
    """Run the command that the first words name."""
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
    if task == "data":
        from attention_vision.cli.data import main as data

        return data(arguments[1:])
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

    if verb == "fit":
        from attention_vision.training.early_signals import keep_early_signals

        keep_early_signals()  # the imports take seconds
    with interruptible_imports():
        from attention_vision.cli.task import main as run
    return run(task, verb, arguments[2:])


if __name__ == "__main__":
    sys.exit(main())
