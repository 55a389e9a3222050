"""The one exception that the command prints as a single line, without a traceback."""


class InputError(ValueError):
    """Bad input from the user: the message names the file, key or value, and what to do."""
