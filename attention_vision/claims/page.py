"""Rendering of the ledger in short: experiments/README.md, and text for a terminal."""

from collections import Counter
from collections.abc import Iterable

from attention_vision.claims.ledger import Ledger, PaperEntry, StatementEntry
from attention_vision.claims.outcome import SYMBOLS, numbers
from attention_vision.report import tables
from attention_vision.report.text_table import aligned, printable

PAGES = "../docs/ledger"  # seen from experiments/README.md
INTRODUCTION = f"""\
# The ledger

Published claims about attention, and what was measured here. [The pages]({PAGES}/index.md) have
the intervals, plots and commands behind each verdict, [ledger.json]({PAGES}/ledger.json) has them
for other programs. `attention-vision claims` generates all of them from [claims](claims), the
`claim` blocks of the experiments and [results](results): edit those, not the pages.
"""
NOT_RUN = ("not run", "not yet run", "no study yet")
COLUMNS = ("supported or reproduced", "contradicted", "partly", "no difference", "undecided")


def render_page(ledger: Ledger) -> str:
    """Render experiments/README.md: counts, the measured rows, and what is not run."""
    parts = [INTRODUCTION, tables.markdown_table(counts(ledger), range(1, 2 + len(COLUMNS)))]
    statements = [
        [
            f"{SYMBOLS[entry.verdict]} {entry.verdict}",
            heading(entry, f"{PAGES}/"),
            "<br>".join(f"{outcome.name}: {outcome.numbers}" for outcome in entry.outcomes),
        ]
        for entry in [*ledger.statements, *ledger.tables]
        if entry.is_measured
    ]
    papers = [
        [f"{SYMBOLS[entry.verdict]} {entry.verdict}", f"`{entry.id}`: {entry.claim.source}",
         f"{measured(entry)}; reported {reported(entry)}"]
        for entry in ledger.papers if entry.is_measured
    ]  # fmt: skip
    studies = [
        [entry.verdict, f"[{entry.question}]({PAGES}/{entry.id}.md)"]
        for entry in ledger.studies
        if entry.is_measured
    ]
    for title, columns, rows in (
        ("Statements", ["verdict", "statement", "measured here"], statements),
        ("Numbers of papers", ["verdict", "experiment", "measured here"], papers),
        ("Studies", ["verdicts", "question"], studies),
    ):
        if rows:
            parts.append(f"## {title}\n\n{tables.markdown_table([columns, *rows])}")
    parts.append("## Not run\n\n" + "\n".join(not_run(ledger)))
    return tables.without_html("\n\n".join(part.rstrip() for part in parts) + "\n")


def heading(entry: StatementEntry, folder: str = "") -> str:
    """Link the sentence that the verdict is on: what was tested here, or the statement itself.

    Where less was tested, the statement follows, and whether the literature supports it.
    """
    statement, page = entry.statement, f"{folder}{entry.page}.md"
    if not (entry.is_measured and statement.tested):
        return f"[{statement.statement}]({page})"
    stated = f"*stated*: {statement.statement} *Literature*: {statement.literature}."
    return f"[{statement.tested}]({page})<br>{stated}"


def counts(ledger: Ledger) -> list[list[str]]:
    """Table of how many entries have which verdict."""
    verdicts = {
        "statements of articles": [entry.verdict for entry in ledger.statements],
        "tables of repositories": [entry.verdict for entry in ledger.tables],
        "numbers of papers": [entry.verdict for entry in ledger.papers],
        f"[printed costs of networks]({PAGES}/costs.md)": [row.verdict for row in ledger.costs],
        "comparisons of studies": [
            outcome.verdict for entry in ledger.studies for outcome in entry.outcomes
        ],
    }
    planned = [len(entry.expect) for entry in ledger.studies if not entry.is_measured]
    rows = [["", *COLUMNS, "not run"]]
    for title, words in verdicts.items():
        found = Counter(column_of(word) for word in words)
        if title == "comparisons of studies":
            found["not run"] += sum(planned)
        rows.append([title, *(str(found[column] or "") for column in rows[0][1:])])
    return rows


def column_of(verdict: str) -> str:
    """Return the column of `counts` of a verdict."""
    if verdict.startswith(NOT_RUN):
        return "not run"
    return COLUMNS[0] if verdict in ("supported", "reproduced") else verdict


def not_run(ledger: Ledger) -> Iterable[str]:
    """Yield a line for each kind of entries that were not measured."""
    for title, entries in (
        ("Statements of articles", ledger.statements),
        ("Tables of repositories", ledger.tables),
    ):
        links = [
            f"[{one.letter or one.id.rpartition('/')[2]}]({PAGES}/{one.page}.md)"
            for one in entries
            if not one.is_measured
        ]
        if links:
            yield f"- {title}: {len(links)} ({', '.join(links)})."
    if papers := sum(not entry.is_measured for entry in ledger.papers):
        yield f"- Numbers of papers: {papers}; [what each of them needs]({PAGES}/papers.md)."
    if studies := sum(not entry.is_measured for entry in ledger.studies):
        yield f"- Studies: {studies}; [what they ask]({PAGES}/index.md#studies-to-run)."


def reported(entry: PaperEntry) -> str:
    """Format the claimed number with its tolerance."""
    claim = entry.claim
    places = max(digits(claim.reported), digits(claim.tolerance))
    return f"`{claim.metric}` {claim.reported:.{places}f} ± {claim.tolerance:.{places}f}"


def measured(entry: PaperEntry) -> str:
    """Format the measured number of a paper's experiment; empty without one."""
    claim = entry.claim
    places = max(digits(claim.reported), digits(claim.tolerance)) + 1
    return numbers(entry.values, places) if entry.values else ""


def digits(value: float) -> int:
    """Count the decimals of a number."""
    return len(f"{value:.10g}".partition(".")[2])


def render_text(ledger: Ledger) -> str:
    """Render the ledger as plain text: one line per entry, without numbers."""
    statements, repositories = (
        [
            [one.letter, shortened(one.statement.statement), one.statement.literature, one.verdict]
            for one in entries
        ]
        for entries in (ledger.statements, ledger.tables)
    )
    parts = {
        "Statements of articles": statements,
        "Tables of repositories": repositories,
        "Numbers of papers": [
            [one.id, shortened(one.claim.source), one.verdict] for one in ledger.papers
        ],
        "Questions of studies": [
            [one.id, shortened(one.question), one.verdict] for one in ledger.studies
        ],
    }
    shown = [f"{title}\n\n{aligned(rows) or 'nothing yet'}" for title, rows in parts.items()]
    return printable("\n\n".join(shown) + "\n")


def shortened(sentence: str, length: int = 72) -> str:
    """Shorten a sentence to a number of characters."""
    return sentence if len(sentence) <= length else f"{sentence[: length - 1].rstrip()}…"
