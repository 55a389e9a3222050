"""The exceptions that the command prints as a single line, without a traceback."""

import re


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
