"""The arguments of the commands that take no verb. Imports nothing heavy."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from attention_vision.errors import InputError


class ToolParser(ArgumentParser):
    """Parses for `attention-vision NAME`; raises InputError in place of a usage text."""

    def __init__(self, name: str, description: str, notes: str):
        super().__init__(
            f"attention-vision {name}", description=description, epilog=notes,
            formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        self.name = name

    def error(self, message: str) -> None:
        raise InputError(f"{self.name}: {message}; see {self.prog} --help")
