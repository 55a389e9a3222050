"""`attention-vision claims`: the ledger of published claims and their results here.

It joins experiments/claims (statements of articles), the `claim` blocks of experiments (numbers of
papers) and experiments/results (measurements), and generates experiments/README.md and the pages of
docs/ledger. It only reads files: neither torch nor Lightning is imported.
"""

from pathlib import Path

from attention_vision.claims.committed import check_results
from attention_vision.claims.ledger import Ledger, read_ledger
from attention_vision.claims.page import render_page, render_text
from attention_vision.claims.record import record_results
from attention_vision.claims.site import pages
from attention_vision.cli.tool_parser import ToolParser
from attention_vision.errors import InputError
from attention_vision.report.tables import one_line
from attention_vision.report.text_table import printable
from attention_vision.study.definition import read_definition
from attention_vision.yaml_json import write_atomically

SHORT, FOLDER = "experiments/README.md", "docs/ledger"


def main(arguments: list[str]) -> int:
    """Run `claims`; return 0. Raises InputError for an invalid file or a stale page."""
    if arguments[:1] == ["check"]:
        return check(arguments[1:])
    parser = ToolParser(
        "attention-vision claims",
        description="Prints published claims and whether they were reproduced here, and generates "
        f"{SHORT} and the pages of {FOLDER}. `claims check [FILE ...]` checks results files.",
    )
    parser.add_argument(
        "root", type=Path, nargs="?", default=Path(),
        help="the repository with the folder experiments (default: this folder)",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if a page is stale"
    )
    parser.add_argument(
        "--record", type=Path, nargs="+", metavar="RUN", default=[],
        help="first record the results of these runs of one experiment, one per seed, in "
        "experiments/results",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.record:
        print(f"written: {record_results(options.record, options.root)}\n")
    ledger = read_ledger(options.root)
    generated = files_of(ledger)
    stale = stale_files(generated, options.root)
    print(render_text(ledger))
    if options.check and stale:
        more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
        raise InputError(f"{stale[0]}{more} is stale: regenerate it by `attention-vision claims`")
    for name in stale:
        file = options.root / name
        if name in generated:
            write_atomically(file, generated[name])
        else:
            file.unlink()
    state = f"{len(stale)} of {len(generated)} files written" if stale else "up to date"
    print(f"{state}: {options.root / SHORT}, {options.root / FOLDER}")
    return 0


def check(arguments: list[str]) -> int:
    """Run `claims check`; return 0.

    Raises:
        InputError: a results file is stale or invalid, or without FILE, a page is stale.
    """
    parser = ToolParser(
        "attention-vision claims check",
        description="Checks that results files are whole and belong to their experiment as it is "
        "now, that their versions are readable, and that the repository has their commit. Without "
        "FILE: all files of experiments/results, and the pages. It runs in the repository.",
    )
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="results files")
    root, files = Path(), parser.parse_args(arguments).files
    committed = sorted((root / "experiments/results").glob("*.json"))
    found = check_results(files or committed, root, cell_hashes)
    for line in [*(f"{a}: {one}" for a, b in found.stale.items() for one in b), *found.remarks]:
        print(printable(one_line(line)))
    if found.stale:
        names = ", ".join(file.name for file in found.stale)
        count = f"{len(found.stale)} of {len(files or committed)} results files"
        raise InputError(f"{count} are stale or not whole, for the reasons above: {names}")
    if not files and (stale := stale_files(files_of(read_ledger(root)), root)):
        raise InputError(f"{stale[0]} is stale: regenerate it by `attention-vision claims`")
    print(f"{len(files or committed)} results files belong to their experiments")
    return 0


def cell_hashes(file: Path) -> dict[str, set[str]]:
    """Return the hashes that results of each cell of a study file may have."""
    cells = read_definition(file).cells
    return {name: {cell.sha256, cell.earlier_sha256} for name, cell in cells.items()}


def files_of(ledger: Ledger) -> dict[str, str]:
    """Return the text of all generated files, by their path in the repository."""
    found = {f"{FOLDER}/{name}": text for name, text in pages(ledger).items()}
    return {SHORT: render_page(ledger)} | found


def stale_files(generated: dict[str, str], root: Path) -> list[str]:
    """Return the paths of files that are missing, differ, or are generated no more."""
    there = {
        file.relative_to(root).as_posix(): file
        for file in [root / SHORT, *sorted((root / FOLDER).rglob("*"))]
        if file.is_file() and file.suffix in (".md", ".svg", ".json")
    }
    differing = [
        name
        for name, text in generated.items()
        if name not in there or there[name].read_text(encoding="utf-8") != text
    ]
    return differing + [name for name in there if name not in generated]
