"""Detection data as tools leave it: layouts, foreign paths, flags and smells, on a few images."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from attention_vision.data.splits import SplitShares
from attention_vision.detection.annotated_files import AnnotatedFiles
from attention_vision.detection.coco_annotations import read_instances
from attention_vision.detection.transforms import MOST_PIXELS, resized
from attention_vision.detection.voc import VOCFolder
from attention_vision.detection.yolo import YOLOFolder

HALF = SplitShares(val=0.5)
MIDDLE = [24.0, 12.0, 40.0, 36.0]  # of an image of 64x48 pixels
LINE = "0 0.5 0.5 0.25 0.5"


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48)).save(path)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_yolo(root: Path, images: str, labels: str, count: int = 2, line: str = LINE) -> None:
    for number in range(count):
        write_image(root / images / f"{number}.png")
        write_text(root / labels / f"{number}.txt", line)


def write_voc(file: Path, box: tuple[float, ...], difficult: int = 0) -> None:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    bndbox = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
    write_text(
        file,
        f"<annotation><filename>{file.stem}.png</filename>"
        "<size><width>64</width><height>48</height></size>"
        f"<object><name>cat</name><difficult>{difficult}</difficult>"
        f"<bndbox>{bndbox}</bndbox></object></annotation>",
    )


def objects_of(data: AnnotatedFiles, split: str = "train") -> dict[str, list]:
    source: Any = data.source(split)
    return {
        Path(file).name: source[index][2].boxes.tolist() for index, file in enumerate(source.files)
    }


@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        ("images", "images", "classes.txt"),  # labelImg, in a folder that is called so
        ("images", "labels", "classes.txt"),  # Label Studio
        ("obj_train_data", "obj_train_data", "obj.names"),  # CVAT
    ],
)
def test_yolo_without_data_yaml(tmp_path: Path, images: str, labels: str, names: str) -> None:
    write_yolo(tmp_path, images, labels)
    write_text(tmp_path / names, "cat\n")
    data = YOLOFolder(str(tmp_path), split=HALF)
    assert objects_of(data) | objects_of(data, "val") == {"0.png": [MIDDLE], "1.png": [MIDDLE]}


def test_a_division_of_yolo_is_the_same_wherever_the_folder_lies(tmp_path: Path) -> None:
    """By names below the root; absolute paths would divide each copy in another way."""
    parts = []
    for copy in ("a", "b", "c", "deep/d"):
        write_yolo(tmp_path / copy, "images", "labels", count=8)
        write_text(tmp_path / copy / "data.yaml", "names: [cat]\n")
        parts.append(list(objects_of(YOLOFolder(str(tmp_path / copy), split=HALF), "val")))
    assert parts == [parts[0]] * 4
    assert len(parts[0]) == 4


def test_lists_of_yolo_written_elsewhere(tmp_path: Path) -> None:
    write_yolo(tmp_path, "images/train", "labels/train")
    paths = "./images/train/0.png\n/home/someone/set/images/train/1.png\n"
    write_text(tmp_path / "train.txt", paths)
    write_text(tmp_path / "data.yaml", "train: train.txt\nval: train.txt\nnames: [cat]\n")
    assert objects_of(YOLOFolder(str(tmp_path))) == {"0.png": [MIDDLE], "1.png": [MIDDLE]}


@pytest.mark.parametrize(
    ("shape", "points"), [("[2, 2]", "0.1 0.1 0.2 0.2"), ("[2, 3]", "0.1 0.1 2 0.2 0.2 0")]
)
def test_key_points_of_yolo_leave_the_box_alone(tmp_path: Path, shape: str, points: str) -> None:
    """Without `kpt_shape`, pairs of numbers are the corners of a polygon."""
    write_yolo(tmp_path, "images", "labels", count=1, line=f"{LINE} {points}")
    yaml = f"train: images\nval: images\nnames: [cat]\nkpt_shape: {shape}\n"
    write_text(tmp_path / "data.yaml", yaml)
    assert objects_of(YOLOFolder(str(tmp_path))) == {"0.png": [MIDDLE]}


def test_a_broken_image_of_yolo_is_skipped_on_request(tmp_path: Path) -> None:
    write_yolo(tmp_path, "images", "labels")
    write_text(tmp_path / "images/0.png", "no image")
    write_text(tmp_path / "data.yaml", "train: images\nval: images\nnames: [cat]\n")
    data = YOLOFolder(str(tmp_path), on_bad_image="skip")
    assert objects_of(data) == {"1.png": [MIDDLE]}
    assert [Path(file).name for file in data.findings["train"].broken] == ["0.png"]


def test_the_folder_above_a_voc_challenge(tmp_path: Path) -> None:
    inner = tmp_path / "VOCdevkit/VOC2007"
    for number, split in enumerate(("train", "val")):
        write_image(inner / f"JPEGImages/{number}.png")
        write_voc(inner / f"Annotations/{number}.xml", (1, 1, 20, 20))
        write_text(inner / f"ImageSets/Main/{split}.txt", f"{number}\n")
    for root in (inner, tmp_path, tmp_path / "VOCdevkit"):
        data = VOCFolder(str(root))
        assert (list(objects_of(data)), list(objects_of(data, "val"))) == (["0.png"], ["1.png"])


def test_difficult_objects_are_not_taken_for_brush_masks(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / f"{number}.png")
        write_voc(tmp_path / f"{number}.xml", (4, 4, 20, 20), difficult=number % 2)
    with pytest.warns(UserWarning, match=r"2 difficult objects not trained on"):
        instances = VOCFolder(str(tmp_path), split=HALF).instances("train")
    assert instances.iscrowd.sum() == 2
    assert instances.warnings == []


def test_voc_boxes_in_shares_are_warned_of(tmp_path: Path) -> None:
    write_image(tmp_path / "0.png")
    write_voc(tmp_path / "0.xml", (0.1, 0.1, 0.5, 0.5))
    with pytest.warns(UserWarning, match=r"all 1 boxes lie in 0..1, as shares of the image"):
        VOCFolder(str(tmp_path)).instances("train")


def coco(categories: list[dict[str, Any]], used: int) -> dict[str, Any]:
    annotation = {"id": 1, "image_id": 0, "category_id": used, "bbox": [1, 2, 9, 9], "area": 81}
    image = {"id": 0, "file_name": "0.png", "width": 64, "height": 48}
    return {"images": [image], "annotations": [annotation], "categories": categories}


def category(number: int, name: str, above: str) -> dict[str, Any]:
    return {"id": number, "name": name, "supercategory": above}


ROOT = category(0, "cat", "none")


@pytest.mark.parametrize(
    ("categories", "used", "expected"),
    [
        ([ROOT, category(1, "cat", "cat")], 1, {1: "cat"}),  # one class, called as its root
        ([ROOT, category(1, "a", "cat"), category(2, "b", "cat")], 1, {1: "a", 2: "b"}),
        ([ROOT, category(1, "a", "cat")], 0, {0: "cat", 1: "a"}),  # the root has an object
        ([ROOT, category(1, "a", "pets")], 1, {0: "cat", 1: "a"}),  # not above all others
        ([ROOT], 0, {0: "cat"}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*categories left out")
def test_root_categories(tmp_path: Path, categories, used, expected) -> None:
    (tmp_path / "a.json").write_text(json.dumps(coco(categories, used)))
    assert read_instances(str(tmp_path / "a.json"), "key").categories == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_windows(tmp_path: Path, encoding: str) -> None:
    file, text = tmp_path / "a.json", json.dumps(coco([category(1, "Bär", "")], 1))
    file.write_text(text.replace("\\u00e4", "ä"), encoding=encoding)
    assert read_instances(str(file), "key").categories == {1: "Bär"}


def test_a_strip_stays_small_before_it_is_cropped() -> None:
    """400 x 1,200,000 pixels would take 1.4 GB."""
    height, width = resized((1, 3000), 400, None)
    assert 1 <= height <= 400
    assert width <= MOST_PIXELS + 3000
    assert resized((480, 640), 600, None) == (600, 800)
