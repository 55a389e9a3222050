"""Detection data in the formats that tools export: the same scenes give the same targets."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attention_vision.data.splits import SplitShares
from attention_vision.detection import (
    COCOFolder,
    DETRAugmentation,
    InstanceMaskFolder,
    VOCFolder,
    YOLOFolder,
)
from attention_vision.detection.coco_annotations import read_instances
from attention_vision.errors import InputError
from attention_vision.training.labels import Labels

AS_STORED = DETRAugmentation(flip=0.0, short_sides=(48,), longest=96, crop=0.0, evaluation=48)
NAMES = ("cat", "dog")
BOXES = {  # image -> (class, xyxy) of its objects
    "a": [(0, (4, 6, 20, 30))],
    "b": [(1, (10, 8, 50, 40)), (0, (0, 0, 64, 48))],
    "c": [],
    "d": [(1, (30, 20, 60, 44))],
}
OPTIONS = {"recipe": AS_STORED, "batch_size": 2, "num_workers": 0}


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (90, len(path.stem) * 20, 30)).save(path)


def voc_xml(name: str, size: tuple[int, int] = (64, 48), more: str = "") -> str:
    objects = "".join(
        f"<object><name>{NAMES[label]}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, (x1, y1, x2, y2) in BOXES[name]
    )
    return (
        f"<annotation><filename>C:\\photos\\{name}.png</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height></size>{objects}{more}</annotation>"
    )


def yolo_lines(name: str) -> str:
    return "".join(
        f"{label} {(x1 + x2) / 128} {(y1 + y2) / 96} {(x2 - x1) / 64} {(y2 - y1) / 48}\n"
        for label, (x1, y1, x2, y2) in BOXES[name]
    )


def coco_dict(names: str, first_id: int = 1) -> dict:
    """An instances file of some images, named by their letters."""
    objects = [
        (index, label, box) for index, name in enumerate(names) for label, box in BOXES[name]
    ]
    return {
        "images": [
            {"id": index, "file_name": f"{name}.png", "width": 64, "height": 48}
            for index, name in enumerate(names)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": index,
                "category_id": label + first_id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for number, (index, label, (x1, y1, x2, y2)) in enumerate(objects)
        ],
        "categories": [{"id": k + first_id, "name": name} for k, name in enumerate(NAMES)],
    }


def coco(root: Path) -> COCOFolder:
    for split, names in (("train", "abc"), ("val", "d")):
        for name in names:
            image(root / split / f"{name}.png")
        (root / f"{split}.json").write_text(json.dumps(coco_dict(names)))
    paths = [str(root / name) for name in ("train", "train.json", "val", "val.json")]
    return COCOFolder(*paths, **OPTIONS)


def voc(root: Path) -> VOCFolder:
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets/Main").mkdir(parents=True)
    for name in BOXES:
        image(root / "JPEGImages" / f"{name}.png")
        (root / "Annotations" / f"{name}.xml").write_text(voc_xml(name))
    (root / "ImageSets/Main/train.txt").write_text("a\nb\nc\n")
    (root / "ImageSets/Main/val.txt").write_text("d\n")
    return VOCFolder(str(root), **OPTIONS)


def roboflow_voc(root: Path) -> VOCFolder:
    for split, names in (("train", "abc"), ("valid", "d")):
        for name in names:
            image(root / split / f"{name}.png")
            (root / split / f"{name}.xml").write_text(voc_xml(name, (0, 0)))
    return VOCFolder(str(root), **OPTIONS)


def roboflow_yolo(root: Path) -> YOLOFolder:
    for split, names in (("train", "abc"), ("valid", "d")):
        (root / split / "labels").mkdir(parents=True)
        for name in names:
            image(root / split / "images" / f"{name}.png")
            (root / split / "labels" / f"{name}.txt").write_text(yolo_lines(name))
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n"
    )
    return YOLOFolder(str(root), **OPTIONS)


def ultralytics(root: Path) -> YOLOFolder:
    for split, names in (("train", "abc"), ("val", "d")):
        (root / "labels" / split).mkdir(parents=True)
        for name in names:
            image(root / "images" / split / f"{name}.png")
            if BOXES[name]:  # an image without a file has no objects
                (root / "labels" / split / f"{name}.txt").write_text(yolo_lines(name))
    (root / "mine.yaml").write_text(
        "path: nowhere\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n"
    )
    return YOLOFolder(str(root / "mine.yaml"), **OPTIONS)


def lists(root: Path) -> YOLOFolder:
    for name in BOXES:
        image(root / "images" / f"{name}.png")
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{name}.txt").write_text(yolo_lines(name))
    (root / "train.txt").write_text("images/a.png\nimages/b.png\nimages/c.png\n")
    (root / "val.txt").write_text(f"{root}/images/d.png\n")
    (root / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    return YOLOFolder(str(root), **OPTIONS)


@pytest.mark.parametrize("layout", [coco, voc, roboflow_voc, roboflow_yolo, ultralytics, lists])
def test_all_formats_give_the_same_targets(tmp_path, layout):
    data = layout(tmp_path)
    assert (data.num_classes, tuple(data.class_names)) == (2, NAMES)
    data.setup("fit")
    for images, names in ((data.train_images, "abc"), (data.val_images, "d")):
        assert len(images) == len(names)
        for index, name in enumerate(names):
            _, target = images[index]
            boxes = torch.tensor([box for _, box in BOXES[name]], dtype=torch.float32).view(-1, 4)
            corners = (boxes[:, :2], boxes[:, 2:])
            centered = torch.cat(((corners[0] + corners[1]) / 2, corners[1] - corners[0]), 1)
            expected = centered / torch.tensor([64.0, 48, 64, 48])
            assert torch.allclose(target["boxes"], expected, atol=1e-5)
            assert target["labels"].tolist() == [label for label, _ in BOXES[name]]
            assert torch.allclose(target["area"], (corners[1] - corners[0]).prod(1), rtol=1e-4)
    assert data.facts("train")["classes"] == {"cat": 2, "dog": 1}
    with pytest.raises(InputError, match=r"has no test split here"):
        data.setup("test")


def test_images_without_a_split_are_divided(tmp_path):
    for number in range(10):
        name = "abcd"[number % 4]
        image(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.xml").write_text(voc_xml(name))
    data = VOCFolder(str(tmp_path), split=SplitShares(0.2, 0.2), **OPTIONS)
    data.setup("fit")
    data.setup("test")
    parts = [len(data.train_images), len(data.val_images), len(data.test_images)]
    assert sum(parts) == 10
    assert min(parts) >= 1
    undivided = VOCFolder(str(tmp_path), **OPTIONS)
    with pytest.raises(InputError, match=r"VOCFolder has no val images: set data.split.val"):
        undivided.setup("fit")


def test_files_of_the_voc_challenge_count_pixels_from_1(tmp_path):
    image(tmp_path / "a.png")
    source = "<source><database>The VOC2007 Database</database></source>"
    (tmp_path / "a.xml").write_text(voc_xml("a", more=source))
    data = VOCFolder(str(tmp_path), **OPTIONS)
    assert data.instances("train").boxes.tolist() == [[3, 5, 20, 30]]


def test_difficult_objects_are_not_trained_on(tmp_path):
    image(tmp_path / "b.png")
    text = voc_xml("b").replace("<difficult>0", "<difficult>1", 1)
    (tmp_path / "b.xml").write_text(text)
    data = VOCFolder(str(tmp_path), **OPTIONS)
    with pytest.warns(UserWarning, match=r"1 difficult objects not trained on"):
        assert data.instances("train").iscrowd.tolist() == [1, 0]


def test_polygons_turned_boxes_and_confidences_of_yolo(tmp_path):
    image(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    (tmp_path / "labels/a.txt").write_text(
        "0 0.25 0.25 0.5 0.25 0.5 0.75\n"  # a triangle
        "1 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5\n"  # a turned box
        "1 0.5 0.5 0.5 0.5 0.9\n"  # with a confidence
    )
    with pytest.warns(UserWarning, match=r"1 confidences of boxes left out"):
        instances = YOLOFolder(str(tmp_path), **OPTIONS).instances("train")
    expected = [[16, 12, 32, 36], [16, 12, 48, 36], [16, 12, 48, 36]]
    assert instances.boxes.tolist() == expected


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 0.5 0.5 0.1 0.1", r"a.txt, line 1: class 2 is not among the 2 names of .*data.yaml"),
        ("cat 0.5 0.5 0.1 0.1", r"line 1: 'cat 0.5 0.5 0.1 0.1' is not a class and numbers"),
        ("0 0.5 0.5 0.1", r"line 1: 3 numbers behind the class"),
        ("0 30 20 10 10", r"line 1: '0 30 20 10 10' is not in shares of the image"),
    ],
)
def test_bad_lines_of_yolo_are_named(tmp_path, line, words):
    image(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    (tmp_path / "labels/a.txt").write_text(line)
    with pytest.raises(InputError, match=words):
        YOLOFolder(str(tmp_path), **OPTIONS).instances("train")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation>", r"a.xml is not a whole XML file"),
        ("<labels/>", r"a.xml is not a Pascal VOC annotation: its root is <labels>"),
        (voc_xml("a").replace("<xmin>4", "<xmin>x"), r"a.xml: bndbox/xmin of an object is 'x4?'"),
        (voc_xml("a").replace("<name>cat", "<name>"), r"a.xml: an object has no name"),
    ],
)
def test_bad_files_of_voc_are_named(tmp_path, text, words):
    image(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(InputError, match=words) as error:
        VOCFolder(str(tmp_path), **OPTIONS).instances("train")
    assert "\n" not in str(error.value)


def test_boxes_of_masks_of_instances(tmp_path):
    levels = np.zeros((48, 64), np.uint8)
    levels[6:30, 4:20] = 1
    levels[10:20, 40:60] = 2
    for number in range(5):
        image(tmp_path / f"PNGImages/P{number}.png")
        (tmp_path / "PedMasks").mkdir(exist_ok=True)
        Image.fromarray(levels).save(tmp_path / f"PedMasks/P{number}_mask.png")
    folders = str(tmp_path / "PNGImages"), str(tmp_path / "PedMasks")
    data = InstanceMaskFolder(
        *folders, SplitShares(0.2), "person", mask_pattern="{name}_mask", **OPTIONS
    )
    data.setup("fit")
    assert (len(data.train_images), len(data.val_images)) == (4, 1)
    assert data.val_images.source[0][2].boxes.tolist() == [[4, 6, 20, 30], [40, 10, 60, 20]]
    assert data.val_images.source[0][2].area.tolist() == [24 * 16, 200]
    other = InstanceMaskFolder(*folders, SplitShares(0.2), **OPTIONS)
    with pytest.raises(InputError, match=r"P0.png has no mask P0\.\* in .*: set data.mask_pattern"):
        other.setup("fit")


def written(folder: Path, name: str = "train.json", **changes) -> Path:
    """An instances file, each annotation changed by a function of it, or a list replaced."""
    content = coco_dict("abcd")
    for key, change in changes.items():
        if callable(change):
            for entry in content[key]:
                change(entry)
        else:
            content[key] = change
    file = folder / name
    file.write_text(json.dumps(content))
    return file


def test_a_byte_order_mark_is_read_over(tmp_path):
    file = tmp_path / "train.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(coco_dict("abcd")).encode())
    assert len(read_instances(str(file), "data.train_annotations").boxes) == 4


def test_a_root_category_is_left_out(tmp_path):
    categories = [{"id": 0, "name": "animals", "supercategory": "none"}]
    categories += [
        {"id": k + 1, "name": n, "supercategory": "animals"} for k, n in enumerate(NAMES)
    ]
    file = written(tmp_path, categories=categories)
    with pytest.warns(UserWarning, match=r"1 categories left out that have no objects .*animals"):
        assert read_instances(str(file), "key").categories == {1: "cat", 2: "dog"}
    used = written(tmp_path, categories=categories, annotations=lambda a: a.update(category_id=0))
    assert 0 in read_instances(str(used), "key").categories


def test_areas_of_0_are_those_of_the_boxes(tmp_path):
    file = written(tmp_path, annotations=lambda a: a.update(area=0))
    with pytest.warns(UserWarning, match=r"4 areas missing"):
        instances = read_instances(str(file), "key")
    assert instances.area.tolist() == [384, 1280, 3072, 720]


def test_crowds_of_annotation_tools_are_counted(tmp_path):
    file = written(tmp_path, annotations=lambda a: a.update(iscrowd=1))
    for name in "abcd":
        image(tmp_path / "images" / f"{name}.png")
    data = COCOFolder(str(tmp_path / "images"), str(file), split=SplitShares(0.3), **OPTIONS)
    with pytest.warns(UserWarning, match=r"4 of the 4 objects are crowds \(iscrowd 1\)"):
        read_instances(str(file), "key")
    warnings.simplefilter("ignore")
    with pytest.raises(InputError, match=r"train.json: no objects to train on: .* are crowds"):
        data.setup("fit")


def shares(annotation: dict) -> None:
    annotation["bbox"] = [number / 100 for number in annotation["bbox"]]


def corners(annotation: dict) -> None:
    x, y, width, height = annotation["bbox"]
    annotation["bbox"] = [x, y, x + width, y + height]


@pytest.mark.parametrize(
    ("change", "words"),
    [(shares, r"all 4 boxes lie in 0..1, as shares"), (corners, r"all fit as two corners")],
)
def test_boxes_that_are_not_in_pixels_are_smelt(tmp_path, change, words):
    file = written(tmp_path, annotations=change)
    with pytest.warns(UserWarning, match=words):
        warned = read_instances(str(file), "key").warnings
    assert len(warned) == 1


@pytest.mark.parametrize("name", ["deep\\a.png", "images/deep/a.png", "/elsewhere/a.png", "a.png"])
def test_images_are_found_under_other_paths(tmp_path, name):
    content = coco_dict("a")
    content["images"][0]["file_name"] = name
    (tmp_path / "train.json").write_text(json.dumps(content))
    image(tmp_path / "images/deep/a.png")
    data = COCOFolder(str(tmp_path / "images"), str(tmp_path / "train.json"), None, None, **OPTIONS)
    source = data.source("train")
    assert source.files == [str(tmp_path / "images/deep/a.png")]
    assert "1 images found under another path" in data.findings["train"].repaired[0]


def test_one_file_does_not_stand_for_two_images(tmp_path):
    content = coco_dict("ab")
    for entry, name in zip(content["images"], ("x/0.png", "y/0.png"), strict=True):
        entry["file_name"] = name
    (tmp_path / "train.json").write_text(json.dumps(content))
    image(tmp_path / "images/0.png")
    data = COCOFolder(str(tmp_path / "images"), str(tmp_path / "train.json"), **OPTIONS)
    with pytest.raises(InputError, match=r"1 of the 2 images .* the first is y/0.png"):
        data.source("train")


def test_a_strip_of_pixels_keeps_a_side(tmp_path):
    for turned, size in enumerate([(3000, 1), (1, 3000)]):
        shape = DETRAugmentation(flip=0.0, short_sides=(64,), longest=96, crop=1.0, evaluation=64)
        strip = Image.new("RGB", size)
        for transform in (shape.train, shape.evaluate):
            sides = transform((0.5,) * 3, (0.5,) * 3)(strip).shape[1:]
            assert min(sides) >= 1
        assert sides == ((1, 96), (96, 1))[turned]


def test_labels_of_trained_weights_are_kept_by_name(tmp_path):
    data = coco(tmp_path)
    data.use_labels(Labels(("dog", "fox", "cat"), (5, 6, 7)))
    (tmp_path / "train.json").unlink()
    data.setup("validate")
    assert data.val_images[0][1]["labels"].tolist() == [0]
    other = coco(tmp_path / "other")
    other.use_labels(Labels(("fox", "cat"), (6, 7)))
    with pytest.raises(InputError, match=r"val.json: dog is not among the 2 classes"):
        other.setup("validate")


def test_predict_keeps_the_ids_of_an_instances_file(tmp_path):
    data = coco(tmp_path)
    content = json.loads((tmp_path / "val.json").read_text())
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = 77
    (tmp_path / "val.json").write_text(json.dumps(content))
    data.images = str(tmp_path / "val")
    data.setup("predict")
    assert (data.predict_images[0][1]["image_id"], data.predict_images.described) == (77, True)
    image(tmp_path / "val/another.png")
    data.setup("predict")
    assert [data.predict_images[k][1]["image_id"] for k in range(2)] == [0, 1]
    assert not data.predict_images.described
    data.use_labels(Labels(("dog", "fox", "cat"), (5, 6, 7)))
    with pytest.warns(UserWarning, match=r"val.json numbers its categories otherwise than the tra"):
        data.setup("predict")


def test_missing_images_are_skipped_on_request(tmp_path):
    data = coco(tmp_path)
    (tmp_path / "train/b.png").unlink()
    with pytest.raises(
        InputError, match=r"1 of the 3 images .* the first is b.png: set data.train"
    ):
        data.setup("fit")
    data.on_bad_image = "skip"
    data.setup("fit")
    assert len(data.train_images) == 2
    assert list(data.findings["train"].broken) == [str(tmp_path / "train/b.png")]


def test_the_wrong_class_is_told_what_it_met(tmp_path):
    voc(tmp_path)
    with pytest.raises(
        InputError, match=r"it looks like Pascal VOC: use data.class_path VOCFolder"
    ):
        YOLOFolder(str(tmp_path), **OPTIONS).setup("fit")
    folder = COCOFolder(str(tmp_path), str(tmp_path), split=SplitShares(0.2), **OPTIONS)
    with pytest.raises(InputError, match=r"looks like Pascal VOC: use data.class_path VOCFolder"):
        folder.setup("fit")
