"""Digit scenes: the same for the same arguments, tight boxes, splits apart, true COCO format."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attention_vision.data import digits
from attention_vision.data.digits import scene, write_scenes
from attention_vision.detection.coco import COCOFolder
from attention_vision.detection.data import DetectionData, DigitScenes


def test_a_scene_follows_from_its_arguments() -> None:
    one, again = scene("train", 3), scene("train", 3)
    np.random.seed(1)  # noqa: NPY002 (the global stream must not matter)
    assert (one.image == again.image).all()
    others = [scene("val", 3), scene("train", 4), scene("train", 3, seed=1)]
    assert all((one.image != other.image).any() for other in others)


@pytest.mark.parametrize("size", [64, 128])
def test_scenes_are_what_they_are_said_to_be(size: int) -> None:
    start = time.perf_counter()
    scenes = [scene("train", index, size) for index in range(300)]
    assert time.perf_counter() - start < 30 * (size / 64) ** 2  # about 0.8 s at 64 pixels
    assert all(drawn.image.shape == (size, size, 3) for drawn in scenes)
    boxes = np.concatenate([drawn.boxes for drawn in scenes])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() >= 0
    assert boxes.max() <= size
    assert 7 * size / 64 <= sides[:, 1].min() < 10 * size / 64
    assert 38 * size / 64 < sides[:, 1].max() < 48 * size / 64
    counts = np.bincount([len(drawn.labels) for drawn in scenes])
    assert counts[0] > 0  # images without objects belong to detection
    assert len(counts) == 6
    assert len(np.bincount(np.concatenate([drawn.labels for drawn in scenes]))) == 10
    for drawn in scenes:
        for place, box in enumerate(drawn.boxes):
            others = np.delete(drawn.boxes, place, 0)
            far, near = np.minimum(others[:, 2:], box[2:]), np.maximum(others[:, :2], box[:2])
            areas = np.minimum((others[:, 2:] - others[:, :2]).prod(1), (box[2:] - box[:2]).prod())
            assert ((far - near).clip(0).prod(1) <= digits.OVERLAP * areas).all()


def test_boxes_hold_the_ink_tightly(monkeypatch) -> None:
    monkeypatch.setattr(digits, "_ground", lambda random, size: np.zeros((size, size, 3)))
    for index in range(40):
        image, boxes, _ = scene("train", index)
        for left, top, right, bottom in boxes.astype(int):
            image[top:bottom, left:right] = 0
        assert image.max() < 130  # black ground: edges of strokes up to INK, and noise
    random = np.random.default_rng(0)
    for glyph in digits._glyphs("val")[0][1][::20]:
        for height in (8, 13, 24, 40):
            ink = digits._turned(glyph, height, random) > digits.INK
            assert all(edge.any() for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))


def test_each_split_draws_its_own_scans() -> None:
    train, train_labels = digits._glyphs("train")
    val, val_labels = digits._glyphs("val")
    assert (len(train_labels), len(val_labels)) == (1442, 355)
    assert [level.shape for level in val] == [(355, side, side) for side in (8, 16, 32)]
    flat = {glyph.tobytes() for glyph in train[2]}
    assert sum(glyph.tobytes() in flat for glyph in val[2]) == 0


def test_the_folder_on_disk_gives_the_same_batches(tmp_path: Path) -> None:
    write_scenes(str(tmp_path), train=12, val=6, size=48, seed=3)
    written = json.loads((tmp_path / "instances_val.json").read_text())
    assert [category["name"] for category in written["categories"]] == list(digits.CLASS_NAMES)
    assert Image.open(tmp_path / "val" / "000001.png").size == (48, 48)
    memory = DigitScenes(12, 6, size=48, scene_seed=3, batch_size=4, seed=0)
    folder = COCOFolder(
        *(str(tmp_path / name) for name in ("train", "instances_train.json")),
        *(str(tmp_path / name) for name in ("val", "instances_val.json")),
        recipe=memory.recipe,
        batch_size=4,
        num_workers=0,
        seed=0,
    )
    folder.mean, folder.std = memory.mean, memory.std
    assert folder.class_names == memory.class_names
    assert folder.category_ids == memory.category_ids
    for ours, theirs in zip(batches(memory), batches(folder), strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        for target, other in zip(ours[2], theirs[2], strict=True):
            assert target.keys() == other.keys()
            for key in target:
                assert torch.equal(torch.as_tensor(target[key]), torch.as_tensor(other[key])), key


def batches(data: DetectionData) -> list:
    data.setup("fit")
    return [*data.train_dataloader(), *data.val_dataloader()]
