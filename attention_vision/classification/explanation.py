"""Where a classifier looks, for `attention-vision explain`: its layers, rollout, Grad-CAM."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attention_vision.attention import MultiHeadAttention
from attention_vision.attention.token_grid import grid_of
from attention_vision.backbones import CCT, Backbone, ClassToken, DistilledToken, ViT
from attention_vision.classification.figures import grad_cam
from attention_vision.classification.module import Classifier
from attention_vision.visualization.layer_figures import Page, Wish, panels
from attention_vision.visualization.layers import Layer, last_of_each, looked
from attention_vision.visualization.maps import rollout

ROLLOUT, GRAD_CAM = "rollout", "grad_cam"
TOP = 3  # predictions that are written


class ClassifierExplanation:
    """An image, its likeliest classes, and the maps of layers over it.

    Besides the attention layers there are `rollout`, of a ViT or CCT whose blocks all attend to the
    whole image, and `grad_cam`.

    Args:
        names: of the classes; without any, their numbers are written.
    """

    def __init__(self, module: Classifier, names: Sequence[str], wish: Wish):
        self.module, self.names, self.wish = module, names, wish

    def layers(self, sample: tuple[Tensor, object]) -> dict[str, Layer]:
        return self.look(sample[0][None], None)[1]

    def usual(self, layers: dict[str, Layer]) -> list[str]:
        """The last layer of each mechanism, and rollout; Grad-CAM where no other map is."""
        attention = {name: one for name, one in layers.items() if name != GRAD_CAM}
        maps = any(one.maps is not None for one in attention.values())
        return [*last_of_each(attention), *([] if maps or not attention else [GRAD_CAM])]

    def page(self, sample: tuple[Tensor, object], names: list[str]) -> Page:
        image, known = sample
        probabilities, layers = self.look(image[None], names)
        chances, classes = probabilities[0].topk(min(TOP, len(probabilities[0])))
        words = [
            f"{self.name(number)} {chance:.0%}"
            for number, chance in zip(classes.tolist(), chances.tolist(), strict=True)
        ]
        truth = "" if isinstance(known, str) else f" (is {self.name(int(known))})"
        picture = panels(
            image, f"{words[0]}{truth}\n{', '.join(words[1:])}", list(layers.values()),
            self.wish.heads,
        )  # fmt: skip
        arrays = {"probabilities": probabilities[0].cpu().numpy()}
        for layer in layers.values():
            arrays |= layer.arrays()
        return Page(picture, arrays, ", ".join(words) + truth)

    def name(self, number: int) -> str:
        return self.names[number] if self.names else str(number)

    def look(self, images: Tensor, names: Sequence[str] | None) -> tuple[Tensor, dict[str, Layer]]:
        """Probabilities (B, num_classes), and the named layers of a forward pass; None is all."""
        network, wanted = self.module.network, names
        blocks = global_blocks(network)
        if names is not None:
            wanted = [name for name in names if name not in (ROLLOUT, GRAD_CAM)]
            if ROLLOUT in names:
                wanted += [*blocks, "pool"]
        logits, layers = looked(
            network, lambda: self.module(images), images, wanted, self.wish.point
        )
        if blocks and (names is None or ROLLOUT in names):
            layers[ROLLOUT] = rollout_layer(network, layers, images)
        if names is None or GRAD_CAM in names:
            maps = grad_cam(network, images)[:, None]
            layers[GRAD_CAM] = Layer(GRAD_CAM, "of the likeliest class", maps, maps)
        if names is not None:
            layers = {name: layers[name] for name in names}
        return logits.softmax(1), layers


def global_blocks(network: Backbone) -> list[str]:
    """Names of the attentions of a ViT or CCT, if all of them are to the whole image; else none."""
    if not isinstance(network, ViT | CCT):
        return []
    if not all(isinstance(block.attention, MultiHeadAttention) for block in network.blocks):
        return []
    return [f"blocks.{place}.attention" for place in range(len(network.blocks))]


def rollout_layer(network: Backbone, layers: dict[str, Layer], images: Tensor) -> Layer:
    """Rollout through all blocks, read as the network reads its last tokens.

    That is: at the class token (and the distillation token), by the weights of a pool that attends,
    or at the mean of all tokens.
    """
    blocks = global_blocks(network)
    through = rollout([layers[name].weights for name in blocks])  # (B, N, N)
    if isinstance(network.pool, DistilledToken):
        row = through[:, :2].mean(1)
    elif isinstance(network.pool, ClassToken):
        row = through[:, 0]
    elif "pool" in layers:
        pooled = layers["pool"].weights.float().mean((1, 2))
        row = torch.einsum("bq,bqk->bk", pooled, through)
    else:
        row = through.mean(1)
    places = row[:, network.num_prefix_tokens :]
    maps = places.unflatten(1, grid_of(places.shape[1], tuple(images.shape[2:])))[:, None]
    return Layer(ROLLOUT, f"of {len(blocks)} layers", maps, maps)
