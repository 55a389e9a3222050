"""Saliency maps of classifiers, and a panel of validation images."""

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from attention_vision.attention import AttentionPool, MultiHeadAttention, record_attention
from attention_vision.backbones import CCT, Backbone, ClassToken, ViT
from attention_vision.data.loading import data_of
from attention_vision.data.samples import evenly_spaced
from attention_vision.ranges import Count, checked
from attention_vision.training.logging import image_loggers
from attention_vision.visualization.drawing import overlay, rgb, scaled, sheet, with_legend

LONGEST_NAME = 18  # letters that have room above a picture beside the probability
LEGEND = (
    (None, "above: the true class"),
    (None, "below: the predicted class and its probability, ✗ where it is wrong"),
    (None, "bright: what the network looks at"),
)


def saliency_maps(network: Backbone, images: Tensor) -> tuple[Tensor, str]:
    """Maps (B, H, W) in 0..1 at the images' size, and the name of their kind.

    The weights of a network that pools by attention, the class token's attention of a ViT, and
    Grad-CAM of any other network, whose attention is a gate or none.
    """
    if isinstance(network.pool, AttentionPool):
        return pool_attention(network, images), "attention pool"
    if (
        isinstance(network, ViT | CCT)
        and isinstance(network.pool, ClassToken)
        and isinstance(network.blocks[-1].attention, MultiHeadAttention)
    ):
        return class_attention(network, images), "class token's attention"
    return grad_cam(network, images), "Grad-CAM"


def pool_attention(network: Backbone, images: Tensor) -> Tensor:
    """Weights of the attention pool, mean of its queries. Shape: (B, 3, H, W) -> (B, H, W)"""
    with torch.no_grad(), record_attention(network, ["pool"]) as maps:
        network(images)
    return on_image(maps["pool"].mean((1, 2)), network, images)


def class_attention(network: ViT | CCT, images: Tensor) -> Tensor:
    """Attention of the class token to the patches in the last block, mean of the heads.

    Shape: images (B, 3, H, W) -> (B, H, W), each map scaled to 0..1
    """
    layer = f"blocks.{len(network.blocks) - 1}.attention"
    with torch.no_grad(), record_attention(network, [layer]) as maps:
        network(images)
    return on_image(maps[layer][:, :, 0, network.num_prefix_tokens :].mean(1), network, images)


def grad_cam(network: Backbone, images: Tensor) -> Tensor:
    """Grad-CAM of the likeliest class at the last feature map (Selvaraju et al., arXiv 1610.02391).

    Shape: images (B, 3, H, W) -> (B, H, W), each map scaled to 0..1

    Channels weighted by the mean gradient of the logit, negative sums cut off. What the network
    multiplies its maps with, such as SE's or CBAM's gates, is part of the map.
    """
    with torch.no_grad():
        tokens = network.tokens(images)
    with torch.inference_mode(False), torch.enable_grad():
        tokens = tokens.clone().requires_grad_()  # a copy: inference mode's have no gradient
        logits = network.head(network.pool(tokens))
        (gradient,) = torch.autograd.grad(logits.amax(1).sum(), tokens)
    tokens, gradient = (x.detach()[:, network.num_prefix_tokens :] for x in (tokens, gradient))
    weight = gradient.mean(1, keepdim=True)  # (B, 1, C)
    return on_image((weight * tokens).sum(2).relu(), network, images)


def on_image(weights: Tensor, network: Backbone, images: Tensor) -> Tensor:
    """(B, N) of the network's last map -> (B, H, W), the least of each at 0, the largest at 1.

    A map that is uniform is 0 everywhere.
    """
    height, width = images.shape[2:]
    maps = weights.float().unflatten(1, network.grid(height, width))[:, None]
    maps = F.interpolate(maps, (height, width), mode="bilinear")[:, 0]
    return scaled(maps)


@checked
class ImagePanel(Callback):
    """Logs `val/panel` once per validation: images, predictions, and saliency maps.

    It goes to every logger that has `log_image`: W&B, and the run folder's pictures/.

    Args:
        images: how many, spread evenly over the validation set, which may be sorted by class; of
            the first batch where the data does not say what it validates on.
    """

    def __init__(self, images: Count = 8):
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
        loggers = image_loggers(trainer)
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero or not loggers:
            return
        images, labels = self.chosen(trainer, batch)
        network = cast(Backbone, module.network)
        picture = panel(network, images, labels, self.names(trainer))
        for logger in loggers:
            logger.log_image("val/panel", [picture])

    def chosen(self, trainer: Trainer, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Images and labels, of the batch's types and on its device."""
        source = getattr(data_of(trainer), "val_images", None)
        if source is None:
            images, labels = batch
            return images[: self.images], labels[: self.images]
        images, labels = zip(*evenly_spaced(source, self.images), strict=True)
        return torch.stack(images).to(batch[0]), torch.tensor(labels).to(batch[1])

    def names(self, trainer: Trainer) -> list[str]:
        return list(getattr(data_of(trainer), "class_names", ()))


def panel(network: Backbone, images: Tensor, labels: Tensor, names: list[str]) -> np.ndarray:
    """Images with their labels over saliency maps with predictions, (H, W, 3) uint8.

    The title of a uniform map says so.
    """

    def name(number: int) -> str:
        text = names[number] if names else str(number)
        return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"

    with torch.no_grad():
        chances, classes = network(images).softmax(1).max(1)
    maps, kind = saliency_maps(network, images)
    labelled = [name(label) for label in labels.tolist()]
    predicted = [
        f"{name(number)} {chance:.0%}{'' if number == label else ' ✗'}"
        + ("" if seen.any() else "\n(uniform)")
        for number, chance, label, seen in zip(
            classes.tolist(), chances.tolist(), labels.tolist(), maps, strict=True
        )
    ]
    pictures = [rgb(images).unbind(), overlay(images, maps).unbind()]
    page = sheet(pictures, [labelled, predicted], ["images", kind])
    return with_legend(page, LEGEND)
