"""Arguments and errors of the commands without a verb. Imports nothing heavy."""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import NoReturn

from attention_vision.errors import InputError, one_line

TRUST = "configs may name classes outside of this package, torch and torchvision"


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


def run_tool(tool: Callable[[], None]) -> int:
    """Run a command without a verb; return 0, or 2 after an error in one line."""
    try:
        tool()
    except InputError as error:
        print(f"attention-vision: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0
