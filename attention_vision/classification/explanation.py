"""Attention of a classifier, for `attention-vision explain`: layers, rollout, Grad-CAM."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from attention_vision.attention import MultiHeadAttention
from attention_vision.attention.token_grid import grid_of
from attention_vision.backbones import CCT, Backbone, ClassToken, DistilledToken, ViT
from attention_vision.classification.figures import grad_cam
from attention_vision.classification.module import Classifier
from attention_vision.data.samples import titled_samples
from attention_vision.visualization.explainer import DrawOptions, ExplainedImage
from attention_vision.visualization.layer_figures import layer_sheet
from attention_vision.visualization.layers import Layer, last_of_each, record_layers
from attention_vision.visualization.maps import rollout

ROLLOUT, GRAD_CAM = "rollout", "grad_cam"
TOP = 3  # predictions in the title of a picture

Sample = tuple[Tensor, int | str]  # image (3, H, W), and its label or its file


class ClassifierExplainer:
    """Draws an image, its likeliest classes, and the maps of layers over it.

    Besides the attention layers there are `rollout`, of a ViT or CCT whose blocks all attend to the
    whole image, and `grad_cam`.

    Args:
        names: of the classes; without any, their numbers are written.
    """

    def __init__(self, module: Classifier, names: Sequence[str], options: DrawOptions):
        self.module, self.names, self.options = module, names, options

    def samples(self, data: LightningDataModule, images: str | None, count: int) -> dict[str, Any]:
        return titled_samples(data, images, count)

    def layers(self, sample: Sample) -> dict[str, Layer]:
        return self.predict(sample[0][None], None)[1]

    def default_layers(self, layers: dict[str, Layer]) -> list[str]:
        """The last layer of each mechanism, and rollout; Grad-CAM if there is no other map."""
        attention = {name: one for name, one in layers.items() if name != GRAD_CAM}
        maps = any(one.maps is not None for one in attention.values())
        return [*last_of_each(attention), *([] if maps or not attention else [GRAD_CAM])]

    def explain(self, sample: Sample, names: list[str]) -> ExplainedImage:
        image, label = sample
        probabilities, layers = self.predict(image[None], names)
        chances, classes = probabilities[0].topk(min(TOP, len(probabilities[0])))
        words = [
            f"{self.class_name(number)} {chance:.0%}"
            for number, chance in zip(classes.tolist(), chances.tolist(), strict=True)
        ]
        truth = "" if isinstance(label, str) else f" (is {self.class_name(int(label))})"
        title = f"{words[0]}{truth}\n{', '.join(words[1:])}"
        picture = layer_sheet(image, title, list(layers.values()), self.options.heads)
        arrays = {"probabilities": probabilities[0].cpu().numpy()}
        for layer in layers.values():
            arrays |= layer.arrays()
        return ExplainedImage(picture, arrays, ", ".join(words) + truth)

    def class_name(self, number: int) -> str:
        return self.names[number] if self.names else str(number)

    def predict(
        self, images: Tensor, names: Sequence[str] | None
    ) -> tuple[Tensor, dict[str, Layer]]:
        """Probabilities (B, num_classes), and the named layers of a forward pass; None is all.

        The probabilities are those that `predict` writes, the layers of the images as they are.
        """
        network, wanted = self.module.network, names
        blocks = global_blocks(network)
        if names is not None:
            wanted = [name for name in names if name not in (ROLLOUT, GRAD_CAM)]
            if ROLLOUT in names:
                wanted += [*blocks, "pool"]
        logits, layers = record_layers(
            network, lambda: self.module(images), images, wanted, self.options.point
        )
        if self.module.test_time_flip:
            with torch.no_grad():
                logits = self.module.measured(images)
        if blocks and (names is None or ROLLOUT in names):
            layers[ROLLOUT] = rollout_layer(network, layers, images)
        if names is None or GRAD_CAM in names:
            maps = grad_cam(network, images)[:, None]
            layers[GRAD_CAM] = Layer(GRAD_CAM, "attention", "of the likeliest class", maps, maps)
        if names is not None:
            layers = {name: layers[name] for name in names}
        return logits.softmax(1), layers


def global_blocks(network: Backbone) -> list[str]:
    """Names of the attention layers of a ViT or CCT, if all attend to the whole image; or none."""
    if not isinstance(network, ViT | CCT):
        return []
    if not all(isinstance(block.attention, MultiHeadAttention) for block in network.blocks):
        return []
    return [f"blocks.{number}.attention" for number in range(len(network.blocks))]


def rollout_layer(network: Backbone, layers: dict[str, Layer], images: Tensor) -> Layer:
    """Rollout through all blocks, pooled as the network pools its last tokens.

    That is: at the class token (and the distillation token), by the weights of a pool that attends,
    or at the mean of all tokens.
    """
    blocks = global_blocks(network)
    rows = rollout([layers[name].weights for name in blocks])  # (B, N, N)
    if isinstance(network.pool, DistilledToken):
        row = rows[:, :2].mean(1)
    elif isinstance(network.pool, ClassToken):
        row = rows[:, 0]
    elif "pool" in layers:
        pooled = layers["pool"].weights.float().mean((1, 2))
        row = torch.einsum("bq,bqk->bk", pooled, rows)
    else:
        row = rows.mean(1)
    row = row[:, network.num_prefix_tokens :]
    grid = grid_of(row.shape[1], (images.shape[2], images.shape[3]))
    maps = row.unflatten(1, grid)[:, None]
    return Layer(ROLLOUT, "attention", f"of {len(blocks)} layers", maps, maps)
