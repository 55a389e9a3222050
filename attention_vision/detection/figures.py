"""Boxes on images, each with its class and score."""

import colorsys
from collections.abc import Sequence
from math import ceil

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes

from attention_vision.visualization.drawing import FONT, Color

READABLE = 320  # pixels of the longer side, below which captions cannot be read
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def draw_detections(
    image: Image.Image,
    detections: dict[str, Tensor],
    names: Sequence[str],
    threshold: float = 0.5,
    truth: Tensor | None = None,
    longest: int | None = None,
) -> Image.Image:
    """An RGB copy with detections in the color of their class, each with its class and score.

    A small image is enlarged by a whole factor, so that boxes and captions can be read.

    Args:
        image: of any mode.
        detections: `boxes` (k, 4) xyxy in pixels of the image, `scores` and `labels` (k,).
        names: of the labels; without any, the captions show their numbers.
        threshold: the least score that is drawn.
        truth: (n, 4) xyxy, drawn in thin white with a black edge, visible on any ground.
        longest: pixels of the longer side; a larger image is shrunk.
    """
    picture, scale = readable(image, longest)
    boxes, scores, labels = (
        detections[key].detach().cpu() for key in ("boxes", "scores", "labels")
    )
    order = scores.argsort(stable=True)  # the best are drawn last
    order = order[scores[order] >= threshold]
    shown, width = labels[order].tolist(), max(2, max(picture.size) // 300)
    captions = [
        caption(names, label, score)
        for label, score in zip(shown, scores[order].tolist(), strict=True)
    ]
    colors = [class_color(label) for label in shown]
    picture = draw_boxes(picture, boxes[order] * scale, colors, width, captions)
    if truth is not None:
        for color, thickness in ((BLACK, 3), (WHITE, 1)):
            picture = draw_boxes(picture, truth.cpu() * scale, [color] * len(truth), thickness)
    return picture


def draw_boxes(
    picture: Image.Image,
    boxes: Tensor,
    colors: list[Color],
    width: int,
    captions: list[str] | None = None,
) -> Image.Image:
    """An RGB picture with boxes (n, 4) xyxy in its pixels, clipped to it.

    Args:
        width: of the lines, in pixels.
        captions: one for each box, inside its top left corner.
    """
    if not len(boxes):
        return picture  # torchvision warns of it
    last_column, last_row = (side - 1 for side in picture.size)
    pixels = draw_bounding_boxes(
        pil_to_tensor(picture),
        clip_boxes_to_image(boxes.round(), (last_row, last_column)),
        captions,
        list(colors),
        width=width,
        font=FONT,
        font_size=max(12, max(picture.size) // 60),
        label_colors=["black" if is_bright(color) else "white" for color in colors],
        fill_labels=True,
    )
    return to_pil_image(pixels)


def readable(image: Image.Image, longest: int | None = None) -> tuple[Image.Image, float]:
    """An RGB copy of readable size, at most `longest` pixels, and the factor of its sides."""
    longer, scale = max(image.size), 1.0
    if longer < READABLE:
        scale = float(ceil(READABLE / longer))
    elif longest is not None and longer > longest:
        scale = longest / longer
    width, height = (max(1, round(side * scale)) for side in image.size)
    kind = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((width, height), kind), scale


def side_by_side(pictures: list[Image.Image], columns: int = 3) -> np.ndarray:
    """Pictures in rows on white, (H, W, 3) uint8."""
    columns = min(columns, len(pictures))
    wide, high = (max(sides) + 4 for sides in zip(*(one.size for one in pictures), strict=True))
    page = Image.new("RGB", (wide * columns, high * ceil(len(pictures) / columns)), "white")
    for index, picture in enumerate(pictures):
        page.paste(picture, (index % columns * wide + 2, index // columns * high + 2))
    return np.array(page)


def class_color(label: int) -> Color:
    """RGB of a class; steps of the golden ratio keep neighbors apart, for any number of classes."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.6180339887 % 1, 0.8, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def is_bright(color: Color) -> bool:
    """Whether black text is more readable on a color than white, by its luma (BT.601)."""
    red, green, blue = color
    return 0.299 * red + 0.587 * green + 0.114 * blue > 140


def class_name(names: Sequence[str], label: int) -> str:
    """The name of a label, or its number where there are no names."""
    return names[label] if names else str(label)


def caption(names: Sequence[str], label: int, score: float) -> str:
    return f"{class_name(names, label)} {score:.2f}"


def to_pil(pixels: Tensor) -> Image.Image:
    """(H, W, 3) in 0..1 -> a PIL image."""
    return Image.fromarray((pixels * 255).round().byte().numpy())


def unpadded_size(padding_mask: Tensor) -> tuple[int, int]:
    """Height and width of an image without its padding, from (H, W) bool, True where padded."""
    inside = ~padding_mask
    return int(inside.any(1).sum()), int(inside.any(0).sum())
