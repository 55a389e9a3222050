"""A confusion matrix as text and as a picture, for every task that has classes."""

import csv
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

MOST_DRAWN = 100  # classes of a picture
MOST_WRITTEN = 25  # classes whose cells have their numbers written in the picture


def confusion_csv(counts: np.ndarray, names: Sequence[str]) -> str:
    """The matrix as text: a column `class` of the true names, then one per predicted class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", *names])
    writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    return text.getvalue()


def confusion_figure(counts: np.ndarray, names: Sequence[str], counted: str = "images") -> Figure:
    """Draw a matrix (n, n), a row per true class, colored by the share of each true class.

    Args:
        counts: integers.
        names: of the classes.
        counted: what the numbers count.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(10.0, 2.5 + 0.35 * len(names))
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 8 if len(names) <= MOST_WRITTEN else 5
    ticks = range(len(names))
    axis.set_xticks(ticks, names, rotation=90, fontsize=size, parse_math=False)
    axis.set_yticks(ticks, names, fontsize=size, parse_math=False)
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_title(f"{counted}, colored by share of the true class", fontsize=8)
    if len(names) <= MOST_WRITTEN:
        for row, column in zip(*counts.nonzero(), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            number = str(counts[row, column])
            axis.text(column, row, number, ha="center", va="center", fontsize=7, color=color)
    return figure
