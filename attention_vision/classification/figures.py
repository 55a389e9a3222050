"""Pictures of classification: where a network looks, and a panel of validation images."""

from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from attention_vision.attention import MultiHeadAttention, record_attention
from attention_vision.backbones import Backbone, ClassToken, ViT


def look(network: Backbone, images: Tensor) -> tuple[Tensor, str]:
    """Where a network looks: maps (B, H, W) in 0..1 at the images' size, and what they are.

    A ViT that reads a class token shows that token's attention; any other network, whose attention
    is a gate or none, shows Grad-CAM.
    """
    if isinstance(network, ViT) and isinstance(network.pool, ClassToken):
        last = network.blocks[-1].attention
        if isinstance(last, MultiHeadAttention):
            return class_attention(network, images), "class token's attention"
    return grad_cam(network, images), "Grad-CAM"


def class_attention(network: ViT, images: Tensor) -> Tensor:
    """Attention of the class token to the patches in the last block, mean of the heads.

    Shape: images (B, 3, H, W) -> (B, H, W), each map scaled to 0..1
    """
    layer = f"blocks.{len(network.blocks) - 1}.attention"
    with torch.no_grad(), record_attention(network, [layer]) as maps:
        network(images)
    weights = maps[layer][:, :, 0, 1:].mean(1)  # (B, N)
    grid = tuple(length // network.strides[0] for length in images.shape[2:])
    return scaled(weights.unflatten(1, grid), images.shape[2:])


def grad_cam(network: Backbone, images: Tensor) -> Tensor:
    """Grad-CAM of the likeliest class at the last feature map (Selvaraju et al., arXiv 1610.02391).

    Shape: images (B, 3, H, W) -> (B, H, W), each map scaled to 0..1

    Channels weighted by the mean gradient of the logit, negative sums cut off. What the network
    multiplies its maps with, such as SE's or CBAM's gates, is part of the map.
    """
    with torch.inference_mode(False), torch.enable_grad():
        images = images.clone().requires_grad_()  # a tensor of inference mode has no gradient
        kept: list[Tensor] = []

        def keep(feature: Tensor) -> Tensor:
            kept.append(feature)
            return feature

        handle = network.stages[-1].register_forward_hook(lambda *call: keep(call[-1]))
        try:
            logits = network(images)
        finally:
            handle.remove()
        (gradient,) = torch.autograd.grad(logits.amax(1).sum(), kept)
    weight = gradient.mean((2, 3), keepdim=True)
    return scaled((weight * kept[0]).sum(1).relu().detach(), images.shape[2:])


def scaled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w) -> (B, H, W), resized, the least of each map at 0 and the largest at 1."""
    maps = F.interpolate(maps[:, None].float(), size, mode="bilinear")[:, 0]
    least, most = (limit(maps.flatten(1), 1)[:, None, None] for limit in (torch.amin, torch.amax))
    return (maps - least) / (most - least).clamp_min(1e-12)


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


def sheet(rows: list[Tensor], titles: list[list[str]], names: list[str]) -> np.ndarray:
    """Rows of pictures (n, H, W, 3) in 0..1 with a title over each, drawn into one (H, W, 3) uint8.

    Args:
        titles: per row, one title a picture, or none at all.
        names: what each row shows, written beside it.
    """
    columns = len(rows[0])
    figure = Figure(figsize=(1.3 * columns + 0.4, 1.5 * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, pictures in enumerate(rows):
        axes[row][0].set_ylabel(names[row], fontsize=8)
        for column, picture in enumerate(pictures):
            axis = axes[row][column]
            axis.imshow(picture.numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if titles[row]:
                axis.set_title(titles[row][column], fontsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class ImagePanel(Callback):
    """Logs `val/panel` once per validation: images, predictions, and where the network looks.

    It goes to every logger that has `log_image`: W&B, and the run folder's pictures/.

    Args:
        images: how many, from the first batch of rank zero.
    """

    def __init__(self, images: int = 8):
        self.images = images

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: tuple[Tensor, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        loggers = [logger for logger in trainer.loggers if hasattr(logger, "log_image")]
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero or not loggers:
            return
        picture = panel(
            module.network, *(part[: self.images] for part in batch), self.names(trainer)
        )
        for logger in loggers:
            logger.log_image("val/panel", [picture])

    def names(self, trainer: Trainer) -> list[str]:
        return list(getattr(trainer.datamodule, "class_names", ()))


def panel(network: Backbone, images: Tensor, labels: Tensor, names: list[str]) -> np.ndarray:
    """Images with their label over where the network looks with its prediction, (H, W, 3) uint8."""

    def name(number: int) -> str:
        return names[number] if names else str(number)

    with torch.no_grad():
        chances, classes = network(images).softmax(1).max(1)
    maps, kind = look(network, images)
    labelled = [name(label) for label in labels.tolist()]
    predicted = [
        f"{name(number)} {chance:.0%}{'' if number == label else ' ✗'}"
        for number, chance, label in zip(
            classes.tolist(), chances.tolist(), labels.tolist(), strict=True
        )
    ]
    return sheet([rgb(images), overlay(images, maps)], [labelled, predicted], ["images", kind])
