"""The exceptions that the command prints as a single line, without a traceback."""

import re

RUN_VARIABLE = "ATTENTION_VISION_RUN"  # of the environment: the run folder of this command


class InputError(ValueError):
    """Bad input from the user: the message names the file, key or value, and what to do."""


class ConfigError(InputError):
    """A command or config that does not parse: exit code 2."""


def one_line(error: BaseException | str) -> str:
    """The clear line of an error, safe to print on a terminal.

    A DataLoader worker sends its exception as text: the same class arrives with a whole traceback
    for a message, which ends with `attention_vision.errors.InputError: ` and the line that was
    meant. A line may quote the name of a foreign file, which may contain line breaks and escape
    sequences.
    """
    *_, text = re.split(rf"^{re.escape(__name__)}\.\w+Error: ", str(error), flags=re.MULTILINE)
    line = " ".join(text.split())
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)


MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|Unable to allocate")
ASKED = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate) ([\d.]+) ?(\w+)")


def out_of_memory(text: str) -> str | None:
    """A line for the text of an exception that is about memory, of a device or of the machine."""
    if not MEMORY.search(text):
        return None
    size = ""
    if asked := ASKED.search(text):
        number, unit = float(asked[1]), asked[2]
        size = f"{number / 1e9:,.1f} GB" if unit.startswith("byte") else f"{number} {unit}"
        size = f" ({size} more were asked for)"
    return (
        f"out of memory{size}: lower data.batch_size, the size of the images or of the network, or"
        " trainer.precision"
    )
