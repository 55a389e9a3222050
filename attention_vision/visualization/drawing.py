"""Pictures that all tasks draw: images, maps over them, and sheets of both."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
LEAST, MOST = 160, 256  # pixels of a picture's width in a sheet
LINE = 20  # pixels of a legend's line

Color = tuple[int, int, int]


def scaled(maps: Tensor) -> Tensor:
    """Scale each map (n, H, W) to 0..1; a uniform map is 0 everywhere.

    A map is uniform if its values differ by no more than the rounding error of sums.
    """
    least, most = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    uniform = most - least <= 1e-5 * torch.maximum(most.abs(), least.abs())
    return ((maps - least) / (most - least).clamp_min(1e-12)).masked_fill(uniform, 0)


def rgb(images: Tensor) -> Tensor:
    """Scale each image to its own range: (B, 3, H, W) normalized -> (B, H, W, 3) in 0..1."""
    least = images.amin((1, 2, 3), keepdim=True)
    most = images.amax((1, 2, 3), keepdim=True)
    return ((images - least) / (most - least).clamp_min(1e-12)).movedim(1, -1).float().cpu()


def overlay(images: Tensor, maps: Tensor) -> Tensor:
    """Draw the colored map over the gray image: (B, 3, H, W) and (B, H, W) -> (B, H, W, 3)."""
    colors = torch.from_numpy(matplotlib.colormaps["inferno"](maps.cpu().numpy())[..., :3])
    gray = rgb(images).mean(-1, keepdim=True)
    return (0.35 * gray + 0.65 * colors.float()).clamp(0, 1)


def marked(pictures: Tensor, point: tuple[float, float]) -> Tensor:
    """Mark a point (x, y) in 0..1 by a green dot in a black ring, in pictures (B, H, W, 3)."""
    height, width = pictures.shape[1:3]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    distance = torch.hypot(x - point[0] * width, y - point[1] * height)
    pictures = pictures.clone()
    pictures[:, distance <= height / 16] = 0.0
    pictures[:, distance <= height / 24] = torch.tensor([0.2, 1.0, 0.3])
    return pictures


def bars(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Draw values (C,) in 0..1 as bars over lines at 0, 1/2 and 1, in a picture (H, W, 3).

    If there are more values than columns of pixels, neighbors are averaged.
    """
    height, width = size
    picture = torch.ones(height, width, 3)
    values = F.adaptive_avg_pool1d(values[None].float(), min(len(values), width))[0]
    columns = torch.arange(width) * len(values) // width
    edges = (columns.diff(prepend=columns[:1]) > 0) & (width >= 4 * len(values))
    level = 1 - (torch.arange(height) + 0.5)[:, None] / height
    for line in (0, height // 2, height - 1):
        picture[line] = 0.7
    filled = (level <= values[columns]) & ~edges
    picture[filled] = torch.tensor([0.87, 0.32, 0.23])  # from the middle of the maps' colors
    return picture


def sheet(
    rows: Sequence[Tensor | Sequence[Tensor]],
    titles: list[list[str]],
    names: list[str],
    inches: float | None = None,
) -> np.ndarray:
    """Draw rows of pictures with a title above each, as (height, width, 3) uint8.

    Args:
        rows: of pictures (n, H, W, 3) in 0..1; they may differ in length.
        titles: per row, one title per picture, or none at all.
        names: what each row shows, written beside it.
        inches: width of a picture, of 100 pixels each; by default small pictures are enlarged to
            1.6 and large ones shrunk to 2.56.
    """
    columns = max(map(len, rows))
    height, width = rows[0][0].shape[:2]
    if inches is None:
        inches = min(max(width, LEAST), MOST) / 100
    size = (inches * columns + 0.4, (inches * height / width + 0.2) * len(rows))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, pictures in enumerate(rows):
        axes[row][0].set_ylabel(names[row], fontsize=8, parse_math=False)
        for column, picture in enumerate(pictures):
            axis = axes[row][column]
            axis.imshow(picture.numpy(), interpolation="antialiased")  # pixels where enlarged
            axis.set(xticks=[], yticks=[])
            if titles[row]:
                axis.set_title(titles[row][column], fontsize=8, parse_math=False)
        for axis in axes[row][len(pictures) :]:
            axis.set_axis_off()
    return pixels(figure)


def pixels(figure: Figure) -> np.ndarray:
    """Render a figure as (height, width, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def with_legend(picture: np.ndarray, entries: Sequence[tuple[Color | None, str]]) -> np.ndarray:
    """Add lines below a picture (H, W, 3) uint8: squares of colors, and what they mean.

    Args:
        picture: is widened with white where an entry is wider.
        entries: color and text; a text without a color explains something else.
    """
    font = ImageFont.truetype(FONT, 13)
    lines: list[list[tuple[Color | None, str]]] = [[]]
    spaces = [
        round(font.getlength(text)) + (LINE if color else 0) + LINE for color, text in entries
    ]
    width, used = max(picture.shape[1], *spaces, 0), 0
    for entry, space in zip(entries, spaces, strict=True):
        if used + space > width:
            lines.append([])
            used = 0
        lines[-1].append(entry)
        used += space
    page = Image.new("RGB", (width, picture.shape[0] + LINE * len(lines) + 6), "white")
    page.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        left, top = 6, picture.shape[0] + LINE * number + 4
        for color, text in line:
            if color:
                draw.rectangle((left, top + 2, left + 12, top + 14), color, "black")
                left += LINE
            draw.text((left, top), text, "black", font)
            left += round(font.getlength(text)) + LINE
    return np.array(page)


def with_row_names(picture: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Write a name to the left of each of the equally high rows of a picture (H, W, 3) uint8."""
    font = ImageFont.truetype(FONT, 13)
    margin = round(max(map(font.getlength, names))) + 12
    page = Image.new("RGB", (picture.shape[1] + margin, picture.shape[0]), "white")
    page.paste(Image.fromarray(picture), (margin, 0))
    draw = ImageDraw.Draw(page)
    for number, name in enumerate(names):
        middle = (number + 0.5) * picture.shape[0] / len(names)
        draw.text((margin - 6, middle), name, "black", font, anchor="rm")
    return np.array(page)
