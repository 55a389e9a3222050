"""Attention of a detector, for `attention-vision explain`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from attention_vision.data.samples import titled_samples
from attention_vision.detection.attention_figures import (
    attention_sheet,
    proposal_attention,
    proposal_sheet,
)
from attention_vision.detection.data import Target, collate
from attention_vision.detection.detr import DETR
from attention_vision.detection.figures import caption
from attention_vision.detection.module import Detector
from attention_vision.visualization.explainer import DrawOptions, ExplainedImage
from attention_vision.visualization.layer_figures import layer_sheet, stack_pictures
from attention_vision.visualization.layers import Layer, last_of_each, record_layers

POOL = "roi_heads.box_head.pool"
SHOWN = 4  # best detections of an image


class DetectorExplainer:
    """Draws the best detections of an image, what each attended to, and maps of other layers.

    A detection of DETR has the cross-attention of its query, one of Attention R-CNN the attention
    of its class inside its proposal.

    Args:
        names: of the labels; without any, their numbers are written.
    """

    def __init__(self, module: Detector, names: Sequence[str], options: DrawOptions):
        self.module, self.names, self.options = module, names, options

    def samples(self, data: LightningDataModule, images: str | None, count: int) -> dict[str, Any]:
        return titled_samples(data, images, count)

    def layers(self, sample: tuple[Tensor, Target]) -> dict[str, Layer]:
        images, padding_mask, _ = collate([sample])
        network, point = self.module.network, self.options.point
        _, layers = record_layers(
            network, lambda: network(images, padding_mask), images, None, point
        )
        return {name: self.of_objects(layer, images) for name, layer in layers.items()}

    def of_objects(self, layer: Layer, images: Tensor) -> Layer:
        """A layer as it is, or, if its queries are objects, with maps for each of them."""
        network = self.module.network
        if layer.name == POOL:
            title = "the class of each detection, in its proposal"
            return replace(layer, kind="objects", title=title)
        if not isinstance(network, DETR) or ".decoder." not in layer.name:
            return layer
        if layer.name.endswith(".self_attention"):
            title = "queries among themselves: no map over the image"
            return replace(layer, kind="none", title=title, maps=None)
        grid = network.backbone.grid(*images.shape[2:])
        maps = layer.weights.float().mean(1).unflatten(2, grid)  # (1, Q, h, w)
        return replace(layer, kind="objects", title="the query of each detection", maps=maps)

    def default_layers(self, layers: dict[str, Layer]) -> list[str]:
        """The last layer that the detections attend by, or the last layer of each mechanism."""
        objects = [name for name, layer in layers.items() if layer.kind == "objects"]
        return objects[-1:] or last_of_each(layers)

    def explain(self, sample: tuple[Tensor, Target], names: list[str]) -> ExplainedImage:
        images, padding_mask, _ = collate([sample])
        (top, found, arrays), layers = record_layers(
            self.module.network,
            lambda: self.detections(images, padding_mask, names),
            images,
            names,
            self.options.point,
        )
        layers = {one: self.of_objects(layers[one], images) for one in names}
        arrays |= {key: found[key].float().cpu().numpy() for key in ("boxes", "scores", "labels")}
        for layer in layers.values():
            arrays |= layer.arrays()
        pictures, line = [top], "nothing detected"
        others = [one for one in layers.values() if one.can_be_drawn and one.kind != "objects"]
        if others:
            pictures.append(layer_sheet(images[0], "", others, self.options.heads))
        best = found["scores"].argsort(descending=True, stable=True)[:SHOWN]
        if len(best):
            line = ", ".join(
                caption(self.names, int(found["labels"][index]), float(found["scores"][index]))
                for index in best
            )
        return ExplainedImage(stack_pictures(pictures), arrays, line)

    def detections(
        self, images: Tensor, padding_mask: Tensor, names: Sequence[str]
    ) -> tuple[np.ndarray, dict[str, Tensor], dict[str, np.ndarray]]:
        """Picture of the detections, the detections, and arrays of what they attended to."""
        network: Any = self.module.network
        image, mask = images[0], padding_mask[0]
        if POOL in names:
            found, proposals, maps = proposal_attention(network, image, mask)
            picture = proposal_sheet(image, found, proposals, maps, self.names, SHOWN)
            return picture, found, {"proposals": proposals.numpy(), f"{POOL}/map": maps.numpy()}
        (found,) = self.module(images, padding_mask)
        if isinstance(network, DETR):
            cross = [one for one in names if one.endswith(".cross_attention")]
            heads = self.options.heads
            return attention_sheet(network, image, mask, self.names, SHOWN, cross, heads), found, {}
        none = torch.empty(0)
        return proposal_sheet(image, found, none, none, self.names, SHOWN), found, {}
