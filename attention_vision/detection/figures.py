"""Boxes on images, each with its label and score."""

import colorsys
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
LEAST = 320  # pixels of the longer side, below which labels cannot be read


def drawn(
    image: Image.Image,
    detections: dict[str, Tensor],
    names: Sequence[str],
    threshold: float = 0.5,
    truth: Tensor | None = None,
    most: int | None = None,
) -> Image.Image:
    """An RGB copy with detections in the colour of their class, each with its label and score.

    A small image is enlarged by a whole factor, so that boxes and labels can be read.

    Args:
        image: of any mode.
        detections: `boxes` (k, 4) xyxy in pixels of the image, `scores` and `labels` (k,).
        names: of the labels; without any, their numbers are written.
        threshold: the least score that is drawn.
        truth: (n, 4) xyxy, drawn in thin white.
        most: pixels of the longer side; a larger image is shrunk.
    """
    picture, scale = fitted(image, most)
    pen, longer = ImageDraw.Draw(picture), max(picture.size)
    font = ImageFont.truetype(FONT, max(12, longer // 60))
    boxes, scores, labels = (
        detections[key].detach().cpu() for key in ("boxes", "scores", "labels")
    )
    order = scores.argsort(stable=True)  # the best lie on top
    order = order[scores[order] >= threshold]
    shown = list(
        zip(boxes[order].tolist(), scores[order].tolist(), labels[order].tolist(), strict=True)
    )
    for box, _, label in shown:
        frame(pen, box, scale, colour(label), max(2, longer // 300))
    for box in [] if truth is None else truth.tolist():
        frame(pen, box, scale, (255, 255, 255), 1)
    for box, score, label in shown:
        write(pen, box, scale, colour(label), f"{name(names, label)} {score:.2f}", font)
    return picture


def fitted(image: Image.Image, most: int | None = None) -> tuple[Image.Image, float]:
    """A copy of readable size, and by how much it is larger."""
    longer, scale = max(image.size), 1.0
    if longer < LEAST:
        scale = float(ceil(LEAST / longer))
    elif most is not None and longer > most:
        scale = most / longer
    size = [max(1, round(length * scale)) for length in image.size]
    kind = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return image.convert("RGB").resize(size, kind), scale


def frame(
    pen: ImageDraw.ImageDraw,
    box: list[float],
    scale: float,
    colour: tuple[int, int, int],
    width: int,
) -> None:
    """The outline of a box xyxy, which stays inside the picture."""
    last = [side - 1 for side in pen.im.size] * 2
    corners = [min(max(round(place * scale), 0), end) for place, end in zip(box, last, strict=True)]
    pen.rectangle(corners, outline=colour, width=width)


def write(
    pen: ImageDraw.ImageDraw,
    box: list[float],
    scale: float,
    colour: tuple[int, int, int],
    text: str,
    font: ImageFont.FreeTypeFont,
) -> None:
    """A text on the colour of its box: above the box where there is room, else inside of it."""
    *_, width, height = (ceil(length) + 4 for length in pen.textbbox((0, 0), text, font, "la"))
    left = max(0, min(round(box[0] * scale), pen.im.size[0] - width))
    top = round(box[1] * scale)
    top = top - height if top >= height else max(0, top)
    pen.rectangle((left, top, left + width, top + height), fill=colour)
    red, green, blue = colour
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    pen.text((left + 2, top + 2), text, "black" if bright else "white", font, "la")


def colour(label: int) -> tuple[int, int, int]:
    """Of a class; steps of the golden ratio keep neighbours apart, at any number of classes."""
    hue = label * 0.6180339887 % 1
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.8, 1.0))


def name(names: Sequence[str], label: int) -> str:
    return names[label] if names else str(label)


def picture_of(pixels: Tensor) -> Image.Image:
    """(H, W, 3) in 0..1 -> a PIL image."""
    return Image.fromarray((pixels * 255).round().byte().numpy())


def extent(padding_mask: Tensor) -> tuple[int, int]:
    """(H, W) bool, True where padded -> height and width without the padding."""
    return tuple(int((~padding_mask).any(axis).sum()) for axis in (1, 0))
