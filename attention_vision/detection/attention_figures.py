"""Attention of detectors as pictures: DETR's queries, and the classes of Attention R-CNN."""

from collections.abc import Sequence
from math import ceil, isqrt

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from attention_vision.attention import record_attention
from attention_vision.detection.attention_rcnn import AttentionRCNN
from attention_vision.detection.boxes import to_pixels
from attention_vision.detection.detr import DETR
from attention_vision.detection.figures import (
    READABLE,
    Color,
    caption,
    class_color,
    draw_boxes,
    readable,
    to_pil,
    unpadded_size,
)
from attention_vision.visualization.drawing import overlay, rgb, scaled, sheet


def attention_sheet(
    network: DETR,
    image: Tensor,
    padding_mask: Tensor,
    names: Sequence[str],
    count: int = 4,
    layers: Sequence[str] | None = None,
    heads: bool = False,
) -> np.ndarray:
    """The best-scored detections of an image, and below each the attention of its query.

    Shape: image (3, H, W) normalized, padding_mask (H, W) -> (height, width, 3) uint8

    Args:
        names: of the labels; without any, their numbers are written.
        count: detections, at most.
        layers: names of cross-attentions of the decoder, a row each; the last where none are given.
        heads: a row more for each head.
    """
    outputs, weights = cross_attention(network, image[None], padding_mask[None], layers)
    # As DETRDetector reads its detections: the likeliest class other than no-object.
    scores, labels = outputs["logits"][0].float().softmax(-1)[:, :-1].max(-1)
    scores, best = scores.sort(descending=True, stable=True)
    scores, best = scores[:count], best[:count]
    height, width = unpadded_size(padding_mask)
    size = torch.tensor([height, width])
    boxes = to_pixels(outputs["boxes"][0, best].float().cpu(), size).tolist()
    labels = labels[best].tolist()

    maps = {}
    for layer, rows in weights.items():
        row = "attention of the query" if layers is None else layer.removeprefix("transformer.")
        maps[row] = attention_on_image(rows[0, :, best].mean(0), network, padding_mask)
        for head in range(rows.shape[1]) if heads else ():
            maps[f"{row}\nhead {head}"] = attention_on_image(
                rows[0, head, best], network, padding_mask
            )
    titles = [
        caption(names, label, score) for label, score in zip(labels, scores.tolist(), strict=True)
    ]
    return detection_rows(image[:, :height, :width], boxes, labels, titles, maps)


def detection_rows(
    image: Tensor,
    boxes: list[list[float]],
    labels: list[int],
    titles: list[str],
    maps: dict[str, Tensor],
) -> np.ndarray:
    """Detections side by side, and below them rows of maps, as (height, width, 3) uint8.

    Args:
        image: (3, H, W) without padding, of any range.
        boxes: xyxy in its pixels.
        labels: for their colors.
        titles: over the detections.
        maps: name of a row -> (detections, H, W) in 0..1.
    """
    plain, colors = rgb(image[None])[0], [class_color(label) for label in labels]
    if not boxes:
        picture = torch.from_numpy(np.array(readable(to_pil(plain), READABLE)[0])) / 255
        return sheet([[picture]], [["nothing detected"]], [""], inches=2.4)
    rows = [[_framed(plain, *pair) for pair in zip(boxes, colors, strict=True)]]
    for of_row in maps.values():
        covered = overlay(image[None].cpu(), of_row)
        rows.append([_framed(*parts) for parts in zip(covered, boxes, colors, strict=True)])
    return sheet(rows, [titles, *[[] for _ in maps]], ["detections", *maps], inches=2.4)


def cross_attention(
    network: DETR, images: Tensor, padding_mask: Tensor, layers: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The last layer's outputs, and attention to the grid, (B, h, Q, N) of the named layers.

    Where none are named, of the last.
    """
    if layers is None:
        layers = [f"transformer.decoder.{len(network.transformer.decoder) - 1}.cross_attention"]
    with torch.no_grad(), record_attention(network, layers) as maps:
        outputs = network(images, padding_mask)[-1]
    return outputs, {name: rows.float() for name, rows in maps.items()}


def proposal_sheet(
    image: Tensor,
    found: dict[str, Tensor],
    proposals: Tensor,
    maps: Tensor,
    names: Sequence[str],
    count: int = 4,
) -> np.ndarray:
    """The best detections of an image, and below each the attention of its class in its proposal.

    Shape: image (3, H, W) without padding -> (height, width, 3) uint8

    Args:
        found, proposals, maps: of `proposal_attention`.
        names: of the labels; without any, their numbers are written.
        count: detections, at most.
    """
    height, width = image.shape[1:]
    covers = torch.zeros(min(count, len(maps)), height, width)
    for cover, box, weights in zip(covers, proposals.cpu(), maps.cpu(), strict=False):
        left, top = (int(edge) for edge in box[:2].floor())
        right, low = (int(edge) for edge in box[2:].ceil())
        size = max(low - top, 1), max(right - left, 1)
        inside = F.interpolate(weights[None, None], size, mode="bilinear")[0, 0]
        part = cover[top : top + size[0], left : left + size[1]]
        part.copy_(inside[: part.shape[0], : part.shape[1]])
    labels, scores = (found[key][:count].tolist() for key in ("labels", "scores"))
    boxes = found["boxes"][:count].float().cpu() * torch.tensor([width, height, width, height])
    titles = [caption(names, label, score) for label, score in zip(labels, scores, strict=True)]
    row = {"attention of the class\nin its proposal": scaled(covers)} if len(covers) else {}
    return detection_rows(image, boxes.tolist(), labels, titles, row)


def proposal_attention(
    network: AttentionRCNN, image: Tensor, padding_mask: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Detections, the proposal that each was read from, and what its class attended to there.

    Shape: image (3, H, W), padding_mask (H, W) -> detections as the network returns them, proposals
    (k, 4) xyxy in pixels, maps (k, 3, 3) over them, each of sum 1
    """
    heads, seen = network.roi_heads, {}
    hooks = [
        heads.box_roi_pool.register_forward_pre_hook(
            lambda _, given: seen.update(proposals=given[1][0])
        ),
        heads.box_predictor.register_forward_hook(lambda _, __, y: seen.update(deltas=y[1])),
    ]
    layer = "roi_heads.box_head.pool"
    try:
        with torch.no_grad(), record_attention(network, [layer]) as weights:
            (found,) = network(image[None], padding_mask[None])
    finally:
        for hook in hooks:
            hook.remove()
    height, width = unpadded_size(padding_mask)
    classes = found["labels"] + 1  # background is 0
    decoded = heads.box_coder.decode(seen["deltas"], [seen["proposals"]])  # (P, K, 4)
    decoded = clip_boxes_to_image(decoded, (height, width))
    boxes = found["boxes"] * decoded.new_tensor([width, height, width, height])
    source = (decoded[:, classes] - boxes).abs().sum(-1).argmin(0)  # (k,), of the P proposals
    rows = weights[layer][source, 0, classes].float()
    side = isqrt(rows.shape[1])
    return found, seen["proposals"][source], rows.unflatten(1, (side, side))


def attention_on_image(weights: Tensor, network: DETR, padding_mask: Tensor) -> Tensor:
    """(Q, N) of one image's grid -> (Q, h, w) in 0..1, without its padding.

    Padding is cut off first: its zeros would be blended into the image's last pixels.
    """
    stride = network.backbone.strides[-1]
    height, width = unpadded_size(padding_mask)
    maps = weights.unflatten(1, network.backbone.grid(*padding_mask.shape))
    maps = maps[:, : ceil(height / stride), : ceil(width / stride)]
    # Its last pixels reach beyond the image, but for a network whose maps are smaller.
    size = [max(maps.shape[1] * stride, height), max(maps.shape[2] * stride, width)]
    maps = F.interpolate(maps[:, None], size, mode="bilinear")[:, 0]
    return scaled(maps[:, :height, :width])


def _framed(pixels: Tensor, box: list[float], color: Color) -> Tensor:
    """(H, W, 3) in 0..1 -> the same at the size of a sheet's pictures, with one box."""
    picture, scale = readable(to_pil(pixels), READABLE)
    framed = draw_boxes(picture, torch.tensor([box]) * scale, [color], 3)
    return torch.from_numpy(np.array(framed)) / 255
