"""Pictures of what attention layers did with an image."""

from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from attention_vision.visualization.drawing import bars, marked, overlay, rgb, scaled, sheet
from attention_vision.visualization.layers import Layer

COLUMNS = 6  # of a page


LEAST = 200  # pixels of an image's shorter side on a page, below which it is enlarged


class Wish(NamedTuple):
    """How maps are drawn.

    Attributes:
        heads: each head by itself besides their mean.
        point: (x, y) in 0..1 of the image, the query of self-attention; None for the usual one.
    """

    heads: bool = False
    point: tuple[float, float] | None = None


class Page(NamedTuple):
    """Of one image: a picture (H, W, 3) uint8, arrays for an .npz, and a line about it."""

    picture: np.ndarray
    arrays: dict[str, np.ndarray]
    line: str


class Explanation(Protocol):
    """Of a trained module of one task; a sample is what the task's data gives."""

    def layers(self, sample: Any) -> dict[str, Layer]:
        """Every layer that `page` knows, from a trial with one sample."""

    def usual(self, layers: dict[str, Layer]) -> list[str]:
        """The names of those that are shown where none are named."""

    def page(self, sample: Any, names: list[str]) -> Page:
        """A sample and what the layers of these names did with it."""


def panels(image: Tensor, title: str, layers: Sequence[Layer], heads: bool = False) -> np.ndarray:
    """An image beside what layers did with it, as (height, width, 3) uint8.

    Args:
        image: (3, H, W), of any range.
        title: over the image.
        layers: of B = 1 image; those that have neither maps nor gates are left out.
        heads: a row more for each layer of several heads, with each of them.
    """
    factor = max(1, ceil(LEAST / min(image.shape[1:])))
    image = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)[None].cpu()
    shown = [layer for layer in layers if layer.shown]
    cells = [(rgb(image)[0], title), *(drawn(layer, image) for layer in shown)]
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    for layer in shown if heads else ():
        if layer.maps is not None and layer.maps.shape[1] > 1:
            parts = [drawn(layer, image, head) for head in range(layer.maps.shape[1])]
            rows += [parts[start : start + COLUMNS] for start in range(0, len(parts), COLUMNS)]
    pictures = [[picture for picture, _ in row] for row in rows]
    titles = [[title for _, title in row] for row in rows]
    return sheet(pictures, titles, [""] * len(rows), inches=2.3)


def drawn(layer: Layer, image: Tensor, head: int | None = None) -> tuple[Tensor, str]:
    """The picture (H, W, 3) of a layer of one image (1, 3, H, W), and its title."""
    name, kind = layer.name.removesuffix(".attention"), layer.kind
    if layer.gates is not None:
        values, picture = layer.gates[0], bars(layer.gates[0].cpu(), tuple(image.shape[2:]))
        uniform = False
    else:
        values = layer.maps.mean(1) if head is None else layer.maps[:, head]
        smooth = F.interpolate(values[:, None], image.shape[2:], mode="bilinear")[:, 0]
        over = scaled(smooth).cpu()
        picture, uniform = overlay(image, over), not over.any()
        picture = (marked(picture, layer.point) if layer.point else picture)[0]
    kind = kind if head is None else f"head {head}"
    span = "uniform" if uniform else f"{values.min():.3g} to {values.max():.3g}"
    return picture, f"{name}\n{kind}\n{span}"


def stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) uint8 one below the other, on white."""
    wide = max(picture.shape[1] for picture in pictures)
    return np.concatenate(
        [
            np.pad(one, ((0, 0), (0, wide - one.shape[1]), (0, 0)), constant_values=255)
            for one in pictures
        ]
    )
