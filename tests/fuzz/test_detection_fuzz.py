"""Boxes, matcher, criterion and transforms against what holds for every input."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert

from attention_vision.detection.boxes import giou, to_pixels
from attention_vision.detection.criterion import SetCriterion
from attention_vision.detection.instance_masks import boxes_of
from attention_vision.detection.instances import ImageEntry, Repairs, fitted_box
from attention_vision.detection.matcher import HungarianMatcher
from attention_vision.detection.transforms import DETRAugmentation

SEEDS = st.integers(0, 2**32 - 1)
# Thousandths: equal sides, and boxes without width or height, come up often.
COORDINATES = st.integers(0, 1000).map(lambda number: number / 1000)
MEAN, STD = (0.5,) * 3, (0.25,) * 3


@st.composite
def corners(draw: st.DrawFn) -> list[float]:
    """A box xyxy in 0..1, perhaps without area."""
    left, right = sorted((draw(COORDINATES), draw(COORDINATES)))
    top, bottom = sorted((draw(COORDINATES), draw(COORDINATES)))
    return [left, top, right, bottom]


def naive_giou(a: list[float], b: list[float]) -> float:
    def area(box: list[float]) -> float:
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    shared = area([*map(max, a[:2], b[:2]), *map(min, a[2:], b[2:])])
    hull = area([*map(min, a[:2], b[:2]), *map(max, a[2:], b[2:])])
    union = area(a) + area(b) - shared
    return (shared / union if union else 0.0) - ((hull - union) / hull if hull else 0.0)


@given(corners(), corners())
def test_giou(a, b):
    first, second = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    value = giou(first, second).item()
    assert value == pytest.approx(naive_giou(a, b), abs=1e-9)
    assert value == giou(second, first).item()
    assert -1 <= value <= 1 + 1e-12


@given(corners(), st.integers(1, 5000), st.integers(1, 5000))
def test_pixels_and_back(box, height, width):
    centered = box_convert(torch.tensor([box], dtype=torch.float64), "xyxy", "cxcywh")
    pixels = to_pixels(centered, torch.tensor([height, width]))
    expected = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
    assert pixels[0].tolist() == pytest.approx(expected, abs=1e-9 * max(height, width))


@given(
    st.lists(st.integers(-50, 150), min_size=4, max_size=4), st.integers(1, 90), st.integers(1, 90)
)
def test_a_box_is_clipped_to_its_image_or_dropped(sides, width, height):
    kept = fitted_box(
        tuple(map(float, sides)), ImageEntry(1, "a.png", width, height), "a", Repairs("a")
    )
    left, top, right, bottom = sides
    clipped = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        assert kept is None
    else:
        assert kept == pytest.approx(clipped, abs=1)  # a pixel of rounding is left as it is


@given(SEEDS, st.integers(1, 12), st.integers(1, 12))
def test_boxes_of_gray_levels(seed, height, width):
    levels = np.random.default_rng(seed).choice([0, 0, 0, 1, 2, 9, 255], (height, width))
    found = boxes_of(levels.astype(np.uint8))
    expected = []
    for level in (1, 2, 9):
        pixels = [(r, c) for r in range(height) for c in range(width) if levels[r, c] == level]
        if pixels:
            rows, columns = [r for r, _ in pixels], [c for _, c in pixels]
            box = (min(columns), min(rows), max(columns) + 1, max(rows) + 1)
            expected.append((tuple(map(float, box)), 1, float(len(pixels)), 0))
    assert found == expected


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]], bool]:
    """Outputs of up to 2 layers, targets of up to 3 images, and whether boxes are hardly equal."""
    stream = torch.Generator().manual_seed(draw(SEEDS))
    layers, queries, classes = draw(st.integers(1, 2)), draw(st.integers(1, 4)), 3
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    steps = draw(st.sampled_from([3, 10_000]))  # of a grid of boxes: a coarse one has ties

    def boxes(*shape: int) -> Tensor:
        return (torch.rand(*shape, 4, generator=stream) * steps).ceil() / steps

    outputs = [
        {
            "logits": 3 * torch.randn(len(counts), queries, classes + 1, generator=stream),
            "boxes": boxes(len(counts), queries),
        }
        for _ in range(layers)
    ]
    targets = [
        {
            "labels": torch.randint(classes, (count,), generator=stream),
            "boxes": boxes(count),
            "iscrowd": torch.zeros(count, dtype=torch.int64),
        }
        for count in counts
    ]
    return outputs, targets, steps > 3


def least(table: list[list[float]]) -> float:
    """The least cost of a matching, by trying all of them; rows are not more than columns."""
    ways = permutations(range(len(table[0]) if table else 0), len(table))
    return min(sum(row[column] for row, column in zip(table, way, strict=True)) for way in ways)


@pytest.mark.filterwarnings("ignore:image .* has .* objects")
@given(scenes())
def test_matches_cost_the_least(scene):
    outputs, targets, _ = scene
    matcher = HungarianMatcher()
    for layer, matches in zip(outputs, matcher(outputs, targets), strict=True):
        for image, (queries, objects) in enumerate(matches):
            target = targets[image]
            probability = layer["logits"][image].softmax(-1)[:, target["labels"]]
            boxes = layer["boxes"][image][:, None]
            overlap = giou(
                *(box_convert(b, "cxcywh", "xyxy") for b in (boxes, target["boxes"][None]))
            )
            distance = (boxes - target["boxes"]).abs().sum(-1)
            table = 5 * distance - probability - 2 * overlap  # queries x objects
            pairs = min(table.shape)
            assert len(queries.unique()) == len(objects.unique()) == len(queries) == pairs
            wide = table if table.shape[0] <= table.shape[1] else table.T
            best = least(wide.tolist()) if pairs else 0.0
            assert table[queries, objects].sum().item() == pytest.approx(best, abs=1e-4)


@pytest.mark.filterwarnings("ignore:image .* has .* objects")
@given(scenes(), SEEDS)
def test_the_loss_does_not_depend_on_the_order_of_objects(scene, seed):
    outputs, targets, fine = scene
    for layer in outputs:
        for value in layer.values():
            value.requires_grad_()
    criterion = SetCriterion(3, HungarianMatcher())
    losses = criterion(outputs, targets)
    losses["total"].backward()
    for layer in outputs:
        for value in layer.values():
            assert value.grad is not None
            assert value.grad.isfinite().all()
    stream = torch.Generator().manual_seed(seed)
    shuffled = []
    for target in targets:
        order = torch.randperm(len(target["labels"]), generator=stream)
        shuffled.append({key: value[order] for key, value in target.items()})
    again = criterion(outputs, shuffled)
    assert all(value.isfinite() and value >= 0 for value in losses.values())
    weights = {"class": 1, "box": 5, "giou": 2}
    parts = [weights[key.split("_")[0]] * losses[key].item() for key in losses if key != "total"]
    assert losses["total"].item() == pytest.approx(sum(parts), rel=1e-4, abs=1e-4)
    queries = outputs[0]["boxes"].shape[1]
    if fine and all(len(target["labels"]) <= queries for target in targets):
        # Of two matchings at one cost, another order may take the other one.
        assert again["total"].item() == pytest.approx(losses["total"].item(), rel=1e-4)


@given(SEEDS, st.integers(40, 120), st.integers(40, 120), st.booleans(), st.data())
def test_boxes_stay_with_their_pixels(seed, width, height, training, data):
    """A red rectangle on blue: its pixels after the transform are those of its box."""
    left = data.draw(st.integers(0, width - 20))
    top = data.draw(st.integers(0, height - 20))
    right = data.draw(st.integers(left + 16, width))
    bottom = data.draw(st.integers(top + 16, height))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 2] = 255
    pixels[top:bottom, left:right] = (255, 0, 0)
    recipe = DETRAugmentation(
        short_sides=(40, 56, 72), longest=110, crop_short_sides=(48, 60), crop_least=30,
        crop_most=50, evaluation=64,
    )  # fmt: skip
    boxes = tv_tensors.BoundingBoxes(
        [[float(left), top, right, bottom]], format="XYXY", canvas_size=(height, width)
    )
    torch.manual_seed(seed)
    transform = (recipe.train if training else recipe.evaluate)(MEAN, STD)
    image, (box,) = transform(Image.fromarray(pixels), boxes)
    red = (image[0] > image[2]).nonzero()
    if len(red) == 0:  # cut away, but for what the filter blurs
        assert (box[2:] - box[:2]).min() <= 2
        return
    found = [*red.min(0).values.flip(0).tolist(), *(red.max(0).values.flip(0) + 1).tolist()]
    assert found == pytest.approx(box.tolist(), abs=1.5)
