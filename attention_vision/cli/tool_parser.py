"""Arguments of the commands without a config file. Imports nothing heavy."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any, NoReturn

from attention_vision.errors import ConfigError

TRUST = "configs may name classes outside of this package, torch and torchvision"


class ToolParser(ArgumentParser):
    """Parser of `attention-vision NAME`; raises ConfigError instead of printing a usage text."""

    def __init__(self, prog: str, *, description: str, epilog: str | None = None, **options: Any):
        super().__init__(
            prog, description=description, epilog=epilog, allow_abbrev=False,
            formatter_class=RawDescriptionHelpFormatter, **options,
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        name = self.prog.removeprefix("attention-vision ")
        raise ConfigError(f"{name}: {message}; see {self.prog} --help")
