"""Box formats and overlaps: cxcywh in 0..1 where networks meet targets, xyxy for geometry."""

import torch
from torch import Tensor
from torchvision.ops import box_convert


def to_pixels(boxes: Tensor, size: Tensor) -> Tensor:
    """(n, 4) cxcywh in 0..1 and (h, w) -> xyxy in pixels of that size."""
    height, width = size.unbind(-1)
    return box_convert(boxes, "cxcywh", "xyxy") * torch.stack((width, height, width, height), -1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (Rezatofighi et al., arXiv 1902.09630, algorithm 1), -1..1.

    Shape: xyxy (..., 4) and (..., 4), which broadcast -> (...). Pairs are (n, 4) and (n, 4), all
    against all (n, 1, 4) and (m, 4).

    Boxes without area overlap with nothing, also where the release divides 0 by 0 and returns NaN.
    """
    left_a, top_a, right_a, bottom_a = a.unbind(-1)
    left_b, top_b, right_b, bottom_b = b.unbind(-1)
    width = torch.maximum(right_a, right_b) - torch.minimum(left_a, left_b)
    height = torch.maximum(bottom_a, bottom_b) - torch.minimum(top_a, top_b)
    across = torch.minimum(right_a, right_b) - torch.maximum(left_a, left_b)
    down = torch.minimum(bottom_a, bottom_b) - torch.maximum(top_a, top_b)

    hull, intersection = width * height, across.clamp(0) * down.clamp(0)
    union = (right_a - left_a) * (bottom_a - top_a) + (right_b - left_b) * (bottom_b - top_b)
    union = union - intersection
    least = torch.finfo(hull.dtype).tiny
    return intersection / union.clamp(least) - (hull - union) / hull.clamp(least)
