"""Pictures of what attention layers did with an image."""

from collections.abc import Sequence
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attention_vision.visualization.drawing import bars, marked, overlay, rgb, scaled, sheet
from attention_vision.visualization.layers import Layer

COLUMNS = 6  # of a sheet
LEAST = 200  # pixels of an image's shorter side, below which it is enlarged
NEARLY_UNIFORM = 1e-3  # relative range of a map, below which its colors would show rounding


def layer_sheet(
    image: Tensor, title: str, layers: Sequence[Layer], heads: bool = False
) -> np.ndarray:
    """Draw an image beside what layers did with it, as (height, width, 3) uint8.

    Args:
        image: (3, H, W), of any range.
        title: above the image.
        layers: of B = 1 image; layers with neither maps nor gates are left out.
        heads: add a row for each layer of several heads, with each of them.
    """
    factor = max(1, ceil(LEAST / min(image.shape[1:])))
    image = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)[None].cpu()
    shown = [layer for layer in layers if layer.can_be_drawn]
    cells = [(rgb(image)[0], title), *(layer_picture(layer, image) for layer in shown)]
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    for layer in shown if heads else ():
        if layer.maps is not None and layer.maps.shape[1] > 1:
            each = [layer_picture(layer, image, head) for head in range(layer.maps.shape[1])]
            rows += [each[start : start + COLUMNS] for start in range(0, len(each), COLUMNS)]
    pictures = [[picture for picture, _ in row] for row in rows]
    titles = [[title for _, title in row] for row in rows]
    return sheet(pictures, titles, [""] * len(rows), inches=2.3)


def layer_picture(layer: Layer, image: Tensor, head: int | None = None) -> tuple[Tensor, str]:
    """Draw a layer over one image (1, 3, H, W): a picture (H, W, 3) in 0..1, and its title.

    Args:
        head: number of a head; the mean of all heads where none is given.

    Raises:
        ValueError: the layer has neither maps nor gates.
    """
    size = (image.shape[2], image.shape[3])
    if layer.gates is not None:
        values = layer.gates[0]
        picture, uniform = bars(values.cpu(), size), False
    elif layer.maps is not None:
        values = layer.maps.mean(1) if head is None else layer.maps[:, head]
        smooth = F.interpolate(values[:, None], size, mode="bilinear")[:, 0]
        lowest, highest = values.min().item(), values.max().item()
        uniform = highest - lowest <= NEARLY_UNIFORM * max(abs(lowest), abs(highest))
        map_over_image = torch.zeros_like(smooth) if uniform else scaled(smooth)
        pictures = overlay(image, map_over_image.cpu())
        picture = (marked(pictures, layer.point) if layer.point else pictures)[0]
    else:
        raise ValueError(f"{layer.name} has neither maps nor gates: {layer.title}")
    name = layer.name.removesuffix(".attention")
    title = layer.title if head is None else f"head {head}"
    extent = f"{values.min():.3g} to {values.max():.3g}"
    if uniform:
        extent = f"uniform, {values.mean():.3g}"
    return picture, f"{name}\n{title}\n{extent}"


def stack_pictures(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Stack pictures (H, W, 3) uint8 from top to bottom, on white."""
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate(
        [
            np.pad(one, ((0, 0), (0, width - one.shape[1]), (0, 0)), constant_values=255)
            for one in pictures
        ]
    )
