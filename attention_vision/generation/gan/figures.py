"""Pictures of generated images: grids, sheets of classes, ways between images, attention."""

from collections.abc import Sequence
from math import isqrt

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from attention_vision.attention import record_attention
from attention_vision.generation.gan.sagan import Generator
from attention_vision.visualization.drawing import marked, overlay, scaled, sheet

EDGE = 2  # pixels of white between the images of a grid
LEAST = 64  # an image smaller than this is enlarged by a whole factor


def grid(images: Tensor, columns: int) -> np.ndarray:
    """(B, 3, H, W) in -1..1, row by row -> (height, width, 3) uint8."""
    pixels = enlarged(to_bytes(images))
    count, high, wide = pixels.shape[:3]
    rows = -(-count // columns)
    page = np.full((rows * (high + EDGE) + EDGE, columns * (wide + EDGE) + EDGE, 3), 255, np.uint8)
    for place, one in enumerate(pixels):
        top = EDGE + place // columns * (high + EDGE)
        left = EDGE + place % columns * (wide + EDGE)
        page[top : top + high, left : left + wide] = one
    return page


def to_bytes(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in -1..1 -> (B, H, W, 3) uint8."""
    pixels = (images.float().clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().movedim(1, -1).cpu().numpy()


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """(B, H, W, 3), small images by a whole factor, so that pixels stay squares."""
    factor = max(1, -(-LEAST // pixels.shape[1]))
    return pixels.repeat(factor, 1).repeat(factor, 2)


def shown_classes(num_classes: int, most: int = 10) -> Tensor:
    """(rows,) classes spread evenly over all; without classes `most` zeros."""
    rows = min(most, num_classes) if num_classes else most
    return torch.arange(rows) * num_classes // rows


def between(generator: Generator, ends: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Images on the arc between two points of noise, one class a row.

    Shape: ends (2, n, latent), labels (n,) -> (n · steps, 3, H, W)

    The arc, not the line: between normal vectors the line runs through lengths that the generator
    never saw.
    """
    first, last = ends
    cosine = F.cosine_similarity(first, last)[:, None].clamp(-0.9999, 0.9999)
    angle = cosine.acos()
    shares = torch.linspace(0, 1, steps, device=ends.device)
    path = [
        (((1 - share) * angle).sin() * first + (share * angle).sin() * last) / angle.sin()
        for share in shares
    ]
    z = torch.stack(path, 1)  # (n, steps, latent)
    return generator(z.flatten(0, 1), labels.repeat_interleave(steps))


def looks(
    generator: Generator,
    z: Tensor,
    labels: Tensor,
    points: Sequence[tuple[float, float]],
    layers: Sequence[str] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Images, and per attention layer where each looked from some output points.

    Shape: z (B, latent), labels (B,) -> images (B, 3, H, W), name -> (B, points, H, W) in 0..1

    A point (x, y) in 0..1 of the image stands for the pixel of the layer's map that it lies in;
    its row of the attention weights is what is shown. Layers without such rows (gates, say) are
    left out; `layers` names those that are looked at, all where none are given.
    """
    with torch.no_grad(), record_attention(generator, layers) as weights:
        images = generator(z, labels)
    high, wide = images.shape[2:]
    maps = {}
    for name, rows in weights.items():
        queries, keys = (isqrt(length) for length in rows.shape[2:4])
        square = len(rows) == len(z) and rows.shape[2:] == (queries**2, keys**2)
        if not square or (rows.float().sum(-1) - 1).abs().max() > 0.05:  # a gate's do not sum to 1
            continue
        places = [
            min(int(y * queries), queries - 1) * queries + min(int(x * queries), queries - 1)
            for x, y in points
        ]
        chosen = rows.float().mean(1)[:, places].unflatten(2, (keys, keys))
        smooth = F.interpolate(chosen, (high, wide), mode="bilinear")
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
    """Generated images, and below each where the generator looked from each point, marked green.

    One row for each layer (of those that are named, if any are) and point; None where no layer
    attends.
    """
    images, maps = looks(generator, z, labels, points, layers)
    if not maps:
        return None
    plain = torch.from_numpy(enlarged(to_bytes(images))).float() / 255
    rows, names = [plain], ["generated"]
    for name, of_layer in maps.items():
        for place, point in enumerate(points):
            covered = overlay(images, of_layer[:, place])
            covered = torch.from_numpy(enlarged(covered.numpy()))
            rows.append(marked(covered, point))
            side = name.removesuffix(".attention")
            names.append(f"{side}\nfrom {point[0]:g}, {point[1]:g}")
    return sheet(rows, [list(titles), *[[] for _ in rows[1:]]], names)


class SampleGrid(Callback):
    """Logs `val/samples`, a row of images per class, once per validation from rank zero.

    The noise is the same in every validation, so that one sees the images change. Goes to every
    logger that has `log_image`: W&B, and the run folder's pictures/.

    Args:
        columns: images per class.
    """

    def __init__(self, columns: int = 8):
        self.columns = columns

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if hasattr(logger, "log_image")]
        if trainer.sanity_checking or not trainer.is_global_zero or not loggers:
            return
        with torch.no_grad():
            page = grid(sample_rows(module, self.columns), self.columns)
        for logger in loggers:
            logger.log_image("val/samples", [page])


def sample_rows(module: LightningModule, columns: int) -> Tensor:
    """Images (rows · columns, 3, H, W) of the module's fixed noise, a row per class."""
    labels = shown_classes(module.average.num_classes).repeat_interleave(columns)
    return module.draw(torch.arange(len(labels)), labels.to(module.device))
