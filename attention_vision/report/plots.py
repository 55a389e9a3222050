"""Figures of a report: differences from the baseline by seed, and learning curves with bands.

The figures are narrow, so that text stays readable on a phone. Lines and text have one reserved
color on a transparent background: `as_svg` replaces it by the text color of the page (light or
dark).
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from attention_vision.report.statistics import Difference
from attention_vision.report.summary import CellSummary, Report

# Okabe and Ito's palette, which color-blind readers can distinguish.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
STYLES = ("-", "--", ":", "-.")  # for more cells than colors
MOST = len(COLORS) * len(STYLES)  # cells of a figure, the first ones: more would look alike
INK = "#010203"  # replaced by currentColor in the page
WIDTH = 4.4  # inches
SETTINGS: dict[Any, Any] = {  # Matplotlib's stubs want a Literal of all its keys
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may contain dollars
    "svg.hashsalt": "report",  # equal reports give equal files
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
    """Draw the figures: `differences` and, if the runs have learning curves, `curves`."""
    figures = {}
    with rc_context(SETTINGS):
        if compared(report):
            figures["differences"] = differences(report)
        if curves := curves_of(report):
            figures["curves"] = learning_curves(report, curves)
    return figures


def compared(report: Report) -> list[tuple[CellSummary, Difference]]:
    """The first cells that have a difference from the baseline, with that difference."""
    pairs = ((row, row.difference) for row in report.rows)
    found = [(row, difference) for row, difference in pairs if difference and difference.values]
    return found[:MOST]


def curves_of(report: Report) -> dict[str, tuple[list[int], np.ndarray]]:
    """Steps and values of the first cells that have learning curves, see `common_steps`."""
    study = report.study
    found = {cell: common_steps(study.curves(cell, study.metric)) for cell in study.cells[:MOST]}
    return {cell: (steps, values) for cell, (steps, values) in found.items() if steps}


def color(report: Report, cell: str) -> str:
    return COLORS[report.study.cells.index(cell) % len(COLORS)]


def differences(report: Report) -> Figure:
    """Draw one line per cell: a ring per seed, a dot for the mean, a bar for its interval.

    A band marks ± the study's effect.
    """
    rows = compared(report)
    figure = Figure(figsize=(WIDTH, 0.75 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=0.6)
    if (effect := report.study.plan.effect) is not None:
        axes.axvspan(-effect, effect, color=INK, alpha=0.07, lw=0)
    for position, (row, difference) in enumerate(rows):
        draw_difference(axes, position, difference, color(report, row.cell))
    axes.set_yticks(range(len(rows)), [row.cell for row, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=6)
    if max(map(abs, axes.get_xlim())) >= 1e5:
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel(f"{report.study.metric} minus that of {report.study.baseline}")
    return figure


def draw_difference(axes: Axes, position: int, difference: Difference, color: str) -> None:
    """Draw values, mean and interval at one height of the axes."""
    values, mean = list(difference.values.values()), [difference.mean or 0.0]
    if difference.interval:
        axes.plot(difference.interval, [position, position], color=color, linewidth=2)
    axes.plot(values, [position] * len(values), "o", markersize=5, mfc="none", mec=color, mew=0.8)
    axes.plot(mean, [position], "o", markersize=5, color=color)


def learning_curves(report: Report, curves: dict[str, tuple[list[int], np.ndarray]]) -> Figure:
    """Draw the metric over steps: the mean over seeds with a band of ± one standard deviation."""
    study = report.study
    lines_of_legend = -(-len(curves) // 2)
    figure = Figure(figsize=(WIDTH, 2.9 + 0.17 * max(0, lines_of_legend - 3)), layout="constrained")
    axes = figure.subplots()
    for cell, (steps, values) in curves.items():
        paint = color(report, cell)
        style = STYLES[study.cells.index(cell) // len(COLORS) % 4]
        mean = values.mean(0)
        mark = "o" if len(steps) == 1 else ""
        axes.plot(
            steps, mean, style, color=paint, linewidth=1.4, label=cell, marker=mark, markersize=4
        )
        if len(values) > 1:  # without a style: an edge of no width has no dashes
            half = values.std(0, ddof=1)
            axes.fill_between(steps, mean - half, mean + half, alpha=0.18, lw=0, color=paint)
    axes.set_xlabel("step")
    axes.set_ylabel(study.metric)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    return figure


def common_steps(
    curves: Mapping[int | None, Sequence[tuple[int, float]]],
) -> tuple[list[int], np.ndarray]:
    """Steps that all seeds have logged, and the values at these steps, (seeds, steps).

    The curves of unfinished runs are shorter; later steps are left out for all seeds.
    """
    by_step = [dict(points) for points in curves.values()]
    steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
    return steps, np.array([[points[step] for step in steps] for points in by_step])


def as_svg(figure: Figure) -> str:
    """Render a figure as an <svg> element in the text color of the surrounding page."""
    text = io.StringIO()
    with rc_context(SETTINGS):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg )', r"\1\2", svg, count=1)
    return re.sub(r' (height|width)="[\d.]+pt"', "", svg, count=2).strip()
