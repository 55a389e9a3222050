"""How fast the matcher is, against the official formula applied layer by layer, in one run.

    OMP_NUM_THREADS=1 python experiments/benchmarks/matching.py     # CPU, under a minute
    python experiments/benchmarks/matching.py --device cuda --output h100.json

One thread; 6 decoder layers, 100 queries, 91 classes, 1 to 14 objects an image. The two sides take
turns, so that whatever else slows the machine down slows both; the ratio is the median over turns,
with its quartiles. Every match is the same on both sides, or the run stops.
"""

import argparse
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert

from attention_vision.detection.matcher import HungarianMatcher

LAYERS, QUERIES, CLASSES, MOST = 6, 100, 91, 14
TURNS = 7


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


def seconds(step: Callable[[], object], repeats: int) -> float:
    """Of one step, which ends on the CPU."""
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def compare(images: int, device: str) -> dict[str, float]:
    outputs, targets = scene(images, device)
    matcher = HungarianMatcher()
    sides = lambda: matcher(outputs, targets), lambda: official(outputs, targets)
    for ours, theirs in zip(*(side() for side in sides), strict=True):
        for pair, expected in zip(ours, theirs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(pair, expected, strict=True))
    repeats = max(1, 32 // images)
    times = []
    for turn in range(TURNS):
        order = (turn % 2, 1 - turn % 2)
        pair = [(side, seconds(sides[side], repeats)) for side in order]
        times.append([spent for _, spent in sorted(pair)])
    ratios = [theirs / ours for ours, theirs in times]
    low, _, high = quantiles(ratios, n=4)
    return {
        "batch": images,
        "ours_ms": 1e3 * median(ours for ours, _ in times),
        "official_ms": 1e3 * median(theirs for _, theirs in times),
        "times_as_fast": median(ratios),
        "low": low,
        "high": high,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratio to the official matcher.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write a JSON file as well")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor()
    report = {
        "hardware": hardware or platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "scipy")},
        "rows": [],
    }
    print(f"{report['hardware']}, 1 thread; {report['versions']}\n")
    print(f"{'batch':>5}{'ours ms':>10}{'official ms':>13}{'times as fast':>15}   quartiles")
    for images in (2, 8, 64):
        row = compare(images, options.device)
        report["rows"].append(row)
        times = f"{row['ours_ms']:10.2f}{row['official_ms']:13.1f}{row['times_as_fast']:15.1f}"
        print(f"{images:>5}{times}   {row['low']:.1f}-{row['high']:.1f}", flush=True)
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
