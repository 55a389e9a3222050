"""Pictures that all tasks draw: images, maps over them, and sheets of both."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset


def spread(source: Dataset, count: int) -> list[Any]:
    """`count` samples, or all that there are, evenly over a source that may be sorted by class."""
    count = min(count, len(source))
    return [source[place * len(source) // count] for place in range(count)]


def scaled(maps: Tensor) -> Tensor:
    """(n, H, W): the least of each map at 0, the largest at 1; a uniform map is 0 everywhere.

    Uniform is what differs by less than the rounding of sums would make it.
    """
    least, most = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    uniform = most - least <= 1e-5 * torch.maximum(most.abs(), least.abs())
    return ((maps - least) / (most - least).clamp_min(1e-12)).masked_fill(uniform, 0)


def rgb(images: Tensor) -> Tensor:
    """(B, 3, H, W) normalised -> (B, H, W, 3) in 0..1, each image over its own range."""
    least = images.amin((1, 2, 3), keepdim=True)
    most = images.amax((1, 2, 3), keepdim=True)
    return ((images - least) / (most - least).clamp_min(1e-12)).movedim(1, -1).float().cpu()


def overlay(images: Tensor, maps: Tensor) -> Tensor:
    """(B, 3, H, W) and (B, H, W) -> (B, H, W, 3): the image in grey under the coloured map."""
    colours = torch.from_numpy(matplotlib.colormaps["inferno"](maps.cpu().numpy())[..., :3])
    grey = rgb(images).mean(-1, keepdim=True)
    return (0.35 * grey + 0.65 * colours.float()).clamp(0, 1)


def marked(pictures: Tensor, point: tuple[float, float]) -> Tensor:
    """(B, H, W, 3) in 0..1 with a green dot in a black ring at (x, y) in 0..1."""
    high, wide = pictures.shape[1:3]
    y, x = torch.meshgrid(torch.arange(high) + 0.5, torch.arange(wide) + 0.5, indexing="ij")
    distance = torch.hypot(x - point[0] * wide, y - point[1] * high)
    pictures = pictures.clone()
    pictures[:, distance <= high / 16] = 0.0
    pictures[:, distance <= high / 24] = torch.tensor([0.2, 1.0, 0.3])
    return pictures


def bars(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(C,) in 0..1 -> (H, W, 3): a bar for each, from the left, over lines at 0, 1/2 and 1.

    Where there are more values than columns of pixels, neighbours are averaged.
    """
    high, wide = size
    picture = torch.ones(high, wide, 3)
    values = F.adaptive_avg_pool1d(values[None].float(), min(len(values), wide))[0]
    columns = torch.arange(wide) * len(values) // wide
    edges = (columns.diff(prepend=columns[:1]) > 0) & (wide >= 4 * len(values))
    level = 1 - (torch.arange(high) + 0.5)[:, None] / high
    for share in (0, high // 2, high - 1):
        picture[share] = 0.7
    filled = (level <= values[columns]) & ~edges
    picture[filled] = torch.tensor([0.87, 0.32, 0.23])  # of the middle of the maps' colours
    return picture


def sheet(
    rows: Sequence[Sequence[Tensor]], titles: list[list[str]], names: list[str], inches: float = 1.3
) -> np.ndarray:
    """Rows of pictures (n, H, W, 3) in 0..1 with a title over each, drawn into one (H, W, 3) uint8.

    Rows may differ in length.

    Args:
        titles: per row, one title a picture, or none at all.
        names: what each row shows, written beside it.
        inches: width of a picture, of 100 pixels each.
    """
    columns = max(map(len, rows))
    high, wide = rows[0][0].shape[:2]
    size = (inches * columns + 0.4, (inches * high / wide + 0.2) * len(rows))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, pictures in enumerate(rows):
        axes[row][0].set_ylabel(names[row], fontsize=8)
        for column, picture in enumerate(pictures):
            axis = axes[row][column]
            axis.imshow(picture.numpy(), interpolation="antialiased")  # pixels where enlarged
            axis.set(xticks=[], yticks=[])
            if titles[row]:
                axis.set_title(titles[row][column], fontsize=8)
        for axis in axes[row][len(pictures) :]:
            axis.set_axis_off()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
