"""The ledger as experiments/README.md, and as lines for a terminal."""

from attention_vision.claims.ledger import Ledger, Row
from attention_vision.report import tables

INTRODUCTION = """\
# The ledger

What was claimed about attention, and what became of it here. `attention-vision claims` writes this
page from [claims](claims), the `claim` blocks of the experiments and [results](results): change
those, not the page.

Verdicts are of numbers alone. An ordering is *supported* or *contradicted* where the interval of
the paired difference lies on one side of zero, corrected for all that the study expects (at most
5 % false alarms in total), and *undecided* where it spans zero. A paper's number is *reproduced*
where the mean over seeds lies within its tolerance, and *contradicted* where the 95 % interval of
that mean lies outside as a whole. `attention-vision study report experiments/results/NAME.json`
shows how each comes about.
"""
PARTS = {
    "statements": (
        "What articles say",
        "What was measured here is small: it speaks of the mechanism, not of the number at full "
        "scale. `literature` is what the primary source says of the claim.",
        ("", "claim", "stated", "source", "literature", "measured here", "verdict", "commands"),
    ),
    "papers": (
        "What papers report",
        "One row for each experiment that reproduces a number, with what differs from its recipe.",
        ("experiment", "source", "reported", "differs", "measured", "verdict", "command"),
    ),
    "studies": (
        "What studies ask",
        "One row for each study, and for each result that belongs to none of them.",
        ("study", "question", "metric", "measured", "verdicts", "command"),
    ),
}


def cells(part: str, row: Row) -> list[str]:
    """A row in the order of its part's columns."""
    commands = "<br>".join(f"`{command}`" for command in row.commands)
    last = [row.measured, row.verdict, commands]
    if part == "statements":
        return [row.name, row.claim, row.reported, row.source, row.literature, *last]
    if part == "papers":
        return [row.name, row.claim, row.reported, row.source, *last]
    return [row.name, row.claim, row.source, *last]


def page(ledger: Ledger) -> str:
    """experiments/README.md."""
    parts = [INTRODUCTION]
    for part, (title, remark, columns) in PARTS.items():
        rows = [cells(part, row) for row in getattr(ledger, part)]
        table = tables.markdown_table([list(columns), *rows])
        parts.append(f"## {title}\n\n{remark}\n\n{table}\n")
    return "\n".join(parts)


def text(ledger: Ledger) -> str:
    """What the command prints: a line per row, without numbers."""
    parts = []
    for part, (title, _, _) in PARTS.items():
        rows = [
            [plain(row.name), shortened(row.claim), *literature(row), row.verdict]
            for row in getattr(ledger, part)
        ]
        parts.append(f"{title}\n\n{tables.aligned(rows) if rows else 'nothing yet'}")
    return "\n\n".join(parts) + "\n"


def literature(row: Row) -> list[str]:
    return [row.literature.split("**")[1]] if row.literature else []


def plain(link: str) -> str:
    return link[1:].partition("]")[0] if link.startswith("[") else link


def shortened(sentence: str, length: int = 72) -> str:
    return sentence if len(sentence) <= length else f"{sentence[: length - 1].rstrip()}…"
