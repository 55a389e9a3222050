"""A report's figures: differences from the baseline seed by seed, and learning curves with bands.

Drawn narrow, so that a phone shows them with readable letters. Ink is black and paper transparent:
`as_svg` hands both to the page, which knows whether its reader prefers them dark.
"""

import io
import re

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from attention_vision.report.summary import Report, Row

# Okabe and Ito's colours, told apart by readers who do not see red and green as two.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
STYLES = ("-", "--", ":", "-.")  # for more cells than colours
INK = "#010203"  # becomes currentColor in the page
WIDTH = 4.4  # inches
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # equal reports are equal files
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
}


def draw(report: Report) -> dict[str, Figure]:
    """The figures by name: `differences`, and `curves` where runs left any."""
    drawn = {}
    with rc_context(SETTINGS):
        if any(row.difference is not None and row.difference.values for row in report.rows):
            drawn["differences"] = differences(report)
        if any(report.study.curves(cell, report.study.metric) for cell in report.study.cells):
            drawn["curves"] = curves(report)
    return drawn


def colour(report: Report, cell: str) -> str:
    return COLOURS[report.study.cells.index(cell) % len(COLOURS)]


def differences(report: Report) -> Figure:
    """One line per cell: a ring per seed, a dot for their mean, a bar for its interval."""
    rows = [row for row in report.rows if row.difference is not None and row.difference.values]
    figure = Figure(figsize=(WIDTH, 0.75 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=0.6)
    for place, row in enumerate(rows):
        one_difference(axes, place, row, colour(report, row.cell))
    axes.set_yticks(range(len(rows)), [row.cell for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=6)
    if max(map(abs, axes.get_xlim())) >= 1e5:
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel(f"{report.study.metric} minus that of {report.study.baseline}")
    return figure


def one_difference(axes: Axes, place: int, row: Row, colour: str) -> None:
    values = list(row.difference.values.values())
    if row.difference.interval:
        axes.plot(row.difference.interval, [place, place], color=colour, linewidth=2)
    axes.plot(values, [place] * len(values), "o", markersize=5, mfc="none", mec=colour, mew=0.8)
    axes.plot(row.difference.mean, place, "o", markersize=5, color=colour)


def curves(report: Report) -> Figure:
    """The metric over steps: mean of the seeds, and one standard deviation to either side."""
    study = report.study
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    axes = figure.subplots()
    for number, cell in enumerate(study.cells):
        steps, values = common(study.curves(cell, study.metric))
        if not steps:
            continue
        line = {"color": colour(report, cell), "linestyle": STYLES[number // len(COLOURS) % 4]}
        middle = values.mean(0)
        mark = "o" if len(steps) == 1 else ""
        axes.plot(steps, middle, linewidth=1.4, label=cell, marker=mark, markersize=4, **line)
        if len(values) > 1:
            half = values.std(0, ddof=1)
            axes.fill_between(steps, middle - half, middle + half, alpha=0.18, lw=0, **line)
    axes.set_xlabel("step")
    axes.set_ylabel(study.metric)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    return figure


def common(curves: dict[int | None, list[tuple[int, float]]]) -> tuple[list[int], np.ndarray]:
    """Steps that all seeds have, and the values there, (seeds, steps).

    Runs under way are shorter: they say nothing of later steps, so these are left out for all.
    """
    by_step = [dict(points) for points in curves.values()]
    steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
    return steps, np.array([[points[step] for step in steps] for points in by_step])


def as_svg(figure: Figure) -> str:
    """The figure as an <svg> element that takes its ink from the page around it."""
    text = io.StringIO()
    with rc_context(SETTINGS):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg )', r"\1\2", svg, count=1)
    return re.sub(r' (height|width)="[\d.]+pt"', "", svg, count=2).strip()
