"""Arguments of the commands without a config file. Imports nothing heavy."""

import re
from argparse import Action, ArgumentParser, RawDescriptionHelpFormatter
from difflib import get_close_matches
from typing import Any, NoReturn

from attention_vision.errors import ConfigError

UNKNOWN = re.compile(r"unrecognized arguments: .*?(--[\w-]+)")
TRUST = "configs may name classes outside of this package, torch and torchvision"


class ToolParser(ArgumentParser):
    """Parser of `attention-vision NAME`; raises ConfigError instead of printing a usage text."""

    def __init__(self, prog: str, *, description: str, epilog: str | None = None, **options: Any):
        super().__init__(
            prog, description=description, epilog=epilog, allow_abbrev=False,
            formatter_class=RawDescriptionHelpFormatter, **options,
        )  # fmt: skip

    options: tuple[str, ...] = ()

    def add_argument(self, *names: str, **options: Any) -> Action:
        self.options = (*self.options, *names)
        return super().add_argument(*names, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; the parser of a verb refuses its own leftovers, and knows its options."""
        known, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return known, rest

    def error(self, message: str) -> NoReturn:
        name, unknown = self.prog.removeprefix("attention-vision "), UNKNOWN.search(message)
        near = get_close_matches(unknown[1], self.options, n=1) if unknown else []
        hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
        raise ConfigError(f"{name}: {message}; {hint}")
