"""Pictures of generated images: grids, sheets of classes, interpolations, attention."""

from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from attention_vision.attention import record_attention
from attention_vision.data.loading import data_of
from attention_vision.generation.gan.sagan import Generator
from attention_vision.ranges import Count, checked
from attention_vision.training.logging import image_loggers
from attention_vision.visualization.drawing import (
    marked,
    overlay,
    scaled,
    sheet,
    with_legend,
    with_row_names,
)

LEGEND = ((None, "a row per class"), (None, "the same noise in every validation"))
EDGE = 2  # pixels of white between the images of a grid
LEAST, MOST = 96, 128  # pixels; smaller images are enlarged by a whole factor, larger ones shrunk


def grid(images: Tensor, columns: int, names: Sequence[str] = ()) -> np.ndarray:
    """Arrange images (B, 3, H, W) in -1..1 row by row, as (height, width, 3) uint8.

    Args:
        names: of the rows, written beside them.
    """
    if (side := max(images.shape[2:])) > MOST:
        images = F.interpolate(images.float(), scale_factor=MOST / side, mode="area")
    pixels = enlarged(to_pixel_arrays(images))
    count, height, width = pixels.shape[:3]
    rows = -(-count // columns)
    shape = rows * (height + EDGE) + EDGE, columns * (width + EDGE) + EDGE, 3
    picture = np.full(shape, 255, np.uint8)
    for number, one in enumerate(pixels):
        top = EDGE + number // columns * (height + EDGE)
        left = EDGE + number % columns * (width + EDGE)
        picture[top : top + height, left : left + width] = one
    return with_row_names(picture, names) if names else picture


def to_pixel_arrays(images: Tensor) -> np.ndarray:
    """Arrays as an image file has them: (B, 3, H, W) in -1..1 -> (B, H, W, 3) uint8."""
    pixels = (images.float().clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().movedim(1, -1).cpu().numpy()


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """Enlarge small images (B, H, W, 3) by a whole factor, so that pixels stay squares."""
    factor = max(1, -(-LEAST // pixels.shape[1]))
    return pixels.repeat(factor, 1).repeat(factor, 2)


def shown_classes(num_classes: int, most: int = 10) -> Tensor:
    """Evenly spaced classes (rows,); without classes `most` zeros."""
    rows = min(most, num_classes) if num_classes else most
    return torch.arange(rows) * num_classes // rows


def interpolate(generator: Generator, ends: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Images along the arc between two points of noise, one class per row.

    Shape: ends (2, n, latent), labels (n,) -> (n · steps, 3, H, W)

    The arc, not the line: between normal vectors the line runs through lengths that the generator
    was never trained on.
    """
    first, last = ends
    cosine = F.cosine_similarity(first, last)[:, None].clamp(-0.9999, 0.9999)
    angle = cosine.acos()
    fractions = torch.linspace(0, 1, steps, device=ends.device)
    path = [
        (((1 - fraction) * angle).sin() * first + (fraction * angle).sin() * last) / angle.sin()
        for fraction in fractions
    ]
    z = torch.stack(path, 1)  # (n, steps, latent)
    return generator(z.flatten(0, 1), labels.repeat_interleave(steps))


def attention_from_points(
    generator: Generator,
    z: Tensor,
    labels: Tensor,
    points: Sequence[tuple[float, float]],
    layers: Sequence[str] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Images, and per attention layer what it attended to from some output points.

    Shape: z (B, latent), labels (B,) -> images (B, 3, H, W), name -> (B, points, H, W) in 0..1

    A point (x, y) in 0..1 of the image stands for the pixel of the layer's map that contains it;
    the map is that pixel's row of the attention weights. Layers without such rows (gates, say) are
    left out.

    Args:
        layers: names of the layers; all if none are given.
    """
    with torch.no_grad(), record_attention(generator, layers) as weights:
        images = generator(z, labels)
    height, width = images.shape[2:]
    maps = {}
    for name, rows in weights.items():
        queries, keys = (isqrt(length) for length in rows.shape[2:4])
        square = len(rows) == len(z) and rows.shape[2:] == (queries**2, keys**2)
        if not square or (rows.float().sum(-1) - 1).abs().max() > 0.05:  # a gate's do not sum to 1
            continue
        pixels = [
            min(int(y * queries), queries - 1) * queries + min(int(x * queries), queries - 1)
            for x, y in points
        ]
        chosen = rows.float().mean(1)[:, pixels].unflatten(2, (keys, keys))
        smooth = F.interpolate(chosen, (height, width), mode="bilinear")
        maps[name] = scaled(smooth.flatten(0, 1)).unflatten(0, (len(z), len(points)))
    return images, maps


def attention_sheet(
    generator: Generator,
    z: Tensor,
    labels: Tensor,
    points: Sequence[tuple[float, float]],
    titles: Sequence[str] = (),
    layers: Sequence[str] | None = None,
) -> np.ndarray | None:
    """Draw generated images, and below each what the generator attended to from each point.

    One row for each layer (of `layers`, if any are named) and point, which is marked green. None if
    no layer attends.
    """
    images, maps = attention_from_points(generator, z, labels, points, layers)
    if not maps:
        return None
    plain = torch.from_numpy(enlarged(to_pixel_arrays(images))).float() / 255
    rows, names = [plain], ["generated"]
    for name, of_layer in maps.items():
        for number, point in enumerate(points):
            covered = overlay(images, of_layer[:, number])
            covered = torch.from_numpy(enlarged(covered.numpy()))
            rows.append(marked(covered, point))
            layer = name.removesuffix(".attention")
            names.append(f"{layer}\nfrom {point[0]:g}, {point[1]:g}")
    return sheet(rows, [list(titles), *[[] for _ in rows[1:]]], names)


@checked
class SampleGrid(Callback):
    """Logs `val/samples`, a row of images per class, once per validation from rank zero.

    The noise is the same in every validation, so that the images can be compared. They go to every
    logger that has `log_image`: W&B, and the run folder's pictures/.

    Args:
        columns: images per class.
    """

    def __init__(self, columns: Count = 8):
        self.columns = columns

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        loggers = image_loggers(trainer)
        if trainer.sanity_checking or not trainer.is_global_zero or not loggers:
            return
        names = row_names(module, getattr(data_of(trainer), "class_names", ()))
        with torch.no_grad():
            page = grid(sample_rows(module, self.columns), self.columns, names)
        page = with_legend(page, LEGEND if names else LEGEND[1:])
        for logger in loggers:
            logger.log_image("val/samples", [page])


def sample_rows(module: Any, columns: int) -> Tensor:
    """Images (rows · columns, 3, H, W) of a SAGAN's fixed noise, a row per class."""
    labels = shown_classes(module.average.num_classes).repeat_interleave(columns)
    return module.draw(torch.arange(len(labels)), labels.to(module.device))


def row_names(module: Any, class_names: Sequence[str]) -> list[str]:
    """Names of the classes that the rows of `sample_rows` show; none without classes."""
    num_classes = module.average.num_classes
    if not num_classes or len(class_names) != num_classes:
        return []
    return [str(class_names[label]) for label in shown_classes(num_classes).tolist()]
