"""`attention-vision claims`: the ledger of what was claimed, and what became of it here.

Joins experiments/claims (what articles say), the lab cards of experiments (what papers report) and
experiments/results (what was measured), and rewrites experiments/README.md from them. Reads files
alone: neither torch nor Lightning is imported.
"""

import argparse
import sys
from pathlib import Path

from attention_vision.claims.ledger import read_ledger
from attention_vision.claims.page import page, text
from attention_vision.claims.record import record
from attention_vision.errors import InputError, one_line


def main(arguments: list[str] | None = None) -> int:
    """Runs `claims` and returns its exit code: 0, or 1 for what does not parse or is stale."""
    parser = argparse.ArgumentParser(
        prog="attention-vision claims",
        description="Prints what was claimed and what became of it here, and rewrites "
        "experiments/README.md.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "root", type=Path, nargs="?", default=Path(),
        help="the repository, which holds experiments (default: this folder)",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where the page is stale"
    )
    parser.add_argument(
        "--record", type=Path, nargs="+", metavar="RUN", default=[],
        help="first write what these runs of one experiment measured, a seed each, into "
        "experiments/results",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    file = options.root / "experiments/README.md"
    try:
        if options.record:
            print(f"written: {record(options.record, options.root)}\n")
        ledger = read_ledger(options.root)
        current = file.is_file() and file.read_text() == page(ledger)
        if not (options.check or current):
            file.write_text(page(ledger))
        print(text(ledger))
        if options.check and not current:
            raise InputError(f"{file} is stale: write it anew by `attention-vision claims`")
        print(f"{'up to date' if current else 'written'}: {file}")
    except InputError as error:
        print(f"attention-vision: error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0
