"""What a detector looks at, for `attention-vision explain`: attention, Grad-CAM, objectness."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import LightningDataModule
from torch import Tensor

from attention_vision.data.samples import titled_samples
from attention_vision.detection.attention_figures import (
    attention_sheet,
    cells_on_image,
    class_attention,
    detection_grad_cam,
    detection_proposals,
    finest_stride,
    in_proposals,
    objectness,
    points_of_queries,
    proposal_sheet,
)
from attention_vision.detection.attention_rcnn import AttentionRCNN
from attention_vision.detection.data import Target, collate
from attention_vision.detection.deformable_detr import DeformableDETR
from attention_vision.detection.detr import DETR
from attention_vision.detection.figures import caption, unpadded_size
from attention_vision.detection.module import Detector
from attention_vision.visualization.explainer import DrawOptions, ExplainedImage
from attention_vision.visualization.layer_figures import layer_sheet, stack_pictures
from attention_vision.visualization.layers import Layer, last_of_each, record_layers
from attention_vision.visualization.maps import point_map

POOL, RPN, GRAD_CAM = "roi_heads.box_head.pool", "rpn", "grad_cam"
SHOWN = 4  # best detections of an image
CLASS_OF_EACH = "the class of each detection, in its proposal"


class Explained(NamedTuple):
    """Detections of one image, a picture of them with maps, arrays for an .npz, and layers."""

    found: dict[str, Tensor]
    picture: np.ndarray
    arrays: dict[str, np.ndarray]
    layers: dict[str, Layer]


class DetectorExplainer:
    """Draws the best detections of an image, what each was read from, and maps of other layers.

    A detection of DETR has the cross-attention of its query, one of Deformable DETR the points of
    its query, one of an R-CNN the attention of its class inside its proposal, where the box head
    attends, and Grad-CAM of its class: `grad_cam`. An R-CNN also has the objectness of its
    proposals: `rpn`.

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
        if isinstance(network, AttentionRCNN):
            return self.of_rcnn(network, images, padding_mask, None).layers
        _, layers = record_layers(
            network, lambda: network(images, padding_mask), images, None, point
        )
        return {name: self.of_objects(layer, images) for name, layer in layers.items()}

    def of_objects(self, layer: Layer, images: Tensor) -> Layer:
        """A layer as it is, or, if its queries are objects, with maps for each of them."""
        network = self.module.network
        if layer.name == POOL:
            return replace(layer, kind="objects", title=CLASS_OF_EACH)
        if not isinstance(network, DETR | DeformableDETR) or "decoder." not in layer.name:
            return layer
        if layer.name.endswith(".self_attention"):
            title = "queries among themselves: no map over the image"
            return replace(layer, kind="none", title=title, maps=None)
        if isinstance(network, DeformableDETR) and layer.maps is not None:
            grid = (layer.maps.shape[2], layer.maps.shape[3])
            maps = point_map(layer.weights.transpose(1, 2), grid)  # (1, Q, h, w)
            return replace(
                layer, kind="objects", title="points of each detection's query", maps=maps
            )
        grid = network.backbone.grid(*images.shape[2:])
        maps = layer.weights.float().mean(1).unflatten(2, grid)  # (1, Q, h, w)
        return replace(layer, kind="objects", title="the query of each detection", maps=maps)

    def default_layers(self, layers: dict[str, Layer]) -> list[str]:
        """The last layer that the detections attend by, or the last layer of each mechanism.

        Of an R-CNN also the objectness, and Grad-CAM if the detections do not attend.
        """
        attention = {name: one for name, one in layers.items() if name not in (RPN, GRAD_CAM)}
        objects = [name for name, one in attention.items() if one.kind == "objects"]
        without = [*last_of_each(attention), *([GRAD_CAM] if GRAD_CAM in layers else [])]
        return [*([RPN] if RPN in layers else []), *(objects[-1:] or without)]

    def explain(self, sample: tuple[Tensor, Target], names: list[str]) -> ExplainedImage:
        images, padding_mask, _ = collate([sample])
        network = self.module.network
        if isinstance(network, AttentionRCNN):
            explained = self.of_rcnn(network, images, padding_mask, names)
        else:
            explained = self.of_queries(images, padding_mask, names)
        found, layers = explained.found, [explained.layers[one] for one in names]
        arrays = {key: value.float().cpu().numpy() for key, value in found.items()}
        for layer in layers:
            arrays |= layer.arrays()
        pictures, line = [explained.picture], "nothing detected"
        others = [one for one in layers if one.can_be_drawn and one.kind != "objects"]
        if others:
            pictures.append(layer_sheet(images[0], "", others, self.options.heads))
        best = found["scores"].argsort(descending=True, stable=True)[:SHOWN]
        if len(best):
            line = ", ".join(
                caption(self.names, int(found["labels"][index]), float(found["scores"][index]))
                for index in best
            )
        return ExplainedImage(stack_pictures(pictures), arrays | explained.arrays, line)

    def of_queries(self, images: Tensor, padding_mask: Tensor, names: Sequence[str]) -> Explained:
        """Detections of a detector with queries, and the named layers."""
        network, point = self.module.network, self.options.point
        (found,), layers = record_layers(
            network, lambda: self.module(images, padding_mask), images, names, point
        )
        layers = {one: self.of_objects(layers[one], images) for one in names}
        cross = [one for one in names if one.endswith(".cross_attention")]
        image, mask, heads = images[0], padding_mask[0], self.options.heads
        if isinstance(network, DETR):
            picture = attention_sheet(network, image, mask, self.names, SHOWN, cross, heads)
            return Explained(found, picture, {}, layers)
        points, (height, width) = {}, unpadded_size(mask)
        for name in cross if "queries" in found else ():
            weights, queries = layers[name].weights, found["queries"]
            of_heads = [f"{name}\nhead {head}" for head in range(weights.shape[1])]
            for rows in ([name], of_heads) if heads else ([name],):
                points |= points_of_queries(
                    weights, queries, (image.shape[1], image.shape[2]), rows
                )
        image = image[:, :height, :width]
        picture = proposal_sheet(image, found, {}, self.names, SHOWN, points)
        return Explained(found, picture, {}, layers)

    def of_rcnn(
        self,
        network: AttentionRCNN,
        images: Tensor,
        padding_mask: Tensor,
        names: Sequence[str] | None,
    ) -> Explained:
        """Detections of an R-CNN, and the named layers; None is all."""
        image, mask, size = images[0], padding_mask[0], (images.shape[2], images.shape[3])
        wanted = names if names is None else [one for one in names if one not in (RPN, GRAD_CAM)]
        (found, proposals, source), layers = record_layers(
            network,
            lambda: detection_proposals(network, image, mask),
            images,
            wanted,
            self.options.point,
        )
        layers = {name: self.of_objects(one, images) for name, one in layers.items()}
        rows, arrays = {}, {"proposals": proposals.cpu().numpy()}
        labels = found["labels"]
        if POOL in layers:
            maps = class_attention(layers[POOL].weights, source, labels)
            arrays[f"{POOL}/map"] = maps.cpu().numpy()
            maps = in_proposals(maps[:SHOWN], proposals[:SHOWN], size)
            rows["attention of the class\nin its proposal"] = maps
        if names is None or RPN in names:
            levels = objectness(network, image, mask)[None]  # (1, L, h, w)
            title = f"objectness, the largest of {levels.shape[1]} levels"
            fused = levels.amax(1, keepdim=True)
            one = Layer(RPN, "spatial gate", title, levels, fused, mechanism=type(network.rpn))
            layers[RPN] = one
        if names is None or GRAD_CAM in names:
            maps = detection_grad_cam(network, image, mask, labels[:SHOWN], proposals[:SHOWN])
            layers[GRAD_CAM] = Layer(GRAD_CAM, "objects", CLASS_OF_EACH, maps[None], maps[None])
            maps = cells_on_image(maps, finest_stride(network), size)
            rows["Grad-CAM of the class\nin its proposal"] = maps.cpu()
        picture = proposal_sheet(image, found, rows, self.names, SHOWN)
        return Explained(found, picture, arrays, layers)
