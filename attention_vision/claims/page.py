"""Rendering of the ledger as experiments/README.md, and as text for a terminal."""

from attention_vision.claims.ledger import Ledger, LedgerRow
from attention_vision.report import tables
from attention_vision.report.text_table import aligned, printable

INTRODUCTION = """\
# The ledger

Published claims about attention, and whether they were reproduced here. `attention-vision claims`
generates this page from [claims](claims), the `claim` blocks of the experiments and
[results](results): edit those, not the page.

Verdicts follow from the numbers alone. An ordering is *supported* or *contradicted* if the
confidence interval of the paired difference lies on one side of zero, corrected for all
expectations of the study (family-wise error rate at most 5 %), and *undecided* if it spans zero. A
paper's number is *reproduced* if the mean over seeds lies within the tolerance, and *contradicted*
if the whole 95 % confidence interval of the mean lies outside. `attention-vision study report
experiments/results/NAME.json` prints the statistics behind a verdict.
"""
PARTS = {
    "statements": (
        "Statements of articles",
        "The measurements here are small: they test the mechanism, not the number at full scale. "
        "`literature` says whether the primary source supports the statement.",
        ("", "claim", "stated", "source", "literature", "measured here", "verdict", "commands"),
    ),
    "papers": (
        "Numbers of papers",
        "One row for each experiment that reproduces a number, with its deviations from the "
        "paper's recipe.",
        ("experiment", "source", "reported", "deviations", "measured", "verdict", "command"),
    ),
    "studies": (
        "Questions of studies",
        "One row for each study, and for each results file without a study.",
        ("study", "question", "metric", "measured", "verdicts", "command"),
    ),
}


def cells(part: str, row: LedgerRow) -> list[str]:
    """Order the texts of a row as the columns of its part."""
    commands = "<br>".join(f"`{command}`" for command in row.commands)
    texts = [row.name, row.claim, row.source, row.measured, row.verdict]
    if part != "studies":
        texts.insert(2, row.reported)
    if part == "statements":
        texts.insert(4, row.literature)
    return [*map(tables.without_html, texts), commands]


def render_page(ledger: Ledger) -> str:
    """Render experiments/README.md."""
    parts = [INTRODUCTION]
    for part, (title, remark, columns) in PARTS.items():
        rows = [cells(part, row) for row in getattr(ledger, part)]
        table = tables.markdown_table([list(columns), *rows])
        parts.append(f"## {title}\n\n{remark}\n\n{table}\n")
    return "\n".join(parts)


def render_text(ledger: Ledger) -> str:
    """Render the ledger as plain text: one line per row, without numbers."""
    parts = []
    for part, (title, _, _) in PARTS.items():
        rows = [
            [plain(row.name), shortened(row.claim), *literature(row), row.verdict]
            for row in getattr(ledger, part)
        ]
        parts.append(f"{title}\n\n{aligned(rows) if rows else 'nothing yet'}")
    return printable("\n\n".join(parts) + "\n")


def literature(row: LedgerRow) -> list[str]:
    """Return the verdict of the literature, for statements only."""
    return [row.literature.split("**")[1]] if row.literature else []


def plain(link: str) -> str:
    """Return the text of a Markdown link."""
    return link[1:].partition("]")[0] if link.startswith("[") else link


def shortened(sentence: str, length: int = 72) -> str:
    """Shorten a sentence to a number of characters."""
    return sentence if len(sentence) <= length else f"{sentence[: length - 1].rstrip()}…"
