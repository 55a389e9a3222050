"""A report as text for a terminal, as CSV for a program, as Markdown and as LaTeX for a paper."""

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from math import floor, log10
from statistics import median_low

from attention_vision.report.results import COSTS
from attention_vision.report.statistics import Difference, Finding
from attention_vision.report.summary import Report, Row

TITLES = {
    "parameters": "parameters",
    "macs": "MACs",
    "images_per_second": "images/s",
    "peak_memory": "peak memory",
    "seconds": "seconds",
}
NONE = "–"


def decimals(report: Report) -> int:
    """So many that a typical spread between seeds shows two digits; 4 digits of single values."""
    spreads = [row.std for row in report.rows if row.std]
    if spreads:
        return min(max(0, 1 - floor(log10(median_low(spreads)))), 8)
    sizes = [abs(row.mean) for row in report.rows if row.mean]
    if all(size == int(size) for size in sizes):
        return 0
    return min(max(0, 3 - floor(log10(max(sizes)))), 8)


def number(value: float | None, places: int) -> str:
    return NONE if value is None else f"{value:,.{places}f}"


def mean(row: Row, places: int) -> str:
    if row.std is None:
        return number(row.mean, places)
    return f"{number(row.mean, places)} ± {row.std:,.{places}f}"


def interval(difference: Difference, places: int) -> str:
    if difference.interval is None:
        return ""
    low, high = (f"{end:+,.{places}f}" for end in difference.interval)
    return low if low == high else f"[{low}, {high}]"


def change(difference: Difference | None, places: int) -> str:
    """Mean and interval of a difference; "baseline" where there is nothing to compare with."""
    if difference is None:
        return "baseline"
    if difference.mean is None:
        return NONE
    exact = difference.interval and difference.interval[0] == difference.interval[1]
    ends = "" if exact else interval(difference, places)
    return f"{difference.mean:+,.{places}f} {ends}".rstrip()


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def size(value: float | None, kind: str) -> str:
    """A cost with the digits and the unit that a reader compares by."""
    if value is None:
        return NONE
    if kind == "peak_memory":
        return f"{value / 2**20:,.0f} MiB" if value >= 2**20 else f"{value / 2**10:,.1f} KiB"
    if kind == "macs":
        for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if value >= scale:
                return f"{value / scale:,.3g} {unit}" if value < 1e12 else f"{value / 1e9:,.0f} G"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2f}"


def costs(report: Report) -> list[str]:
    """The costs that any cell knows."""
    return [name for name in COSTS if any(row.cost[name] is not None for row in report.rows)]


def outcome(finding: Finding) -> str:
    """The verdict; why, where it is open."""
    return finding.verdict + (f": {finding.reason}" if finding.verdict == "undecided" else "")


def subtitle(report: Report) -> str:
    study = report.study
    better = "higher" if study.higher_is_better else "lower"
    seeds = [str(seed) for seed in study.seeds if seed is not None]
    drawn = f"seeds {', '.join(seeds)}" if seeds else "exact numbers"
    return (
        f"{study.metric} ({better} is better), {len(study.cells)} cells, {drawn}, "
        f"baseline: {study.baseline}"
    )


def table(report: Report) -> list[list[str]]:
    """Header and one row per cell."""
    places, known = decimals(report), costs(report)
    header = ["cell", "n", report.study.metric, "difference", "p (Holm)"]
    rows = [[*header, *(TITLES[name] for name in known)]]
    for row in report.rows:
        numbers = [str(len(row.values)), mean(row, places)]
        compared = [change(row.difference, places), p_value(row.p)]
        spent = [size(row.cost[name], name) for name in known]
        rows.append([row.cell, *numbers, *compared, *spent])
    if report.study.exact:  # without seeds to count or chances to compute
        rows = [[*row[:1], *row[2:4], *row[5:]] for row in rows]
    return rows


def to_the_right(report: Report) -> list[int]:
    """Columns of `table` whose numbers stand flush with their right edge."""
    columns = len(table(report)[0])
    return list(range(3, columns)) if report.study.exact else [1, *range(4, columns)]


def verdicts(report: Report) -> list[list[str]]:
    """Header and one row per expectation; none where nothing was expected."""
    if not report.findings:
        return []
    places = decimals(report)
    level = report.findings[0].difference.level
    title = "difference" if report.study.exact else f"difference ({100 * level:.4g} %)"
    rows = [["expected", title, "verdict"]]
    for finding in report.findings:
        shown = change(finding.difference, places)
        rows.append([str(finding.expectation), shown, outcome(finding)])
    return rows


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns of plain text, those of the numbers in `right` flush with their right edge."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (
            f"{cell:>{width}}" if column in right else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("   ".join(cells).rstrip())
    return "\n".join(lines)


def text(report: Report) -> str:
    """What the command prints."""
    rows = aligned(table(report), to_the_right(report))
    parts = [f"{report.study.question}\n{subtitle(report)}", rows]
    if report.findings:
        parts.append(aligned(verdicts(report)))
    if report.remarks:
        parts.append("\n".join(report.remarks))
    parts.append("\n".join(textwrap.wrap(report.method, 100)))
    return "\n\n".join(parts) + "\n"


def records(report: Report) -> list[list[str | float | None]]:
    """Header and one row per cell, numbers with all digits; an interval's ends are two columns."""
    compared = ["difference", "low", "high", "pairs", "p_holm"]
    rows = [["cell", "metric", "n", "mean", "std", *compared, *COSTS]]
    for row in report.rows:
        numbers = [row.cell, report.study.metric, len(row.values), row.mean, row.std]
        if row.difference is None:
            numbers += [None] * 5
        else:
            ends = row.difference.interval or (None, None)
            numbers += [row.difference.mean, *ends, len(row.difference.values), row.p]
        rows.append([*numbers, *(row.cost[name] for name in COSTS)])
    return rows


def comma_separated(report: Report) -> str:
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(records(report))
    return lines.getvalue()


def markdown_table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """GitHub's tables; a bar inside a cell is escaped."""
    rule = ["---:" if column in right else "---" for column in range(len(rows[0]))]
    head, *body = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def markdown(report: Report) -> str:
    parts = [
        f"## {report.study.question}",
        subtitle(report) + ".",
        markdown_table(table(report), to_the_right(report)),
    ]
    if report.findings:
        parts.append(markdown_table(verdicts(report)))
    parts += ["\n".join(f"- {line}" for line in report.remarks)] if report.remarks else []
    return "\n\n".join([*parts, report.method]) + "\n"


LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
}


def escaped(text: str) -> str:
    text = re.sub(r"(?<!\S)(\[?)-(?=\d)", r"\1−", text)  # the sign of a number
    return "".join(LATEX.get(char, char) for char in text)


def latex(report: Report) -> str:
    """A table for a paper that loads booktabs; verdicts and remarks as comments below it."""
    head, *rows = table(report)
    columns = "l" + "r" * (len(head) - 1)
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escaped(report.study.question)} {escaped(subtitle(report))}.",
        f"    {escaped(report.method.partition(' A verdict')[0])}}}",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        f"    {' & '.join(escaped(cell) for cell in head)} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(escaped(cell) for cell in row)} \\\\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
        *(f"% {' | '.join(row)}" for row in verdicts(report)),
        *(f"% {line}" for line in report.remarks),
    ]
    return "\n".join(lines) + "\n"
