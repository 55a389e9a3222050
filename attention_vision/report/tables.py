"""Tables of a report: plain text, CSV, Markdown and LaTeX."""

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from math import floor, isinf, log10
from statistics import median_low

from attention_vision.report.checklist import checklist
from attention_vision.report.results import COSTS
from attention_vision.report.statistics import Difference, Finding, needed, smallest_flip_p
from attention_vision.report.summary import CellSummary, Report
from attention_vision.report.text_table import aligned, printable

TITLES = {
    "parameters": "parameters",
    "macs": "MACs",
    "images_per_second": "images/s",
    "peak_memory": "peak memory",
    "seconds": "seconds",
}
NONE = "–"
POWER = "Power:"
OPPOSITES = "What would have to be true for another verdict:"


def decimals(report: Report) -> int:
    """Number of decimals: two digits of a typical standard deviation, or four of single values."""
    deviations = [row.std for row in report.rows if row.std]
    if deviations:
        return min(max(0, 1 - floor(log10(median_low(deviations)))), 8)
    sizes = [abs(row.mean) for row in report.rows if row.mean]
    if all(size == int(size) for size in sizes):
        return 0
    return min(max(0, 3 - floor(log10(max(sizes)))), 8)


def number(value: float | None, places: int) -> str:
    """Format a number with a fixed number of decimals; a dash for None."""
    return NONE if value is None else f"{value:,.{places}f}"


def mean(row: CellSummary, places: int) -> str:
    """Format "mean ± standard deviation"."""
    if row.std is None:
        return number(row.mean, places)
    return f"{number(row.mean, places)} ± {row.std:,.{places}f}"


def interval(difference: Difference, places: int) -> str:
    """Format "[low, high]"; a single number for an exact one, empty without an interval."""
    if difference.interval is None:
        return ""
    low, high = (f"{end:+,.{places}f}" for end in difference.interval)
    return low if low == high else f"[{low}, {high}]"


def change(difference: Difference | None, places: int) -> str:
    """Format mean and interval of a difference; "baseline" for None."""
    if difference is None:
        return "baseline"
    if difference.mean is None:
        return NONE
    exact = difference.interval and difference.interval[0] == difference.interval[1]
    ends = "" if exact else interval(difference, places)
    return f"{difference.mean:+,.{places}f} {ends}".rstrip()


def p_value(p: float | None) -> str:
    """Format a p-value with three decimals."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def size(value: float | None, kind: str) -> str:
    """Format a cost with its unit, rounded for comparison."""
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
    """Names of the costs that are known for at least one cell."""
    return [name for name in COSTS if any(row.cost[name] is not None for row in report.rows)]


def outcome(finding: Finding) -> str:
    """Format a verdict, with its reason if undecided."""
    return str(finding) + (f": {finding.reason}" if finding.verdict == "undecided" else "")


def flip_p(difference: Difference) -> str:
    """Format the p-value of the sign-flip test, with the smallest of so few seeds if it matters."""
    if difference.flip_p is None:
        return ""
    least = smallest_flip_p(len(difference.values))
    few = f" (least {least:.3g})" if least > 1 - difference.level else ""
    return p_value(difference.flip_p) + few


def improvement(finding: Finding) -> str:
    """Format the probability that the ordering holds for a seed: "0.80 [0.28, 0.99]"."""
    if finding.improvement is None:
        return ""
    share, low, high = finding.improvement
    return f"{share:.2f} [{low:.2f}, {high:.2f}]"


def opposite(finding: Finding, places: int) -> str:
    """One line: the mean differences that would have given other verdicts, by this spread and n."""
    ranges = needed(finding)
    if not ranges:
        return f"another verdict needs an interval: {finding.difference.why}"
    words = []
    for verdict, (low, high) in ranges.items():
        if isinf(high):
            where = f"above {signed(low, places)}"
        elif isinf(low):
            where = f"below {signed(high, places)}"
        else:
            where = f"between {signed(low, places)} and {signed(high, places)}"
        if verdict != finding.verdict:
            words.append(f"{verdict} if {'the mean difference were ' * (not words)}{where}")
    if finding.effect and not finding.expectation.by and "no difference" not in ranges:
        words.append("no difference with more seeds only")
    now = f"it is {signed(finding.difference.mean or 0.0, places)}"
    count = len(finding.difference.values)
    return f"{', '.join(words)} ({now}{'' if finding.difference.exact else f' at {count} seeds'})"


def signed(value: float, places: int) -> str:
    """Format a number with its sign; zero has none."""
    text = f"{value:+,.{places}f}"
    return text if any(digit in text for digit in "123456789") else text[1:]


def subtitle(report: Report) -> str:
    """One line with metric, cells, seeds and baseline."""
    study = report.study
    better = "higher" if study.higher_is_better else "lower"
    seeds = [str(seed) for seed in study.seeds if seed is not None]
    numbers = f"seeds {', '.join(seeds)}" if seeds else "exact numbers"
    return (
        f"{study.metric} ({better} is better), {len(study.cells)} cells, {numbers}, "
        f"baseline: {study.baseline}"
    )


def table(report: Report) -> list[list[str]]:
    """Table of the cells: a header and one row per cell."""
    places, known = decimals(report), costs(report)
    header = ["cell", "n", report.study.metric, "difference", "p (Holm)"]
    rows = [[*header, *(TITLES[name] for name in known)]]
    for row in report.rows:
        numbers = [str(len(row.values)), mean(row, places)]
        compared = [change(row.difference, places), p_value(row.p)]
        spent = [size(row.cost[name], name) for name in known]
        rows.append([row.cell, *numbers, *compared, *spent])
    if report.study.exact:  # neither numbers of seeds nor p-values
        rows = [[*row[:1], *row[2:4], *row[5:]] for row in rows]
    return rows


def right_aligned(report: Report) -> list[int]:
    """Columns of `table` that are flush right."""
    columns = len(table(report)[0])
    return list(range(3, columns)) if report.study.exact else [1, *range(4, columns)]


def verdicts(report: Report) -> list[list[str]]:
    """Table of the verdicts: a header and one row per expectation; empty without expectations."""
    if not report.findings:
        return []
    places = decimals(report)
    level = report.findings[0].difference.level
    title = "difference" if report.study.exact else f"difference ({100 * level:.4g} %)"
    rows = [["expected", title, "p (t)", "p (sign flip)", "P(ordering)", "verdict"]]
    for finding in report.findings:
        difference = finding.difference
        chances = [p_value(difference.p), flip_p(difference), improvement(finding)]
        shown = change(difference, places)
        rows.append([str(finding.expectation), shown, *chances, outcome(finding)])
    if report.study.exact:
        rows = [[*row[:2], row[-1]] for row in rows]
    return rows


def opposites(report: Report) -> list[str]:
    """One line per expectation: what would have to be true for another verdict."""
    places = decimals(report)
    return [f"{one.expectation}: {opposite(one, places)}" for one in report.findings]


def text(report: Report) -> str:
    """Format the report as plain text, as the command prints it."""
    rows = aligned(table(report), right_aligned(report))
    parts = [f"{report.study.question}\n{subtitle(report)}", rows]
    if report.findings:
        parts.append(aligned(verdicts(report)))
        parts.append("\n".join([OPPOSITES, *opposites(report)]))
    if report.power_lines:
        parts.append("\n".join([POWER, *report.power_lines]))
    if report.remarks:
        parts.append("\n".join(report.remarks))
    parts.append(aligned([[title, text] for title, text in checklist(report.study).items()]))
    parts.append("\n".join(textwrap.wrap(report.method, 100)))
    return printable("\n\n".join(parts) + "\n")


Record = list[str | float | None]


def records(report: Report) -> list[Record]:
    """Table of the cells with unrounded numbers; the ends of an interval are two columns."""
    compared = ["difference", "low", "high", "pairs", "p_holm"]
    rows: list[Record] = [["cell", "metric", "n", "mean", "std", *compared, *COSTS]]
    for row in report.rows:
        names = map(as_text, (row.cell, report.study.metric))
        numbers: Record = [*names, len(row.values), row.mean, row.std]
        if row.difference is None:
            numbers += [None] * 5
        else:
            ends = row.difference.interval or (None, None)
            numbers += [row.difference.mean, *ends, len(row.difference.values), row.p]
        rows.append([*numbers, *(row.cost[name] for name in COSTS)])
    return rows


def as_text(name: str) -> str:
    """A name that a spreadsheet does not take for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


def comma_separated(report: Report) -> str:
    """Format `records` as CSV."""
    return csv_text(records(report))


def csv_text(rows: Sequence[Record]) -> str:
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue()


def markdown_table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Format a GitHub Markdown table; bars inside cells are escaped, and lines joined.

    Columns are not padded: the cells of the ledger are whole sentences.
    """
    rule = ["---:" if column in right else "---" for column in range(len(rows[0]))]
    head, *body = [
        [" ".join(cell.replace("|", r"\|").splitlines()) for cell in row] for row in rows
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def markdown(report: Report) -> str:
    """Format the report as Markdown; pages made of it keep names as they are, not as HTML."""
    parts = [
        f"## {one_line(report.study.question)}",
        subtitle(report) + ".",
        markdown_table(table(report), right_aligned(report)),
    ]
    if report.findings:
        parts.append(markdown_table(verdicts(report)))
        lines = "\n".join(f"- {one_line(line)}" for line in opposites(report))
        parts.append(f"{OPPOSITES}\n\n{lines}")
    if report.power_lines:
        lines = "\n".join(f"- {line}" for line in report.power_lines)
        parts.append(f"{POWER}\n\n{lines}")
    if report.remarks:
        parts.append("\n".join(f"- {one_line(line)}" for line in report.remarks))
    items = [f"- {title}: {one_line(text)}" for title, text in checklist(report.study).items()]
    return without_html("\n\n".join([*parts, report.method, "\n".join(items)]) + "\n")


def without_html(text: str) -> str:
    """Escape what would open a tag in Markdown, but for line breaks."""
    return re.sub(r"<(?!br>)(?=[A-Za-z/!?])", "&lt;", text)


def one_line(text: str) -> str:
    return " ".join(text.split())


LATEX = {  # tabulate's own escapes do not cover ±, dashes and signs
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
    """Escape text for LaTeX."""
    text = re.sub(r"(?<!\S)(\[?)-(?=\d)", r"\1−", text)  # the sign of a number
    return "".join(LATEX.get(char, char) for char in text)


def latex(report: Report) -> str:
    """Format a LaTeX table (booktabs); verdicts and remarks are comments below it."""
    head, *rows = table(report)
    columns = "l" + "r" * (len(head) - 1)
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escaped(one_line(report.study.question))} {escaped(subtitle(report))}.",
        f"    {escaped(report.method.partition(' A verdict')[0])}}}",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        f"    {' & '.join(escaped(cell) for cell in head)} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(escaped(cell) for cell in row)} \\\\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
        *(f"% {one_line(' | '.join(row))}" for row in verdicts(report)),
        *(f"% {one_line(line)}" for line in [*opposites(report), *report.power_lines]),
        *(f"% {one_line(line)}" for line in report.remarks),
        *(f"% {title}: {one_line(text)}" for title, text in checklist(report.study).items()),
    ]
    return "\n".join(lines) + "\n"
