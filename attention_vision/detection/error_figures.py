"""Figures of a detector's errors: curves, losses of AP by kind of error, and the worst images."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from attention_vision.detection.error_analysis import (
    CORRECT,
    FALSE_KINDS,
    KINDS,
    MISSED,
    RECALLS,
    SCORES,
    Evaluation,
)
from attention_vision.detection.figures import (
    BLACK,
    WHITE,
    caption,
    class_name,
    draw_boxes,
    readable,
    side_by_side,
)
from attention_vision.report.plots import COLORS, INK, SETTINGS, STYLES, WIDTH
from attention_vision.visualization.drawing import Color, with_legend

MOST_LINES = 2 * len(COLORS)  # classes with a line of their own; of more the mean alone is drawn
KIND_COLORS: dict[str, Color] = dict(
    zip(
        (CORRECT, *FALSE_KINDS, MISSED),
        ((0, 158, 115), (230, 159, 0), (86, 180, 233), (204, 121, 167), (0, 114, 178),
         (213, 94, 0), (240, 228, 66)),
        strict=True,
    )
)  # fmt: skip


def error_figures(evaluation: Evaluation, names: Sequence[str]) -> dict[str, Figure]:
    """Figures by name: `precision_recall` and `f1`, of each class and their mean, and `errors`."""
    with rc_context(SETTINGS):
        precision = np.array([one.precision for one in evaluation.curves])
        labels = [class_name(names, label) for label in evaluation.classes]
        first, axes = _axes("recall", "precision")
        _lines(axes, RECALLS, precision, labels)
        second, axes = _axes("score, from which on detections count", "F1")
        _lines(axes, SCORES, evaluation.f1, labels)
        axes.axvline(evaluation.threshold, color=INK, linewidth=0.6, linestyle=":")
        return {"precision_recall": first, "f1": second, "errors": losses(evaluation)}


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    # Margins that fit: measuring the texts for them would take as long as drawing.
    figure = Figure(figsize=(WIDTH, 3.4), dpi=100)
    axes = figure.subplots(gridspec_kw={"left": 0.14, "right": 0.96, "bottom": 0.15, "top": 0.97})
    axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.02))
    return figure, axes


def _lines(axes: Axes, x: np.ndarray, rows: np.ndarray, labels: Sequence[str]) -> None:
    """A line for each of few classes, and their mean."""
    if 1 < len(rows) <= MOST_LINES:
        for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
            style, color = STYLES[number // len(COLORS)], COLORS[number % len(COLORS)]
            axes.plot(x, row, style, color=color, linewidth=0.9, label=label)
    name = labels[0] if len(rows) == 1 else f"mean of {len(rows)} classes"
    axes.plot(x, rows.mean(0), color=INK, linewidth=1.8, label=name)
    axes.legend(frameon=False, fontsize=7)


def losses(evaluation: Evaluation) -> Figure:
    """A bar for the AP50 that is lost to each kind of error."""
    kinds = [*FALSE_KINDS, MISSED]
    figure = Figure(figsize=(WIDTH, 2.4), dpi=100)
    axes = figure.subplots(gridspec_kw={"left": 0.24, "right": 0.96, "bottom": 0.2, "top": 0.97})
    colors = [tuple(part / 255 for part in KIND_COLORS[kind]) for kind in kinds]
    axes.barh(kinds, [evaluation.gains[kind] for kind in kinds], color=colors)
    axes.invert_yaxis()
    axes.set_xlabel("AP50 lost")
    axes.tick_params(axis="y", length=0)
    return figure


def draw_errors(
    image: Image.Image, evaluation: Evaluation, index: int, names: Sequence[str], longest: int
) -> Image.Image:
    """An RGB copy of an image with its detections in the color of their kind of error.

    Objects that no detection found are in the color of missed ones, the others in white; false
    detections have their class and score. Of detections from the threshold.

    Args:
        image: of any mode.
        evaluation: of all images.
        index: of the image among those of `evaluation.matches`.
        names: of the labels.
        longest: pixels of the longer side.
    """
    matches = evaluation.matches
    picture, scale = readable(image, longest)
    shown = evaluation.shown & (matches.image == index)
    found = np.zeros(len(matches.true_labels), bool)
    found[matches.truth[shown & matches.correct]] = True
    of_image = matches.true_image == index
    width = max(2, max(picture.size) // 300)
    for objects, color in ((of_image & found, WHITE), (of_image & ~found, KIND_COLORS[MISSED])):
        boxes = _xyxy(matches.true_boxes[objects]) * scale
        picture = draw_boxes(picture, boxes, [BLACK] * len(boxes), width + 2)
        picture = draw_boxes(picture, boxes, [color] * len(boxes), width)
    rows = np.flatnonzero(shown)[::-1]  # the best are drawn last
    for is_correct in (True, False):
        of_kind = rows[matches.correct[rows] == is_correct]
        colors = [KIND_COLORS[KINDS[kind]] for kind in matches.kind[of_kind]]
        captions = [
            caption(names, int(matches.labels[row]), float(matches.scores[row])) for row in of_kind
        ]
        boxes = _xyxy(matches.boxes[of_kind]) * scale
        picture = draw_boxes(picture, boxes, colors, width, None if is_correct else captions)
    return picture


def _xyxy(boxes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1))


def error_panel(drawings: list[Image.Image]) -> np.ndarray:
    """Drawings of `draw_errors` over a legend of their colors, (H, W, 3) uint8."""
    return with_legend(side_by_side(drawings), error_legend())


def error_legend() -> list[tuple[Color | None, str]]:
    """Colors of `draw_errors`, and what they mean."""
    boxes = [(WHITE, "true box, found"), (KIND_COLORS[MISSED], "true box, not found")]
    return [*boxes, *((KIND_COLORS[kind], f"detection: {kind}") for kind in KINDS)]
