"""Pictures of image-to-image work: input, result, target, and the gates of skip connections."""

from collections.abc import Sequence
from typing import Any, cast

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor

from attention_vision.attention import record_attention
from attention_vision.data.samples import evenly_spaced
from attention_vision.generation.image_to_image.unet import AttentionUNet
from attention_vision.ranges import Count, checked
from attention_vision.training.logging import image_loggers
from attention_vision.visualization.drawing import (
    LEAST,
    Color,
    overlay,
    scaled,
    sheet,
    with_legend,
)

MOST, MOST_ALONE = 256, 512  # pixels of a picture's width beside others, and of a single image's
COLORS = torch.tensor([matplotlib.colormaps["tab10"](number)[:3] for number in range(10)])
IGNORED = 0.5  # gray of what is not a class


def gate_maps(
    network: AttentionUNet, inputs: Tensor, layers: Sequence[str] = ("gates",)
) -> tuple[Tensor, dict[int, Tensor]]:
    """The output, and the gate of each gated level.

    Shape: inputs (B, C, *size) -> output, level -> (B, *size) in 0..1

    Of a level with several gates it is their mean. Attention that is not a map of gates, such as
    softmax rows or one number per channel, is left out, and so are layers not in `layers`.
    """
    with torch.no_grad(), record_attention(network, layers) as maps:
        output = network(inputs)
    size = inputs.shape[2:]
    padded = [length + network.missing(length) for length in size]
    levels: dict[int, list[Tensor]] = {}
    for name, weights in maps.items():
        level = int(name.split(".")[1]) + 1
        grid = tuple(length // 2 ** (level - 1) for length in padded)
        if weights.shape == (len(inputs), 1, *grid):
            levels.setdefault(level, []).append(weights.float())
    mode = "bilinear" if inputs.ndim == 4 else "trilinear"
    opened = {
        level: F.interpolate(sum(gates[1:], gates[0]) / len(gates), padded, mode=mode)[:, 0]
        for level, gates in sorted(levels.items())
    }
    return output, {level: gate[(..., *map(slice, size))] for level, gate in opened.items()}


def middle(x: Tensor, spatial: int) -> Tensor:
    """Middle slice of a volume along its depth; an image as it is."""
    return x.select(-3, x.shape[-3] // 2) if spatial == 3 else x


def class_colors(num_classes: int) -> Tensor:
    """RGB in 0..1 (num_classes, 3): the background black, a single other class white."""
    if num_classes <= 2:
        return torch.tensor([[0.0] * 3, [1.0] * 3])
    return torch.cat([torch.zeros(1, 3), COLORS[torch.arange(num_classes - 1) % len(COLORS)]])


def to_pictures(x: Tensor, num_classes: int = 0) -> Tensor:
    """Pictures (B, H, W, 3) in 0..1 of images (B, C, H, W) in 0..1 or class numbers (B, H, W).

    A fourth channel, of holes, is not shown. Classes have the `class_colors`, all else is gray.
    """
    x = x.detach().cpu()
    if x.ndim == 4:
        images = x[:, :3] if x.shape[1] >= 3 else x[:, :1].expand(-1, 3, -1, -1)
        return images.float().clamp(0, 1).movedim(1, -1)
    colors = class_colors(num_classes)
    known = (x >= 0) & (x < len(colors))
    return torch.where(known[..., None], colors[x.long() * known], IGNORED)


def panel(
    network: AttentionUNet,
    objective: Any,
    inputs: Tensor,
    targets: Tensor | None = None,
    layers: Sequence[str] = ("gates",),
    class_names: Sequence[str] = (),
) -> np.ndarray:
    """Draw inputs, results, targets and gates, a column per image, as (height, width, 3) uint8.

    Of volumes the middle slices. Each gate's map is scaled to its own range, which is its title.
    The legend has the colors of the classes, where the results are masks.
    """
    spatial = inputs.ndim - 2
    output, gates = gate_maps(network, inputs, layers)
    images = middle(inputs, spatial)
    rows, titles, names = [to_pictures(images)], [[]], ["input"]
    shown = [("result", objective.result(output))]
    shown += [("target", targets)] if targets is not None else []
    for name, x in shown:
        rows.append(to_pictures(middle(x, spatial), network.num_classes))
        titles.append([])
        names.append(name)
    under = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    for level, gate in gates.items():
        maps = middle(gate, spatial)
        rows.append(overlay(under, scaled(maps)))
        titles.append([f"{x.min():.2f}..{x.max():.2f}" for x in maps])
        names.append(f"gate {level}")
    most = MOST_ALONE if len(inputs) == 1 else MOST
    inches = min(max(inputs.shape[-1], LEAST), most) / 100
    page = sheet([shrunk(row, most) for row in rows], titles, names, inches)
    legend: list[tuple[Color | None, str]] = []
    if shown[0][1].ndim == spatial + 1:
        colors = (class_colors(network.num_classes) * 255).round().int().tolist()
        legend += [
            (cast(Color, tuple(color)), str(name))
            for color, name in zip(colors, class_names, strict=False)
        ]
    if gates:
        legend.append((None, "gates: bright is open, between the numbers above"))
    return with_legend(page, legend) if legend else page


def shrunk(pictures: Tensor, most: int) -> Tensor:
    """Shrink pictures (B, H, W, 3) that have more pixels than are shown."""
    factor = most / max(pictures.shape[1:3])
    if factor >= 1:
        return pictures
    size = [max(1, round(length * factor)) for length in pictures.shape[1:3]]
    small = F.interpolate(pictures.movedim(-1, 1), size, mode="bilinear", antialias=True)
    return small.movedim(1, -1).clamp(0, 1)


@checked
class ImageToImagePanel(Callback):
    """Logs `val/panel` once per validation, to every logger that has `log_image`.

    Args:
        images: number of images, evenly spaced in the validation set; if they differ in size, only
            those of the first one's size.
    """

    def __init__(self, images: Count = 6):
        self.images = images

    def on_validation_batch_end(
        self,
        trainer: Any,
        module: Any,
        outputs: Any,
        batch: tuple[Tensor, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        loggers = image_loggers(trainer)
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero or not loggers:
            return
        picture = panel(
            module.network,
            module.objective,
            *self.select(trainer, batch),
            class_names=getattr(trainer.datamodule, "class_names", ()),
        )
        for logger in loggers:
            logger.log_image("val/panel", [picture])

    def select(self, trainer: Any, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Inputs and targets, of the first batch if the data has no `val_images`."""
        source = getattr(trainer.datamodule, "val_images", None)
        if source is None:
            return batch[0][: self.images], batch[1][: self.images]
        samples = evenly_spaced(source, self.images)
        same = [sample for sample in samples if sample[0].shape == samples[0][0].shape]
        inputs, targets = zip(*same, strict=True)
        return torch.stack(inputs).to(batch[0].device), torch.stack(targets).to(batch[1].device)
