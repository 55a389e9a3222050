"""Argument parser of the commands without a verb. Imports nothing heavy."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import NoReturn

from attention_vision.errors import InputError


class ToolParser(ArgumentParser):
    """Parser of `attention-vision NAME`; raises InputError instead of printing a usage text."""

    def __init__(self, name: str, description: str, notes: str):
        super().__init__(
            f"attention-vision {name}", description=description, epilog=notes,
            formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        self.name = name

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.name}: {message}; see {self.prog} --help")
