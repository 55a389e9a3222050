"""Inputs that were silently wrong, or ended in a traceback, before they were refused or counted."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attention_vision.classification import Digits, ImageCSV, ImageFolder
from attention_vision.classification.label_table import in_order
from attention_vision.data.image_files import (
    broken_images,
    image_size,
    list_images,
    read_image,
)
from attention_vision.data.splits import SplitShares, divide
from attention_vision.detection import InstanceMaskFolder, VOCFolder, YOLOFolder
from attention_vision.detection.coco_annotations import read_instances
from attention_vision.errors import InputError
from attention_vision.generation import FolderImages

XML = (
    "<annotation><size><width>8</width><height>8</height></size><object><name>{}</name><bndbox>"
    "<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object></annotation>"
)


def images(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)
    return folder


def test_a_share_that_training_did_not_hold_out_is_not_tested_on(tmp_path):
    images(
        tmp_path, *(f"{s}/{c}/{n}.png" for s in ("train", "val") for c in "ab" for n in range(6))
    )
    trained = ImageFolder(str(tmp_path), image_size=8)
    trained.setup("fit")
    state = trained.state_dict()
    later = ImageFolder(str(tmp_path), image_size=8, split=SplitShares(test=0.3))
    later.setup("test")
    with pytest.raises(InputError, match=r"images that were trained on may now be held out"):
        later.load_state_dict(state)
    assert "division" in Digits().state_dict()


@pytest.mark.parametrize("kind", [ImageFolder, FolderImages])
def test_a_folder_of_a_split_is_not_a_class(tmp_path, kind):
    images(tmp_path, "cat/0.png", "dog/0.png", "test/cat/1.png", "test/dog/1.png")
    options = {"split": SplitShares(0.2)} if kind is ImageFolder else {}
    with pytest.raises(InputError, match=r"test is named after a split and lies beside class fold"):
        _ = kind(str(tmp_path), **options).class_names


def test_masks_of_instances_belong_to_the_image_of_their_path(tmp_path):
    images(tmp_path, "images/a/0.png", "images/b/0.png")
    for place, name in enumerate("ab"):
        levels = np.zeros((8, 8), np.uint8)
        levels[place : place + 3, :4] = 1
        levels[7] = 255  # void
        (tmp_path / "masks" / name).mkdir(parents=True)
        Image.fromarray(levels).save(tmp_path / "masks" / name / "0.png")
    folders = (str(tmp_path / "images"), str(tmp_path / "masks"))
    instances = InstanceMaskFolder(*folders, SplitShares(0.5)).instances("train")
    assert instances.files == ["a/0.png", "b/0.png"]
    assert instances.boxes.tolist() == [[0, 0, 4, 3], [0, 1, 4, 4]]


def test_annotations_belong_to_the_image_in_a_folder_of_the_same_name(tmp_path):
    images(tmp_path, "img/a/0.png", "img/b/0.png", "img/c/1.png", "img/d/1.png")
    for name, label in (("a/0", "cat"), ("b/0", "dog")):
        (tmp_path / "xml" / name).parent.mkdir(parents=True)
        (tmp_path / "xml" / f"{name}.xml").write_text(XML.format(label))
    instances = VOCFolder(str(tmp_path)).instances("train")
    assert instances.files == ["img/a/0.png", "img/b/0.png"]
    (tmp_path / "xml/1.xml").write_text(XML.format("cat"))
    with pytest.raises(InputError, match=r"1.xml may be of .*1.png or of .*1.png: put it beside"):
        VOCFolder(str(tmp_path)).instances("train")


def test_held_out_folders_are_not_trained_on(tmp_path):
    voc = images(tmp_path / "voc", *(f"{n}.png" for n in range(4)), "valid/9.png")
    for file in voc.rglob("*.png"):
        file.with_suffix(".xml").write_text(XML.format("cat"))
    assert VOCFolder(str(voc)).instances("train").files == [f"{n}.png" for n in range(4)]
    yolo = images(tmp_path / "yolo", *(f"images/{n}.png" for n in range(4)), "images/val/9.png")
    for file in yolo.rglob("*.png"):
        label = Path(str(file).replace("images", "labels")).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.5 0.5\n")
    (yolo / "data.yaml").write_text("val: images/val\nnames: [cat]\n")
    data = YOLOFolder(str(yolo))
    assert data.instances("train").files == [f"images/{n}.png" for n in range(4)]
    assert data.instances("val").files == ["images/val/9.png"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("names: [car, car]", r"data.yaml: classes have the same name"),
        ("names: [car, bus]\nnc: 3", r"data.yaml: nc is 3, and there are 2 names"),
        ("names: {0.5: a, 0: b}", r"data.yaml: names .* are not names of classes by number"),
    ],
)
def test_names_of_yolo_classes_are_checked(tmp_path, settings, words):
    (tmp_path / "data.yaml").write_text(f"train: images\n{settings}\n")
    with pytest.raises(InputError, match=words):
        _ = YOLOFolder(str(tmp_path)).class_names


def labels(folder: Path, text: str) -> ImageCSV:
    images(folder, *(f"{n}.png" for n in range(6)))
    (folder / "labels.csv").write_text(text)
    return ImageCSV(str(folder / "labels.csv"), str(folder), split=SplitShares(0.3))


ROWS = [f"{n}.png,{('cat', 'dog')[n % 2]}" for n in range(6)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n".join(["file,label", *ROWS[:3], '3.png,"dog', *ROWS[4:]]), r"a cell of several lines"),
        (
            "file,label,split\n" + "\n".join(f"{row},{s}" for row, s in zip(
                ROWS, ["train", "val", "train", "extra", "val", "train"], strict=True
            )),
            r"line 5: the split 'extra' is none of",
        ),
    ],
)  # fmt: skip
def test_lines_of_a_csv_that_mislead_are_named(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        labels(tmp_path, text).setup("fit")


def test_classes_have_one_order():
    assert in_order({"1", "01", "001", "2"}) == ["001", "01", "1", "2"]
    assert in_order({"--1", "2"}) == ["--1", "2"]


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    images(tmp_path, name, "b.png")
    files = list_images(tmp_path).files
    assert divide(files, None, SplitShares(0.5))["val"]
    data = ImageFolder(str(images(tmp_path / "set", f"a/{name}", "b/1.png", "a/2.png", "b/3.png")),
                       image_size=8, split=SplitShares(0.5))  # fmt: skip
    data.setup("fit")
    assert data.state_dict()["division"]


def test_damaged_headers_are_no_tracebacks(tmp_path):
    files = []
    for ending, content in {
        "dds": b"DDS " + b"\x7c\0\0\0" + bytes(60) + b"\xff" * 60,
        "avif": b"\0\0\0\x1cftypavif" + bytes(40),
        "jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\xff" * 60,
        "tif": b"II*\0\x08\0\0\0\xff\xff",
    }.items():
        files.append(str(tmp_path / f"a.{ending}"))
        Path(files[-1]).write_bytes(content)
    Image.fromarray(np.array([[-1.0, 1.0]], np.float32)).save(tmp_path / "negative.tif")
    files.append(str(tmp_path / "negative.tif"))
    assert sorted(broken_images(files)) == sorted(files)
    for file in files:
        with pytest.raises(InputError, match=Path(file).name):
            read_image(file)
        image_size(file)  # or None, but no traceback


def test_pipes_and_folders_that_link_to_each_other(tmp_path):
    images(tmp_path, *(f"{name}/0.png" for name in "abcdefg"))
    for name in "abcdefg":
        for other in set("abcdefg") - {name}:
            (tmp_path / name / other).symlink_to(tmp_path / other)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "nothing.png").symlink_to(tmp_path / "away.png")
    found = list_images(tmp_path)
    assert len(found.files) == 7
    assert len(found.left_out["no files, or links to nothing"]) == 2


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [{"id": 1180591620717411303424, "file_name": "a", "width": 8, "height": 8}]',
        '{"images": [{"id": 1, "file_name": "a", "width": 1e300, "height": 8}]',
        '{"images": [' + "[" * 100_000 + "]",
    ],
)
def test_numbers_and_depths_that_no_file_has(tmp_path, text):
    more = ', "annotations": [], "categories": [{"id": 1, "name": "a"}]}'
    (tmp_path / "a.json").write_text(text + more)
    with pytest.raises(InputError, match=r"a\.json"):
        read_instances(str(tmp_path / "a.json"), "key")
