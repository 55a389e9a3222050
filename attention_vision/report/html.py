"""A report as one self-contained HTML page: no scripts, fonts or external files."""

from html import escape

from matplotlib.figure import Figure

from attention_vision.report import tables
from attention_vision.report.checklist import checklist
from attention_vision.report.plots import MOST, as_svg
from attention_vision.report.statistics import standard_deviation
from attention_vision.report.summary import Report

STYLE = """
:root { color-scheme: light dark; --paper: #fdfcf9; --ink: #1d1c1a; --soft: #6b675f;
  --line: #d9d5cb; --shade: #f4f1ea; --yes: #1a7f5a; --no: #b3402e; --open: #8a6d1d;
  --same: #2a6496; }
@media (prefers-color-scheme: dark) { :root { --paper: #16171a; --ink: #e8e6e1; --soft: #9d998f;
  --line: #34363c; --shade: #1e2024; --yes: #57c79a; --no: #f0897a; --open: #d9b75c;
  --same: #7fb4e0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1.05rem/1.6 "Iowan Old Style", "Palatino Linotype", Palatino, "URW Palladio L", Georgia,
  serif; -webkit-text-size-adjust: 100%; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.5rem, 1.1rem + 2vw, 2.25rem); line-height: 1.2; font-weight: 600;
  margin: 0 0 .6rem; text-wrap: balance; }
h2 { font-size: 1.15rem; font-weight: 600; margin: 2.6rem 0 .7rem; }
p, li { max-width: 42rem; }
.soft, figcaption, dt { color: var(--soft); }
.soft, figcaption { font-size: .92rem; line-height: 1.5; }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.scroll { overflow-x: auto; margin: 0 -1.25rem; padding: 0 1.25rem; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; line-height: 1.4;
  font-variant-numeric: tabular-nums lining-nums; border-top: 1.5px solid var(--ink);
  border-bottom: 1.5px solid var(--ink); }
th, td { padding: .5rem .9rem .5rem 0; text-align: left; vertical-align: baseline; }
th { font-weight: 400; color: var(--soft); border-bottom: 1px solid var(--line);
  white-space: nowrap; }
td { white-space: nowrap; }
td:first-child { white-space: normal; min-width: 8rem; }
th:last-child, td:last-child { padding-right: 0; }
.n { text-align: right; }
tbody tr + tr td { border-top: 1px solid var(--line); }
.verdicts { list-style: none; padding: 0; margin: 1.6rem 0 0; }
.verdicts li { max-width: none; padding: .65rem 0; border-top: 1px solid var(--line);
  display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: .1rem 1.2rem; }
.verdicts .soft { grid-column: 1 / -1; }
.verdicts li:last-child { border-bottom: 1px solid var(--line); }
.verdict { font-style: italic; text-align: right; }
.supported { color: var(--yes); }
.contradicted { color: var(--no); }
.undecided { color: var(--open); }
.no-difference { color: var(--same); }
.figures { display: grid; gap: 0 3rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; max-width: 36rem; }
.remarks { list-style: none; padding: 0; margin: .9rem 0 0; }
img { display: block; max-width: 100%; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .35rem 1.2rem;
  font-size: .95rem; }
dd { margin: 0; overflow-wrap: anywhere; }
dd code { display: block; padding-left: 1.5rem; text-indent: -1.5rem; }
details > summary { cursor: pointer; margin: 2.6rem 0 .7rem; font-weight: 600; font-size: 1.15rem; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .7rem; }
  .verdicts li { grid-template-columns: 1fr; } .verdict { text-align: left; } }
@media print { main { padding: 0; max-width: none; } }
"""

CAPTIONS = {
    "differences": (
        "Against the baseline",
        "Differences within seeds: a ring for each seed, a dot for the mean, a bar for its "
        "95 % confidence interval.",
    ),
    "curves": (
        "Learning curves",
        "Mean over seeds; the band is ± one standard deviation.",
    ),
}


def render_page(report: Report, figures: dict[str, Figure]) -> str:
    """Render the page.

    Args:
        report: the study and its statistics.
        figures: by their names in `CAPTIONS`.
    """
    study = report.study
    parts = [
        f"<h1>{escape(study.question)}</h1>",
        f'<p class="soft">{escape(tables.subtitle(report))}</p>',
        verdict_list(report),
        "<h2>Results</h2>",
        results_table(report),
        remark_list(report),
        figure_row(report, figures),
        other_metrics(report),
        power_list(report),
        "<h2>Statistics</h2>",
        f"<p>{escape(report.method)}</p>".replace(" %", "&nbsp;%"),
        setup(report),
    ]
    return page(f"{study.name}: {study.question}", parts)


def page(title: str, parts: list[str]) -> str:
    """Render a page of its own; empty parts are left out.

    Args:
        title: plain text.
        parts: HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'  # otherwise browsers request one from the server
        f"<title>{escape(title)}</title>\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, parts))
        + "\n</main>\n</body>\n</html>\n"
    )


def html_table(rows: list[list[str]], right: list[int]) -> str:
    """Render a table that scrolls horizontally on narrow screens.

    Args:
        rows: the header and the rows below it.
        right: columns that are flush right.
    """

    def line(cells: list[str], tag: str) -> str:
        return "".join(
            f'<{tag} class="n">{escape(cell)}</{tag}>'
            if column in right
            else f"<{tag}>{escape(cell)}</{tag}>"
            for column, cell in enumerate(cells)
        )

    head, *body = rows
    lines = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in body)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{line(head, "th")}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody>\n</table></div>"
    )


def verdict_list(report: Report) -> str:
    """Render each expectation with its verdict and, below it, the difference."""
    if not report.findings:
        return ""
    places = tables.decimals(report)
    level = f"{100 * report.findings[0].difference.level:.4g} %"
    lines = []
    for finding in report.findings:
        difference = finding.difference
        ends = tables.interval(difference, places)
        numbers = tables.number(difference.mean, places)
        if difference.mean is not None:
            numbers = f"{difference.mean:+,.{places}f}"
        numbers += f", {level} interval {ends}" if ends.startswith("[") else ""
        chances = {
            "p (t)": tables.p_value(difference.p),
            "p (sign flip)": tables.flip_p(difference),
            "P(ordering)": tables.improvement(finding),
        }
        shown = "; ".join(f"{title} {text}" for title, text in chances.items() if text)
        other = minus(tables.opposite(finding, places))
        lines.append(
            f"<li><span>{escape(str(finding.expectation))}</span>"
            f'<span class="verdict {finding.verdict.replace(" ", "-")}">{finding}</span>'
            f'<span class="soft">{minus(numbers)}: {escape(finding.reason)}</span>'
            + (f'<span class="soft">{escape(shown)}</span>' if shown else "")
            + f'<span class="soft">{escape(other)}</span></li>'
        )
    return '<ul class="verdicts">\n' + "\n".join(lines) + "\n</ul>"


def results_table(report: Report) -> str:
    """Render the table of the cells."""
    head, *rows = tables.table(report)
    column = head.index("difference")
    for row in rows:
        row[column] = minus(row[column])
    return html_table([head, *rows], tables.right_aligned(report))


def minus(numbers: str) -> str:
    """Replace hyphens by minus signs, which are as wide as a plus."""
    return numbers.replace("-", "−")


def remark_list(report: Report) -> str:
    """Render the remarks."""
    lines = "\n".join(f"<li>{escape(line)}</li>" for line in report.remarks)
    return f'<ul class="remarks soft">\n{lines}\n</ul>' if lines else ""


def power_list(report: Report) -> str:
    """Render the sentences on the power."""
    lines = "\n".join(f"<li>{escape(line)}</li>" for line in report.power_lines)
    return f"<h2>Power</h2>\n<ul>\n{lines}\n</ul>" if lines else ""


def figure_row(report: Report, figures: dict[str, Figure]) -> str:
    """Render the figures, side by side if the screen is wide enough."""
    parts = []
    for name, figure in figures.items():
        title, caption = CAPTIONS[name]
        caption = "One dot for each cell." if report.study.exact else caption
        if name == "differences" and (effect := report.study.plan.effect) is not None:
            caption += f" Shaded: ±{effect:.15g}, the smallest difference that matters."
        if len(report.study.cells) > MOST:
            caption += f" The first {MOST} of {len(report.study.cells)} cells."
        parts.append(figure_part(title, as_svg(figure), caption))
    return '<div class="figures">\n' + "\n".join(parts) + "\n</div>" if parts else ""


def figure_part(title: str, picture: str, caption: str) -> str:
    """Render a picture, which is HTML, between a title and a caption, which are plain text."""
    return (
        f'<figure aria-label="{escape(title)}">\n<h2>{escape(title)}</h2>\n{picture}\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>"
    )


def other_metrics(report: Report) -> str:
    """Render mean and standard deviation of all other logged metrics, by cell."""
    study = report.study
    rows = []
    for metric in study.metrics():
        by_cell = [list(study.values(cell, metric).values()) for cell in study.cells]
        if metric != study.metric and any(by_cell):
            rows.append([metric, *map(mean_and_deviation, by_cell)])
    if not rows:
        return ""
    head = ["", *study.cells]
    table = html_table([head, *rows], list(range(1, len(head))))
    return f"<details><summary>All other logged metrics</summary>\n{table}\n</details>"


def mean_and_deviation(values: list[float]) -> str:
    """Format "mean ± standard deviation"; a dash without values."""
    if not values:
        return tables.NONE
    mean = sum(values) / len(values)
    deviation = standard_deviation(values)
    return f"{mean:.4g}" + ("" if deviation is None else f" ± {deviation:.2g}")


def fact(title: str, text: str) -> str:
    """Render one entry of the setup; commands are one line each."""
    if title != "commands":
        return f"<dd>{escape(text)}</dd>"
    return "<dd>" + "".join(f"<code>{escape(line)}</code>" for line in text.splitlines()) + "</dd>"


def setup(report: Report) -> str:
    """Render the checklist, the other facts and the notes."""
    facts = (checklist(report.study) | report.study.facts).items()
    terms = "".join(f"<dt>{escape(title)}</dt>{fact(title, text)}\n" for title, text in facts)
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in report.study.notes)
    return (f"<h2>Setup</h2>\n<dl>\n{terms}</dl>\n" if terms else "") + (
        f"<h2>Notes</h2>\n<ul>\n{notes}</ul>" if notes else ""
    )
