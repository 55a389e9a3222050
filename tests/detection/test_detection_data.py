"""Data for detection: transforms, batches, sampling, and the one clear line for bad data."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from coco_folder import fitted, load, opened, save

from attention_vision.backbones import ResNet
from attention_vision.detection import DETR
from attention_vision.detection.boxes import to_pixels
from attention_vision.detection.criterion import without_crowds
from attention_vision.detection.data import (
    DetectionData,
    DigitScenes,
    GroupedSampler,
    collate,
)
from attention_vision.detection.transforms import DETRAugmentation, RandomShortSide, resized
from attention_vision.errors import InputError, one_line


def released(size: tuple[int, int], short: int, longest: int | None) -> tuple[int, int]:
    """`get_size_with_aspect_ratio` of the release, on (w, h) -> (h, w)."""
    w, h = size
    if longest is not None:
        low, high = float(min((w, h))), float(max((w, h)))
        if high / low * short > longest:
            short = round(longest * low / high)
    if (w <= h and w == short) or (h <= w and h == short):
        return (h, w)
    if w < h:
        return (int(short * h / w), short)
    return (short, int(short * w / h))


def test_sizes_round_as_the_release_does() -> None:
    rng = np.random.default_rng(0)
    for width, height in rng.integers(40, 1500, (2000, 2)).tolist():
        for longest in (1333, None):
            expected = released((width, height), 800, longest)
            assert resized((height, width), 800, longest) == expected


def test_the_default_recipe_is_the_release_s() -> None:
    recipe = DETRAugmentation()
    assert recipe.short_sides == tuple(range(480, 801, 32))
    assert (recipe.longest, recipe.evaluation, recipe.flip, recipe.crop) == (1333, 800, 0.5, 0.5)
    assert recipe.crop_short_sides == (400, 500, 600)
    assert (recipe.crop_least, recipe.crop_most) == (384, 600)
    flip, scaled = recipe.train((0.5,) * 3, (0.5,) * 3).transforms[:2]
    assert flip.p == 0.5
    assert isinstance(scaled.transforms[0], RandomShortSide)


def test_boxes_follow_their_pixels(folder: Path) -> None:
    data = fitted(folder)
    sizes = set()
    for epoch in range(12):
        for index in range(6):
            image, target = data.train_images[(epoch, index)]
            sizes.add(tuple(image.shape[1:]))
            assert target["size"].tolist() == list(image.shape[1:])
            assert "iscrowd" not in target  # crowds are not trained on
            rows, columns = ((image[0] > image[2]).any(axis).nonzero() for axis in (1, 0))
            boxes = to_pixels(target["boxes"], target["size"])
            if not len(rows) or not len(boxes):  # no object, or a crop left a sliver of it
                sides = (boxes[:, 2:] - boxes[:, :2]).flatten().tolist()
                assert min(len(rows), len(columns)) <= 1
                assert min(sides, default=0) < 1.6
                continue
            (box,) = boxes
            seen = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert (box - seen).abs().max() < 1.6
    assert len(sizes) > 20
    assert all(min(size) <= 56 and max(size) <= 90 for size in sizes)


def test_batches_and_padding(folder: Path) -> None:
    data = fitted(folder, batch_size=6)
    ((images, padding_mask, targets),) = data.val_dataloader()
    assert images.dtype == torch.float32
    assert images.shape == (6, 3, 76, 72)  # 48x76 and 72x48
    assert padding_mask.dtype == torch.bool
    for image, mask, target in zip(images, padding_mask, targets, strict=True):
        height, width = target["size"].tolist()
        assert not mask[:height, :width].any()
        assert mask[height:].all()
        assert mask[:, width:].all()
        assert (image * mask).abs().sum() == 0
    assert [target["image_id"] for target in targets] == [0, 10, 20, 30, 40, 50]
    assert targets[0]["boxes"].shape == (0, 4)
    second = targets[1]
    assert second["orig_size"].tolist() == [60, 90]
    assert second["labels"].tolist() == [1, 0]
    assert second["iscrowd"].tolist() == [0, 1]  # kept for the metric
    assert second["area"].tolist() == [700.5, 100]
    crowd = to_pixels(second["boxes"], second["orig_size"])[1]
    torch.testing.assert_close(crowd, torch.tensor([1.0, 2, 81, 42]))
    trained = without_crowds(targets[1])
    assert [len(trained[key]) for key in ("boxes", "labels", "area")] == [1] * 3


def test_padding_to_a_multiple_leaves_few_sizes_and_the_same_boxes(folder: Path) -> None:
    data = fitted(folder, batch_size=2)
    samples = [data.val_images[index] for index in range(6)]
    pairs = list(pairwise(samples))
    assert {tuple(collate(pair, 64)[0].shape[2:]) for pair in pairs} == {(128, 128)}
    assert all(min(collate(pair)[0].shape[2:]) > 64 for pair in pairs)  # none is padded in vain
    torch.manual_seed(0)
    backbone = ResNet(8, num_classes=0, width=8)
    network = DETR(
        2, 5, backbone, width=16, heads=2, encoder_layers=1, decoder_layers=1, hidden=16,
        mask_padding=True,
    ).eval()  # fmt: skip
    for pair in pairs:
        exact, padded = (network(*collate(pair, multiple)[:2])[-1] for multiple in (1, 64))
        torch.testing.assert_close(padded["boxes"], exact["boxes"], rtol=0, atol=1e-5)


def test_the_recipe_says_how_far_batches_are_padded(folder: Path) -> None:
    data = fitted(folder, batch_size=6)
    data.recipe = replace(data.recipe, pad_to=50)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        images, padding_mask, targets = next(iter(loader))
        assert images.shape[2:] == padding_mask.shape[1:] == (100, 100)
        inside = (~padding_mask).sum((1, 2)).tolist()
        assert inside == [int(target["size"].prod()) for target in targets]


def test_the_checkpoint_keeps_the_labels(folder: Path) -> None:
    data = opened(folder)
    data.load_state_dict(data.state_dict())
    with pytest.raises(InputError, match=r"\(2, here 8\): label 0 was category 3 \(cat\), here"):
        opened(folder, labels="category_ids").load_state_dict(data.state_dict())
    state = {"class_names": ["cat"], "category_ids": [3]}
    with pytest.raises(InputError, match=r"label 1 was category none .*, here it is 7 \(dog\)"):
        data.load_state_dict(state)


def same(one: tuple, other: tuple) -> bool:
    pairs = zip(one[2], other[2], strict=True)
    return torch.equal(one[0], other[0]) and all(
        a["image_id"] == b["image_id"] and torch.equal(a["boxes"], b["boxes"]) for a, b in pairs
    )


@pytest.mark.parametrize("grouped", [False, True])
def test_order_and_augmentation_survive_workers_and_resume(folder: Path, grouped: bool) -> None:
    whole = list(fitted(folder, group_by_shape=grouped).train_dataloader())
    assert len(whole) == 3
    data = fitted(folder, group_by_shape=grouped, num_workers=1)
    torch.manual_seed(5)
    loader = data.train_dataloader()
    iterator = iter(loader)
    assert same(next(iterator), whole[0])
    state = loader.state_dict()
    resumed = data.train_dataloader()
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == 2
    assert all(same(one, other) for one, other in zip(rest, whole[1:], strict=True))


def test_groups_share_batches_and_nothing_is_lost() -> None:
    groups = [index % 3 == 0 for index in range(101)]
    parts = []
    for rank in (0, 1):
        sampler = GroupedSampler(range(101), 2, rank, 0, groups, batch_size=4)
        parts.append([index for _, index in sampler])
        batches = [parts[-1][start : start + 4] for start in range(0, 48, 4)]
        assert sum(len({groups[index] for index in batch}) > 1 for batch in batches) <= 2
        assert parts[-1] == [index for _, index in sampler]
        sampler.set_epoch(1)
        assert parts[-1] != [index for _, index in sampler]
    assert len(set(parts[0]) | set(parts[1])) == 100


def test_predict_carries_paths(folder: Path) -> None:
    data = opened(folder, images=str(folder), batch_size=12)
    data.setup("predict")
    ((images, padding_mask, targets),) = data.predict_dataloader()
    assert len(images) == len(padding_mask) == 12
    assert targets[1]["path"] == str(folder / "train" / "1.png")
    assert targets[1]["orig_size"].tolist() == [60, 90]
    assert [target["image_id"] for target in targets] == list(range(12))


def empty(folder: Path) -> None:
    save(folder, "train", {**load(folder), "images": [], "annotations": []})
    fitted(folder)


def large_batch(folder: Path) -> None:
    fitted(folder, batch_size=7).train_dataloader()


def more_processes_than_images(folder: Path) -> None:
    data = fitted(folder)
    data.trainer = SimpleNamespace(world_size=7, global_rank=0)
    data.val_dataloader()


def no_batch(folder: Path) -> None:
    opened(folder, batch_size=0)


def fewer_than_no_workers(folder: Path) -> None:
    opened(folder, num_workers=-1)


def predict_without_folder(folder: Path) -> None:
    opened(folder).setup("predict")


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (empty, r"COCOFolder: no train images"),
        (no_batch, r"batch_size is 0: it has to be"),
        (fewer_than_no_workers, r"num_workers is -1: it has to be"),
        (large_batch, r"batch_size 7 is larger than the 6 training images"),
        (more_processes_than_images, r"6 images to evaluate cannot be divided among 7 processes"),
        (predict_without_folder, r"nothing to predict: set data.images"),
    ],
)
def test_bad_data_is_one_clear_line(folder: Path, bad, line: str) -> None:
    with pytest.raises(InputError) as caught:
        bad(folder)
    message = one_line(caught.value)
    assert re.search(line, message), message
    assert "\n" not in message


def test_digit_scenes_are_known_before_setup() -> None:
    data: DetectionData = DigitScenes(scenes=8, val_scenes=3, batch_size=4)
    assert (data.num_classes, data.category_ids) == (10, tuple(range(1, 11)))
    data.setup("fit")
    images, padding_mask, _ = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 64, 64)
    assert not padding_mask.any()
    assert collate([data.val_images[0]])[0].shape == (1, 3, 64, 64)
