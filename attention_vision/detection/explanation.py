"""Where a detector looks, for `attention-vision explain`."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

import numpy as np
import torch
from torch import Tensor

from attention_vision.detection.attention_figures import (
    attention_sheet,
    proposal_attention,
    proposal_sheet,
)
from attention_vision.detection.data import Target, collate
from attention_vision.detection.detr import DETR
from attention_vision.detection.figures import caption
from attention_vision.detection.module import Detector
from attention_vision.visualization.layer_figures import Page, Wish, panels, stacked
from attention_vision.visualization.layers import Layer, last_of_each, looked

POOL = "roi_heads.box_head.pool"
SHOWN = 4  # detections of an image, the best


class DetectorExplanation:
    """The best detections of an image, what each attended to, and maps of other layers.

    Of DETR each detection has the cross-attention of its query, of Attention R-CNN what its class
    attended to inside its proposal.

    Args:
        names: of the labels; without any, their numbers are written.
    """

    def __init__(self, module: Detector, names: Sequence[str], wish: Wish):
        self.module, self.names, self.wish = module, names, wish

    def layers(self, sample: tuple[Tensor, Target]) -> dict[str, Layer]:
        images, padding_mask, _ = collate([sample])
        network, point = self.module.network, self.wish.point
        _, layers = looked(network, lambda: network(images, padding_mask), images, None, point)
        return {name: self.of_objects(layer, images) for name, layer in layers.items()}

    def of_objects(self, layer: Layer, images: Tensor) -> Layer:
        """A layer as it is, or, where its queries are objects, with maps for each of them."""
        network = self.module.network
        if layer.name == POOL:
            return replace(layer, kind="the class of each detection, in its proposal")
        if not isinstance(network, DETR) or ".decoder." not in layer.name:
            return layer
        if layer.name.endswith(".self_attention"):
            return replace(layer, kind="queries among themselves: no map over the image", maps=None)
        stride = network.backbone.strides[-1]
        grid = [ceil(length / stride) for length in images.shape[2:]]
        maps = layer.weights.float().mean(1).unflatten(2, grid)  # (1, Q, h, w)
        return replace(layer, kind="the query of each detection", maps=maps)

    def usual(self, layers: dict[str, Layer]) -> list[str]:
        """What the detections attend to, in the last layer; of others the last of each kind."""
        objects = [name for name, layer in layers.items() if of_detections(layer)]
        return objects[-1:] or last_of_each(layers)

    def page(self, sample: tuple[Tensor, Target], names: list[str]) -> Page:
        images, padding_mask, _ = collate([sample])
        (top, found, arrays), layers = looked(
            self.module.network,
            lambda: self.detections(images, padding_mask, names),
            images,
            names,
            self.wish.point,
        )
        layers = {one: self.of_objects(layers[one], images) for one in names}
        arrays |= {key: found[key].float().cpu().numpy() for key in ("boxes", "scores", "labels")}
        for layer in layers.values():
            arrays |= layer.arrays()
        pictures, line = [top], "nothing detected"
        if others := [one for one in layers.values() if one.shown and not of_detections(one)]:
            pictures.append(panels(images[0], "", others, self.wish.heads))
        best = found["scores"].argsort(descending=True, stable=True)[:SHOWN]
        if len(best):
            line = ", ".join(
                caption(self.names, int(found["labels"][index]), float(found["scores"][index]))
                for index in best
            )
        return Page(stacked(pictures), arrays, line)

    def detections(
        self, images: Tensor, padding_mask: Tensor, names: Sequence[str]
    ) -> tuple[np.ndarray, dict[str, Tensor], dict[str, np.ndarray]]:
        """Their picture, they themselves, and arrays of what they attended to."""
        network, image, mask = self.module.network, images[0], padding_mask[0]
        if POOL in names:
            found, proposals, maps = proposal_attention(network, image, mask)
            picture = proposal_sheet(image, found, proposals, maps, self.names, SHOWN)
            return picture, found, {"proposals": proposals.numpy(), f"{POOL}/map": maps.numpy()}
        (found,) = self.module(images, padding_mask)
        if isinstance(network, DETR):
            cross = [one for one in names if one.endswith(".cross_attention")]
            heads = self.wish.heads
            return attention_sheet(network, image, mask, self.names, SHOWN, cross, heads), found, {}
        none = torch.empty(0)
        return proposal_sheet(image, found, none, none, self.names, SHOWN), found, {}


def of_detections(layer: Layer) -> bool:
    """Whether it is drawn below the detections."""
    return layer.name == POOL or layer.name.endswith(".cross_attention")
