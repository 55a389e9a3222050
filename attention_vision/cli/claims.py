"""`attention-vision claims`: the ledger of published claims and their results here.

It joins experiments/claims (statements of articles), the `claim` blocks of experiments (numbers of
papers) and experiments/results (measurements), and generates experiments/README.md. It only reads
files: neither torch nor Lightning is imported.
"""

from pathlib import Path

from attention_vision.claims.ledger import read_ledger
from attention_vision.claims.page import render_page, render_text
from attention_vision.claims.record import record_results
from attention_vision.cli.tool_parser import ToolParser
from attention_vision.errors import InputError


def main(arguments: list[str]) -> int:
    """Run `claims`; return 0. Raises InputError for an invalid file or a stale page."""
    parser = ToolParser(
        "attention-vision claims",
        description="Prints published claims and whether they were reproduced here, and generates "
        "experiments/README.md.",
    )
    parser.add_argument(
        "root", type=Path, nargs="?", default=Path(),
        help="the repository with the folder experiments (default: this folder)",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if the page is stale"
    )
    parser.add_argument(
        "--record", type=Path, nargs="+", metavar="RUN", default=[],
        help="first record the results of these runs of one experiment, one per seed, in "
        "experiments/results",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    file = options.root / "experiments/README.md"
    if options.record:
        print(f"written: {record_results(options.record, options.root)}\n")
    ledger = read_ledger(options.root)
    current = file.is_file() and file.read_text(encoding="utf-8") == render_page(ledger)
    if not (options.check or current):
        file.write_text(render_page(ledger), encoding="utf-8")
    print(render_text(ledger))
    if options.check and not current:
        raise InputError(f"{file} is stale: regenerate it by `attention-vision claims`")
    print(f"{'up to date' if current else 'written'}: {file}")
    return 0
