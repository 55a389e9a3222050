"""The fingerprint of data: equal for the same data anywhere, and words for what differs."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from attention_vision.classification import Digits, ImageCSV, ImageFolder
from attention_vision.data.fingerprint import class_numbers
from attention_vision.data.splits import SplitShares
from attention_vision.detection import COCOFolder, DigitScenes
from attention_vision.errors import InputError
from attention_vision.generation import DigitImages, MaskFolder
from attention_vision.identity import data_difference


def draw(file: Path, color: int = 0, size: int = 8) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (size, size), color).save(file)


@pytest.fixture
def folder(tmp_path) -> Path:
    """ROOT/{train,val}/{cat,dog}/N.png."""
    root = tmp_path / "one"
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                draw(root / split / name / f"{number}.png")
    return root


def found(data, stage: str = "fit") -> dict:
    data.setup(stage)
    return json.loads(json.dumps(data.fingerprint()))


def pictures(root: Path) -> dict:
    return found(ImageFolder(str(root), image_size=8))


def test_a_copy_is_the_same_data(folder, tmp_path, monkeypatch):
    before = pictures(folder)
    shutil.copytree(folder, tmp_path / "another/place")
    os.utime(tmp_path / "another/place/train/cat/0.png", (0, 0))
    assert pictures(tmp_path / "another/place") == before
    monkeypatch.chdir(folder)
    assert pictures(Path(".")) == before
    assert before["train"]["samples"] == 6
    assert data_difference(before, before) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: draw(f / "train/cat/3.png"), "train has 7 samples, not 6"),
        (lambda f: (f / "val/dog/0.png").rename(f / "val/dog/7.png"), "val has files of other na"),
        (lambda f: draw(f / "train/dog/1.png", size=16), "train has files of other sizes"),
        (lambda f: draw(f / "train/eel/0.png"), "3 classes, not 2; train has 7 samples, not 6"),
    ],
)
def test_what_changed_is_named(folder, change, words):
    before = pictures(folder)
    change(folder)
    assert data_difference(before, pictures(folder)).startswith(words)


def test_other_class_names_of_the_same_number(folder):
    before = pictures(folder)
    for split in ("train", "val"):
        (folder / split / "dog").rename(folder / split / "wolf")
    words = data_difference(before, pictures(folder))
    assert words.startswith("other names or another order of the classes; train has files of other")


def test_labels_swapped_in_a_table(folder, tmp_path):
    table = tmp_path / "labels.csv"
    rows = [f"train/{name}/{n}.png,{name}" for name in ("cat", "dog") for n in range(3)]
    table.write_text("\n".join(["file,label", *rows]))

    def data() -> ImageCSV:
        return ImageCSV(str(table), str(folder), image_size=8, split=SplitShares(0.34))

    before = found(data())
    opened = data()
    opened.setup("fit")
    state = opened.state_dict()
    swapped = [rows[0].replace(",cat", ",dog"), *rows[1:3], rows[3].replace(",dog", ",cat")]
    table.write_text("\n".join(["file,label", *swapped, *rows[4:]]))
    assert "train has" in data_difference(before, found(data()))

    table.write_text("\n".join(["file,label", *rows]).replace(",cat", ",x").replace(",dog", ",cat")
                     .replace(",x", ",dog"))  # fmt: skip
    other = data()
    other.setup("fit")
    assert "labels" in data_difference(before, other.fingerprint())
    with pytest.raises(InputError, match=r"the data is not that of the checkpoint: .*other labels"):
        other.load_state_dict(state)


def test_other_data_may_be_evaluated(folder):
    data = ImageFolder(str(folder), image_size=8)
    data.setup("fit")
    state = data.state_dict()
    draw(folder / "val/cat/5.png")
    measured = ImageFolder(str(folder), image_size=8)
    measured.setup("validate")
    measured.load_state_dict(state)
    assert set(measured.fingerprint()) == {"classes", "val"}
    trained = ImageFolder(str(folder), image_size=8)
    trained.setup("fit")
    with pytest.raises(InputError, match="val has 5 samples, not 4; restore it, or start a run"):
        trained.load_state_dict(state)
    trained.load_state_dict({key: state[key] for key in ("class_names", "division")})  # of 0.1


def test_moved_boxes_are_other_labels(tmp_path):
    images = [{"id": n, "file_name": f"{n}.png", "width": 8, "height": 8} for n in range(2)]
    for number in range(2):
        draw(tmp_path / f"{number}.png")
    kinds = [{"id": 1, "name": "cat"}]

    def read(x: float) -> dict:
        box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [x, 1, 3, 3], "area": 9}
        content = {"images": images, "annotations": [box | {"iscrowd": 0}], "categories": kinds}
        (tmp_path / "instances.json").write_text(json.dumps(content))
        data = COCOFolder(
            train_images=str(tmp_path), train_annotations=str(tmp_path / "instances.json"),
            val_images=str(tmp_path), val_annotations=str(tmp_path / "instances.json"),
        )  # fmt: skip
        return found(data)

    assert read(1) == read(1)
    words = data_difference(read(1), read(2))
    assert words.startswith("train has other labels")


def test_masks_count_as_files(tmp_path):
    for name in ("a", "b"):
        draw(tmp_path / "images" / f"{name}.png", size=32)
        draw(tmp_path / "masks" / f"{name}.png", size=32)

    def read() -> dict:
        folders = (str(tmp_path / "images"), str(tmp_path / "masks"))
        data = MaskFolder(*folders, val_names=["b"], size=16)
        return found(data)

    before = read()
    with (tmp_path / "masks/a.png").open("ab") as file:
        file.write(b"\0")
    assert data_difference(before, read()) == "train has files of other sizes"


def test_data_in_memory_has_numbers_and_labels():
    assert found(Digits(image_size=8))["train"].keys() == {"samples", "labels"}
    few = found(Digits(image_size=8, per_class=3))
    assert data_difference(found(Digits(image_size=8)), few) == "train has 30 samples, not 1442"
    assert found(DigitImages(8)).keys() == {"classes", "train"}
    scenes = [found(DigitScenes(scenes=3, val_scenes=1, scene_seed=seed)) for seed in (0, 1)]
    assert data_difference(*scenes).startswith("train has other labels")


def test_names_in_the_place_of_class_numbers_are_refused():
    named = SimpleNamespace(targets=[0, "cat"])
    with pytest.raises(InputError, match=r"targets has 'cat': give the number of each image's"):
        class_numbers(named)
