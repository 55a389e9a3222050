"""Where a detector looks, for `attention-vision explain`."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

import numpy as np
import torch
from torch import Tensor

from attention_vision.detection.attention_rcnn import AttentionBoxHead, AttentionRCNN
from attention_vision.detection.data import Target, collate
from attention_vision.detection.detr import DETR
from attention_vision.detection.figures import (
    attention_sheet,
    detection_rows,
    extent,
    name,
    proposal_sheet,
)
from attention_vision.detection.module import Detector
from attention_vision.layer_maps import Layer, Page, Wish, last_of_each, looked, panels, stacked

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
        if layer.name == POOL and isinstance(network, AttentionRCNN):
            return replace(layer, kind="the class of each detection, inside its proposal")
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
        network, image, mask = self.module.network, images[0], padding_mask[0]
        cross = [one for one in names if one.endswith(".cross_attention")]

        def forward() -> np.ndarray | None:
            if isinstance(network, DETR):
                return attention_sheet(
                    network, image, mask, self.names, SHOWN, cross, self.wish.heads
                )
            if POOL in names and isinstance(network.roi_heads.box_head, AttentionBoxHead):
                return proposal_sheet(network, image, mask, self.names, SHOWN)
            return self.detected(images, padding_mask)

        top, layers = looked(network, forward, images, names, self.wish.point)
        layers = {one: self.of_objects(layers[one], images) for one in names}
        with torch.no_grad():
            (found,) = self.module(images, padding_mask)
        arrays = {key: found[key].float().cpu().numpy() for key in ("boxes", "scores", "labels")}
        for layer in layers.values():
            arrays |= layer.arrays()
        others = [one for one in layers.values() if one.shown and not of_detections(one)]
        height, width = extent(mask)
        pictures = [] if top is None else [top]
        if others or top is None:
            title = "" if len(found["scores"]) else "nothing detected"
            pictures.append(panels(image[:, :height, :width], title, others, self.wish.heads))
        best = found["scores"].argsort(descending=True, stable=True)[:SHOWN]
        words = [
            f"{name(self.names, int(found['labels'][place]))} {found['scores'][place]:.2f}"
            for place in best
        ]
        return Page(stacked(pictures), arrays, ", ".join(words) or "nothing detected")

    def detected(self, images: Tensor, padding_mask: Tensor) -> np.ndarray | None:
        """The best detections without maps; None where there are none."""
        (found,) = self.module(images, padding_mask)
        labels, scores = (found[key][:SHOWN].tolist() for key in ("labels", "scores"))
        if not labels:
            return None
        height, width = extent(padding_mask[0])
        size = torch.tensor([width, height, width, height])
        boxes = (found["boxes"][:SHOWN].float().cpu() * size).tolist()
        titles = [
            f"{name(self.names, label)} {score:.2f}"
            for label, score in zip(labels, scores, strict=True)
        ]
        return detection_rows(images[0, :, :height, :width], boxes, labels, titles, {})


def of_detections(layer: Layer) -> bool:
    """Whether it is drawn below the detections."""
    return layer.name == POOL or layer.name.endswith(".cross_attention")
