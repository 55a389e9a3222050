"""The exceptions that the command prints as a single line, without a traceback."""


class InputError(ValueError):
    """Bad input from the user: the message names the file, key or value, and what to do."""


class ConfigError(InputError):
    """A command or config that does not parse: exit code 2."""


def one_line(error: InputError) -> str:
    """The clear line of an error.

    A DataLoader worker sends its exception as text: the same class arrives with a whole traceback
    for a message, whose last line is `attention_vision.errors.InputError: ` and the line that was
    meant.
    """
    last = str(error).strip().splitlines()[-1]
    return last.removeprefix(f"{InputError.__module__}.{InputError.__qualname__}: ")
