"""What detections were read from, as pictures: attention, Grad-CAM, objectness of proposals."""

from collections.abc import Sequence
from math import ceil, isqrt

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import ImageDraw
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

DOT = 4  # pixels from the middle of a point to its edge, in a picture of a sheet


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
    points: dict[str, Tensor] | None = None,
) -> np.ndarray:
    """Detections side by side, below them rows of maps or points, as (height, width, 3) uint8.

    Args:
        image: (3, H, W) without padding, of any range.
        boxes: xyxy in its pixels.
        labels: for their colors.
        titles: over the detections.
        maps: name of a row -> (detections, H, W) in 0..1.
        points: name of a row -> (detections, n, 3): x and y in pixels of the image, and weight.
    """
    plain, colors = rgb(image[None])[0], [class_color(label) for label in labels]
    if not boxes:
        picture = torch.from_numpy(np.array(readable(to_pil(plain), READABLE)[0])) / 255
        return sheet([[picture]], [["nothing detected"]], [""], inches=2.4)
    rows = [[_framed(plain, *pair) for pair in zip(boxes, colors, strict=True)]]
    for of_row in maps.values():
        covered = overlay(image[None].cpu(), of_row)
        rows.append([_framed(*parts) for parts in zip(covered, boxes, colors, strict=True)])
    gray = plain.mean(-1, keepdim=True).expand_as(plain)
    for of_row in (points or {}).values():
        rows.append(
            [_framed(gray, *parts) for parts in zip(boxes, colors, of_row.cpu(), strict=True)]
        )
    names = [*maps, *(points or {})]
    return sheet(rows, [titles, *[[] for _ in names]], ["detections", *names], inches=2.4)


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
    maps: dict[str, Tensor],
    names: Sequence[str],
    count: int = 4,
    points: dict[str, Tensor] | None = None,
) -> np.ndarray:
    """The best detections of an image, and below each what its class was read from.

    Shape: image (3, H, W) without padding -> (height, width, 3) uint8

    Args:
        found: detections as the network returns them, best first.
        maps: name of a row -> (k, H, W) of the first k detections, at least `count` where there
            are as many.
        names: of the labels; without any, their numbers are written.
        count: detections, at most.
        points: name of a row -> (k, n, 3) in the same way, see `detection_rows`.
    """
    height, width = image.shape[1:]
    labels, scores = (found[key][:count].tolist() for key in ("labels", "scores"))
    boxes = found["boxes"][:count].float().cpu() * torch.tensor([width, height, width, height])
    titles = [caption(names, label, score) for label, score in zip(labels, scores, strict=True)]
    rows = {name: scaled(of_row[:count]) for name, of_row in maps.items()} if labels else {}
    points = {name: of_row[:count] for name, of_row in (points or {}).items()}
    return detection_rows(image, boxes.tolist(), labels, titles, rows, points)


def in_proposals(maps: Tensor, proposals: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps over proposals as maps over an image of a size, 0 outside.

    Shape: (k, m, n), (k, 4) xyxy in pixels -> (k, H, W)
    """
    covers = torch.zeros(len(maps), *size)
    for cover, box, weights in zip(covers, proposals.cpu(), maps.cpu(), strict=True):
        left, top = (int(edge) for edge in box[:2].floor())
        right, low = (int(edge) for edge in box[2:].ceil())
        shape = max(low - top, 1), max(right - left, 1)
        inside = F.interpolate(weights[None, None], shape, mode="bilinear")[0, 0]
        part = cover[top : top + shape[0], left : left + shape[1]]
        part.copy_(inside[: part.shape[0], : part.shape[1]])
    return covers


def class_attention(weights: Tensor, source: Tensor, labels: Tensor) -> Tensor:
    """Attention (P, 1, K, N) of the pool of `AttentionBoxHead` -> (k, n, n), of k detections."""
    rows = weights[source, 0, labels + 1].float()  # background is 0
    side = isqrt(rows.shape[1])
    return rows.unflatten(1, (side, side))


def detection_proposals(
    network: AttentionRCNN, image: Tensor, padding_mask: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Detections of an image, best first, and the proposal that each was read from.

    Shape: image (3, H, W), padding_mask (H, W) -> detections as the network returns them, proposals
    (k, 4) xyxy in pixels, and their indices (k,) among all P proposals
    """
    heads, seen = network.roi_heads, {}
    hooks = [
        heads.box_roi_pool.register_forward_pre_hook(
            lambda _, given: seen.update(proposals=given[1][0])
        ),
        heads.box_predictor.register_forward_hook(lambda _, __, y: seen.update(deltas=y[1])),
    ]
    try:
        with torch.no_grad():
            (found,) = network(image[None], padding_mask[None])
    finally:
        for hook in hooks:
            hook.remove()
    height, width = unpadded_size(padding_mask)
    decoded = heads.box_coder.decode(seen["deltas"], [seen["proposals"]])  # (P, K, 4)
    decoded = clip_boxes_to_image(decoded, (height, width))
    boxes = found["boxes"] * decoded.new_tensor([width, height, width, height])
    source = (decoded[:, found["labels"] + 1] - boxes).abs().sum(-1).argmin(0)
    return found, seen["proposals"][source], source


def objectness(network: AttentionRCNN, image: Tensor, padding_mask: Tensor) -> Tensor:
    """Probability of an object by the RPN, the largest of the anchors at each position.

    Shape: image (3, H, W), padding_mask (H, W) -> (L, h, w), of L levels of the pyramid at the
    resolution of the finest, without padding
    """
    height, width = unpadded_size(padding_mask)
    with torch.no_grad():
        _, levels = network.encode(image[None, :, :height, :width], _sizes(height, width))
        scores, _ = network.rpn.head(list(levels.values()))  # per level (1, A, h, w)
        grid = scores[0].shape[2:]
        maps = [F.interpolate(one.sigmoid().amax(1, keepdim=True), grid) for one in scores]
    stride = finest_stride(network)
    return torch.cat(maps, 1)[0, :, : ceil(height / stride), : ceil(width / stride)]


def detection_grad_cam(
    network: AttentionRCNN, image: Tensor, padding_mask: Tensor, labels: Tensor, proposals: Tensor
) -> Tensor:
    """Grad-CAM of the class logit of detections, at the levels of the pyramid.

    Shape: image (3, H, W), padding_mask (H, W), labels (k,), proposals (k, 4) xyxy in pixels ->
    (k, h, w) at the resolution of the finest level, without padding

    Selvaraju et al. (arXiv 1610.02391, equations 1 and 2): channels weighted by the mean gradient
    of the logit, negative sums cut off; the levels are added, of which a detection reads one. Its
    logit depends on the features of its proposal alone, so the map is 0 outside: equal features
    elsewhere moved nothing.
    """
    height, width = unpadded_size(padding_mask)
    with torch.no_grad():
        batch, levels = network.encode(image[None, :, :height, :width], _sizes(height, width))
    with torch.inference_mode(False), torch.enable_grad():
        # Copies: inference mode's tensors have no gradient.
        levels = {name: level.clone().requires_grad_() for name, level in levels.items()}
        pooled = network.roi_heads.box_roi_pool(levels, [proposals.clone()], batch.image_sizes)
        logits, _ = network.roi_heads.box_head(pooled)
        scores = logits.gather(1, labels.clone()[:, None] + 1)[:, 0]  # background is 0
        grid, inputs = next(iter(levels.values())).shape[2:], list(levels.values())
        maps = scores.new_zeros(len(scores), *grid)
        for cam, score in zip(maps, scores, strict=True):
            gradients = torch.autograd.grad(score, inputs, retain_graph=True, allow_unused=True)
            for level, gradient in zip(inputs, gradients, strict=True):
                if gradient is not None:
                    weight = gradient.mean((2, 3), keepdim=True)
                    of_level = (weight * level.detach()).sum(1, keepdim=True).relu()
                    cam += F.interpolate(of_level, grid, mode="bilinear")[0, 0]
    stride = finest_stride(network)
    maps = maps.detach()[:, : ceil(height / stride), : ceil(width / stride)]
    rows, columns = (torch.arange(side, device=maps.device) for side in maps.shape[1:])
    left, top, right, low = (edge[:, None] for edge in (proposals / stride).unbind(1))
    across, down = (
        (cells + 1 > start) & (cells < end)
        for cells, start, end in ((columns, left, right), (rows, top, low))
    )
    return maps * (down[:, :, None] & across[:, None])


def _sizes(height: int, width: int) -> Tensor:
    return torch.tensor([[height, width]])


def finest_stride(network: AttentionRCNN) -> int:
    return network.backbone.strides[network.first_stage - 1]


def attention_on_image(weights: Tensor, network: DETR, padding_mask: Tensor) -> Tensor:
    """(Q, N) of one image's grid -> (Q, h, w) in 0..1, without its padding.

    Padding is cut off first: its zeros would be blended into the image's last pixels.
    """
    stride = network.backbone.strides[-1]
    height, width = unpadded_size(padding_mask)
    maps = weights.unflatten(1, network.backbone.grid(*padding_mask.shape))
    maps = maps[:, : ceil(height / stride), : ceil(width / stride)]
    return scaled(cells_on_image(maps, stride, (height, width)))


def points_of_queries(
    weights: Tensor, queries: Tensor, size: tuple[int, int], names: Sequence[str]
) -> dict[str, Tensor]:
    """Points of some queries, by the name of each row, as `detection_rows` draws them.

    Args:
        weights: (1, h, Q, L, P, 3) of a `DeformableAttention`.
        queries: (k,).
        size: height and width of the image with its padding.
        names: of one row for all heads together, or of a row for each head.
    """
    points = weights[0].float()[:, queries.to(weights.device)].flatten(2, 3)  # (h, k, L P, 3)
    points = points * points.new_tensor([size[1], size[0], 1])
    rows = points.transpose(0, 1).flatten(1, 2)[None] if len(names) == 1 else points
    return dict(zip(names, rows, strict=True))


def cells_on_image(maps: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """(n, h, w) of cells of a stride -> (n, H, W) in pixels of an image of this size."""
    # The last pixels reach beyond the image, but for a network whose maps are smaller.
    reach = [max(maps.shape[1] * stride, size[0]), max(maps.shape[2] * stride, size[1])]
    pixels = F.interpolate(maps[:, None], reach, mode="bilinear")[:, 0]
    return pixels[:, : size[0], : size[1]]


def _framed(pixels: Tensor, box: list[float], color: Color, points: Tensor | None = None) -> Tensor:
    """(H, W, 3) in 0..1 -> the same at the size of a sheet's pictures, with one box and points."""
    picture, scale = readable(to_pil(pixels), READABLE)
    framed = draw_boxes(picture, torch.tensor([box]) * scale, [color], 3)
    if points is not None:
        draw, (x, y, weight) = ImageDraw.Draw(framed), points[points[:, 2].argsort()].unbind(1)
        colors = matplotlib.colormaps["inferno"]((weight / weight.amax()).numpy(), bytes=True)
        for dot in zip((x * scale).tolist(), (y * scale).tolist(), colors.tolist(), strict=True):
            edges = (dot[0] - DOT, dot[1] - DOT, dot[0] + DOT, dot[1] + DOT)
            draw.ellipse(edges, fill=tuple(dot[2][:3]), outline=(0, 0, 0))
    return torch.from_numpy(np.array(framed)) / 255
