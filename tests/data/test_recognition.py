"""Recognition of formats, on small imitations of the layouts that people have."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attention_vision.data.formats import hint, recognize
from attention_vision.data.image_files import image_size

VOC = "<annotation><filename>1.png</filename></annotation>"
INSTANCES = {"info": {}, "images": [{"id": 1, "file_name": "1.png"}], "annotations": [],
             "categories": []}  # fmt: skip
YOLO = "names: [cat]\nnc: 1\ntrain: ../train/images\nval: ../valid/images\n"


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 6), 128).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def class_folders(root: Path) -> None:
    draw(*(root / name / f"{n}.png" for name in ("cats", "dogs") for n in range(2)))


def class_folders_of_splits(root: Path) -> None:
    for split in ("training", "valid"):
        class_folders(root / split)


def csv_of_labels(root: Path) -> None:
    draw(root / "images/a1.jpg", root / "images/b2.jpg")
    write(root / "labels.csv", "id;breed\r\na1;pug\r\nb2;boxer\r\n")
    write(root / "sample_submission.csv", "id\na1\n")


def csv_of_train_and_test(root: Path) -> None:
    draw(*(root / split / f"Image_{n}.jpg" for split in ("test", "train") for n in range(2)))
    (root / "test/Image_0.jpg").unlink()
    write(root / "Testing_set.csv", "filename\nImage_1.jpg\n")
    write(root / "Training_set.csv", "filename,label\nImage_0.jpg,rain\nImage_1.jpg,sun\n")


def parquet(root: Path) -> None:
    write(root / "data/train-00000-of-00001.parquet", "PAR1")
    write(root / "data/validation-00000-of-00001.parquet", "PAR1")


def saved_to_disk(root: Path) -> None:
    write(root / "dataset_info.json", "{}")
    write(root / "state.json", "{}")
    write(root / "data-00000-of-00001.arrow", "")


def roboflow_coco(root: Path) -> None:
    for split in ("train", "valid", "test"):
        draw(root / split / "1.png")
        write(root / split / "_annotations.coco.json", json.dumps(INSTANCES))


def coco(root: Path) -> None:
    for split in ("train2017", "val2017"):
        draw(root / "images" / split / "1.png")
        write(root / f"annotations/instances_{split}.json", json.dumps(INSTANCES))
    write(root / "annotations/captions_val2017.json", '{"images": []}')


def voc(root: Path) -> None:
    draw(root / "JPEGImages/1.png")
    write(root / "Annotations/1.xml", VOC)
    write(root / "ImageSets/Main/train.txt", "1\n")


def flat_voc(root: Path) -> None:
    draw(root / "images/1.png")
    write(root / "annotations/1.xml", VOC)
    write(root / "data/labels.csv", "filename,class\n1.png,raccoon\n")


def roboflow_yolo(root: Path) -> None:
    write(root / "data.yaml", YOLO)
    draw(root / "train/images/1.png", root / "valid/images/2.png")
    write(root / "train/labels/1.txt", "0 .5 .5 .2 .2\n")


def yolo_without_settings(root: Path) -> None:
    draw(root / "images/1.png")
    write(root / "labels/0.txt", "")
    write(root / "labels/1.txt", "0 0.5 0.5 0.25 1e-1\n")


def drive(root: Path) -> None:
    for split, first in (("training", 21), ("test", 1)):
        for n in range(first, first + 3):
            draw(root / split / f"images/{n:02}_{split}.tif")
            draw(root / split / f"1st_manual/{n:02}_manual1.gif")
            draw(root / split / f"mask/{n:02}_{split}_mask.gif")


def masks_of_all_splits(root: Path) -> None:
    for split, n in (("train", 1), ("valid", 2), ("test", 3)):
        draw(root / split / f"photos/{n}.jpg", root / split / f"groundtruth/{n}_gt.png")


def penn_fudan(root: Path) -> None:
    for n in range(3):
        draw(root / f"PNGImages/FudanPed{n:05}.png", root / f"PedMasks/FudanPed{n:05}_mask.png")


def masks_beside_images(root: Path) -> None:
    for name in ("01L", "01R", "02L"):
        draw(root / f"Image_{name}.jpg", root / f"Image_{name}_1stHO.png")
        draw(root / f"Image_{name}_2ndHO.png")


def masks_of_splits(root: Path) -> None:
    for split in ("train", "val"):
        draw(root / "images" / split / "a.jpg", root / "masks" / split / "a.png")


def flat(root: Path) -> None:
    draw(root / "1.png", root / "2.png")


SPLIT = {"split": {"val": 0.2}}
CASES = {  # function -> (name, reader, arguments with paths below the root)
    class_folders: ("folders of classes", "ImageFolder", {"root": ""} | SPLIT),
    class_folders_of_splits: ("folders of classes", "ImageFolder", {"root": ""}),
    csv_of_labels: ("a CSV of labels", "ImageCSV", {"csv": "labels.csv"} | SPLIT),
    csv_of_train_and_test: (
        "a CSV of labels", "ImageCSV", {"csv": "Training_set.csv", "root": "train"} | SPLIT,
    ),
    parquet: ("a Hugging Face data set (parquet)", "HuggingFaceImages", {"root": ""}),
    saved_to_disk: (
        "a Hugging Face data set (save_to_disk)", "HuggingFaceImages", {"root": ""} | SPLIT,
    ),
    roboflow_coco: ("COCO", "COCOFolder", {
        f"{key}_{what}": place
        for key, folder in (("train", "train"), ("val", "valid"), ("test", "test"))
        for what, place in (("images", folder), ("annotations", f"{folder}/_annotations.coco.json"))
    }),
    coco: ("COCO", "COCOFolder", {
        f"{key}_{what}": place
        for key in ("train", "val")
        for what, place in (
            ("images", f"images/{key}2017"),
            ("annotations", f"annotations/instances_{key}2017.json"),
        )
    }),
    voc: ("Pascal VOC", "VOCFolder", {"root": ""} | SPLIT),
    flat_voc: ("Pascal VOC", "VOCFolder", {"root": ""} | SPLIT),
    roboflow_yolo: ("YOLO", "YOLOFolder", {"root": ""}),
    yolo_without_settings: ("YOLO", "YOLOFolder", {"root": ""} | SPLIT),
    drive: ("images with masks", "MaskFolder", {
        "train_images": "training/images", "train_masks": "training/1st_manual",
        "image_pattern": "{name}_training.tif", "mask_pattern": "{name}_manual1.gif",
    } | SPLIT),
    masks_of_all_splits: ("images with masks", "MaskFolder", {
        f"{key}_{what}": f"{folder}/{place}"
        for key, folder in (("train", "train"), ("val", "valid"), ("test", "test"))
        for what, place in (("images", "photos"), ("masks", "groundtruth"))
    } | {"image_pattern": "{name}.jpg", "mask_pattern": "{name}_gt.png"}),
    penn_fudan: ("images with masks", "MaskFolder", {
        "train_images": "PNGImages", "train_masks": "PedMasks",
        "image_pattern": "FudanPed{name}.png", "mask_pattern": "FudanPed{name}_mask.png",
    } | SPLIT),
    masks_beside_images: ("images with masks", "MaskFolder", {
        "train_images": "", "train_masks": "",
        "image_pattern": "Image_{name}.jpg", "mask_pattern": "Image_{name}_1stHO.png",
    } | SPLIT),
    masks_of_splits: ("images with masks", "MaskFolder", {
        "train_images": "images/train", "train_masks": "masks/train",
        "val_images": "images/val", "val_masks": "masks/val",
    }),
    flat: ("a folder of images", "FolderImages", {"root": ""}),
}  # fmt: skip


def below(root: Path, arguments: dict) -> dict:
    """The arguments with their paths made relative to the root."""
    place = str(root)
    return {
        key: value.removeprefix(place).strip("/") if isinstance(value, str) else value
        for key, value in arguments.items()
    }


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_layout_is_recognized_alone_and_inside_of_another_folder(make, tmp_path):
    root = tmp_path / "outer" / "set"
    make(root)
    write(root / ".DS_Store", "")
    draw(root / "__MACOSX/_1.png")
    name, reader, arguments = CASES[make]
    for path in (root, tmp_path / "outer"):
        found = recognize(path)
        assert found is not None
        assert (found.name, found.root) == (name, root)
        dotted = found.reader()
        assert dotted.rpartition(".")[2] == reader
        assert below(root, found.readers[dotted]) == arguments
    assert hint(root) == f"; it looks like {name}: use data.class_path " + " or ".join(
        f"{one.rpartition('.')[2]} of {one.split('.')[1]}" for one in found.readers
    )
    assert hint(root, asked=reader) == ""
    assert hint(tmp_path / "outer", asked=reader) == f"; set the path to {root}"


@pytest.mark.parametrize(
    ("make", "part"),
    [(voc, "Annotations"), (roboflow_yolo, "train"), (roboflow_coco, "valid"),
     (class_folders_of_splits, "training"), (csv_of_labels, "images"), (drive, "training")],
)  # fmt: skip
def test_part_of_a_set_leads_to_the_whole(make, part, tmp_path):
    make(tmp_path)
    found = recognize(tmp_path / part)
    assert found is not None
    assert found.root == tmp_path


def test_one_file_of_annotations_stands_for_its_set(tmp_path):
    csv_of_labels(tmp_path)
    write(tmp_path / "fold_1.csv", "id;breed\na1;pug\n")
    found = recognize(tmp_path / "fold_1.csv")
    assert found is not None
    assert found.readers[found.reader()]["csv"] == str(tmp_path / "fold_1.csv")
    assert recognize(tmp_path / "images/a1.jpg") is None


def test_what_is_not_ready_to_read_says_what_to_do(tmp_path):
    write(tmp_path / "set.zip", "PK")
    assert hint(tmp_path) == "; it looks like an archive: unpack set.zip first"
    (tmp_path / "empty").mkdir()
    assert hint(tmp_path / "empty") == ""
    assert hint(tmp_path / "missing") == f"; {tmp_path / 'missing'} does not exist"
    write(tmp_path / "notes/a.txt", "0 apples and 3 pears")
    assert recognize(tmp_path / "notes") is None


def test_classes_are_not_taken_for_masks(tmp_path):
    draw(*(tmp_path / name / f"{n}.png" for name in ("with_mask", "without_mask") for n in (1, 2)))
    found = recognize(tmp_path)
    assert found is not None
    assert found.name == "folders of classes"


def test_numbered_objects_in_masks_are_detected_too(tmp_path):
    penn_fudan(tmp_path)
    found = recognize(tmp_path)
    assert found is not None
    reader = found.reader("InstanceMaskFolder")
    assert below(tmp_path, found.readers[reader]) == {
        "images_folder": "PNGImages", "masks_folder": "PedMasks", "mask_pattern": "{name}_mask",
    } | SPLIT  # fmt: skip


def test_readers_exist(tmp_path):
    for make in CASES:
        make(tmp_path / make.__name__)
        found = recognize(tmp_path / make.__name__)
        assert found is not None
        for dotted in found.readers:
            module, _, name = dotted.rpartition(".")
            assert hasattr(importlib.import_module(module), name), dotted
        shutil.rmtree(tmp_path / make.__name__)


def test_size_from_a_header_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    write(tmp_path / "broken.jpg", "no image")
    assert image_size(tmp_path / "turned.jpg") == (6, 8)
    assert image_size(tmp_path / "broken.jpg") is None
