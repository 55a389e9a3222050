"""How fast the matcher is, against the official formula applied layer by layer, in one run.

    python experiments/benchmarks/matching.py          # one thread of a CPU, under a minute

6 decoder layers, 100 queries, 91 classes, 1 to 14 objects an image. Every match is the same on both
sides, or the row fails. See `frame` for the options and for what is measured.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from frame import Row, Side, main
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert

from attention_vision.detection.matcher import HungarianMatcher

LAYERS, QUERIES, CLASSES, MOST = 6, 100, 91, 14


def scene(images: int, device: str) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Outputs of all layers and targets of a batch."""

    def boxes(*shape: int) -> Tensor:
        return torch.cat((torch.rand(*shape, 2), 0.02 + 0.5 * torch.rand(*shape, 2)), -1).to(device)

    logits = torch.randn(LAYERS, images, QUERIES, CLASSES + 1, device=device)
    predicted = boxes(LAYERS, images, QUERIES)
    outputs = [{"logits": a, "boxes": b} for a, b in zip(logits, predicted, strict=True)]
    counts = torch.randint(1, MOST + 1, (images,)).tolist()
    labels = [torch.randint(CLASSES, (count,), device=device) for count in counts]
    return outputs, [{"labels": one, "boxes": boxes(len(one))} for one in labels]


def all_against_all_giou(a: Tensor, b: Tensor) -> Tensor:
    """(n, 4) and (m, 4) xyxy -> (n, m)."""
    area_a, area_b = ((box[:, 2:] - box[:, :2]).prod(1) for box in (a, b))
    low = torch.max(a[:, None, :2], b[:, :2])
    high = torch.min(a[:, None, 2:], b[:, 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    union = area_a[:, None] + area_b - intersection
    low = torch.min(a[:, None, :2], b[:, :2])
    high = torch.max(a[:, None, 2:], b[:, 2:])
    hull = (high - low).clamp(min=0).prod(-1)
    return intersection / union - (hull - union) / hull


def official(outputs: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> list:
    """facebookresearch/detr: every query of the batch against every object of the batch."""
    labels = torch.cat([target["labels"] for target in targets])
    objects = torch.cat([target["boxes"] for target in targets])
    counts = [len(target["labels"]) for target in targets]
    matches = []
    for layer in outputs:
        probability = layer["logits"].flatten(0, 1).softmax(-1)[:, labels]
        predicted = layer["boxes"].flatten(0, 1)
        distance = torch.cdist(predicted, objects, p=1)
        corners = (box_convert(boxes, "cxcywh", "xyxy") for boxes in (predicted, objects))
        overlap = all_against_all_giou(*corners)
        cost = 5 * distance - probability - 2 * overlap
        cost = cost.view(len(targets), -1, len(labels)).cpu()
        pairs = [
            linear_sum_assignment(block[image])
            for image, block in enumerate(cost.split(counts, -1))
        ]
        matches.append([tuple(torch.as_tensor(index) for index in pair) for pair in pairs])
    return matches


def matcher(outputs: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> Callable:
    """Ours, once it has matched as the official formula does."""
    matcher = HungarianMatcher()
    for ours, theirs in zip(matcher(outputs, targets), official(outputs, targets), strict=True):
        for pair, expected in zip(ours, theirs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(pair, expected, strict=True))
    return partial(matcher, outputs, targets)


def rows(device: str, smoke: bool) -> Iterator[Row]:
    for images in (2,) if smoke else (2, 8, 64):
        given = scene(images, device)
        sides = [
            Side("ours", partial(matcher, *given)),
            Side("official formula", lambda given=given: partial(official, *given)),
        ]
        yield Row(f"Hungarian matching, {images} images", sides, images=images)


if __name__ == "__main__":
    main(rows)
