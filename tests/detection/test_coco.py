"""COCO-format files: labels, images of every kind, repairs, the one clear line for bad files."""

import io
import os
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folder import fitted, load, opened, save
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from pycocotools.coco import COCO as Pycocotools
from pycocotools.cocoeval import COCOeval

from attention_vision.detection.average_precision import COCOAveragePrecision
from attention_vision.detection.boxes import to_pixels
from attention_vision.detection.coco import COCO, COCOFolder
from attention_vision.detection.predictions import DetectionResults
from attention_vision.errors import InputError, one_line

SHARED = Path(os.environ.get("ATTENTION_VISION_DATA", "/nowhere"))
needs_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="set ATTENTION_VISION_DATA to a folder with coco_mini and bccd"
)


def test_labels_are_contiguous_or_the_category_ids(folder: Path) -> None:
    dense, sparse = fitted(folder), fitted(folder, labels="category_ids")
    assert (dense.num_classes, dense.category_ids, dense.class_names) == (2, (3, 7), ("cat", "dog"))
    assert (sparse.num_classes, sparse.category_ids) == (8, tuple(range(8)))
    assert sparse.class_names == ("N/A",) * 3 + ("cat",) + ("N/A",) * 3 + ("dog",)
    from_1 = fitted(folder, labels="category_ids_from_1")
    assert (from_1.num_classes, from_1.category_ids) == (7, tuple(range(1, 8)))
    assert from_1.class_names == sparse.class_names[1:]
    for number, annotation in enumerate(load(folder, "val")["annotations"][:5], 1):
        for data in (dense, sparse, from_1):
            label = int(data.val_images[number][1]["labels"][0])
            assert data.category_ids[label] == annotation["category_id"]


def test_coco_is_known_without_files() -> None:
    data = COCO("nowhere")
    assert data.num_classes == 91
    assert data.class_names[1] == "person"
    assert data.class_names[90] == "toothbrush"
    assert COCO("nowhere", labels="contiguous").num_classes == 80
    from_1 = COCO("nowhere", labels="category_ids_from_1")
    assert (from_1.num_classes, from_1.class_names[0]) == (90, "person")
    with pytest.raises(InputError, match=r"set data.root to a COCO instances file"):
        data.setup("fit")


def test_turned_grey_and_transparent_images(folder: Path) -> None:
    instances = load(folder, "val")
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:, :45] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise: the upper half will be white
    for number, size in ((0, (60, 90)), (1, (90, 60))):  # upright, and as it is stored
        Image.fromarray(pixels).save(folder / "val" / f"{number}.jpg", exif=exif, quality=95)
        entry = dict(zip(("width", "height"), size, strict=True))
        instances["images"][number] |= {"file_name": f"{number}.jpg", **entry}
    for number, mode in ((2, "L"), (3, "RGBA"), (4, "P"), (5, "LA")):
        path = folder / "val" / f"{number}.png"
        Image.open(path).convert("RGB").convert(mode[:1] if mode == "P" else mode).save(path)
    save(folder, "val", instances)
    data = fitted(folder)
    upright, stored = (data.val_images[index][0] for index in (0, 1))
    assert upright.shape == (3, 72, 48)
    assert upright[:, :30].mean() > upright[:, 42:].mean() + 1
    assert stored.shape == (3, 48, 72)
    assert stored[:, :, :30].mean() > stored[:, :, 42:].mean() + 1
    assert all(data.val_images[index][0].shape[0] == 3 for index in range(6))
    for number in (0, 1):
        (folder / "val" / f"{number}.png").unlink()
    data.images = str(folder / "val")  # of which the file describes all now
    data.setup("predict")
    for image, target in (data.predict_images[index] for index in range(len(data.predict_images))):
        index = data.val_images.source.files.index(target["path"])
        seen, expected = data.val_images[index]
        assert torch.equal(image, seen)
        assert torch.equal(target["orig_size"], expected["orig_size"])
        assert target["image_id"] == expected["image_id"]


def test_repairs_are_counted_in_one_warning(folder: Path) -> None:
    instances = load(folder)
    boxes = ([4, 4, 0, 9], [4, 4, -3, 9], [80, 50, 30, 30], [200, 4, 9, 9], [-0.2, 0, 40, 40])
    for number, box in enumerate(boxes, 200):
        entry = {"id": number, "image_id": 10, "category_id": 3, "bbox": list(box), "area": 9}
        instances["annotations"].append(entry)
    one, two, *_ = instances["annotations"]
    instances["annotations"] += [one, {**two, "bbox": [1, 1, 9, 9]}]
    del instances["annotations"][2]["area"]
    save(folder, "train", instances)
    with pytest.warns(UserWarning, match=r"train.json: .*dropped") as caught:
        data = fitted(folder)
    (line,) = (str(w.message) for w in caught if "train.json" in str(w.message))
    assert "\n" not in line
    for part in (
        r"2 boxes without area dropped \(first: annotation 200 of 1.png \(90x60\): \[4, 4, 0,",
        r"1 boxes clipped to their image \(first: annotation 202",
        r"1 boxes wholly outside their image dropped \(first: annotation 203",
        r"1 areas missing or 0, width x height of the box taken \(first: annotation 3",
        r"1 annotations that stand there twice dropped \(first: annotation 1\)",
        r"1 annotations kept whose id another one has too \(first: annotation 2\)",
    ):
        assert re.search(part, line), part
    _, _, objects = data.train_images.source[1]
    assert objects.boxes[2].tolist() == [80, 50, 90, 60]
    assert objects.boxes[3].tolist() == pytest.approx([-0.2, 0, 39.8, 40])  # within rounding
    assert data.train_images.source[3][2].area.tolist() == [720]


def test_clean_data_warns_of_nothing(folder: Path, recwarn) -> None:
    fitted(folder)
    assert not [w for w in recwarn if ".json" in str(w.message)]


def changed(part: str, place: int, **fields: Any):
    def change(folder: Path) -> COCOFolder:
        instances = load(folder)
        instances[part][place] |= fields
        save(folder, "train", instances)
        return fitted(folder)

    return change


def without(part: str, key: str):
    def change(folder: Path) -> COCOFolder:
        instances = load(folder)
        del instances[part][0][key]
        save(folder, "train", instances)
        return fitted(folder)

    return change


def truncated(folder: Path) -> None:
    path = folder / "train.json"
    path.write_text(path.read_text()[:-30])
    fitted(folder)


def other_json(folder: Path) -> None:
    save(folder, "train", [1, 2])
    fitted(folder)


def no_annotations(folder: Path) -> None:
    (folder / "train.json").unlink()
    fitted(folder)


def missing_file(folder: Path) -> None:
    (folder / "train" / "4.png").unlink()
    fitted(folder)


def no_image(folder: Path) -> None:
    (folder / "train" / "4.png").write_text("text")
    list(fitted(folder).train_dataloader())


def other_image(folder: Path) -> None:
    Image.new("RGB", (30, 20)).save(folder / "train" / "4.png")
    list(fitted(folder).train_dataloader())


def val_with_other_classes(folder: Path) -> None:
    save(folder, "val", {**load(folder, "val"), "categories": [{"id": 3, "name": "emu"}]})
    save(folder, "val", {**load(folder, "val"), "annotations": []})
    fitted(folder)


def category_0(folder: Path) -> None:
    instances = load(folder)
    instances["categories"].append({"id": 0, "name": "emu"})
    save(folder, "train", instances)
    fitted(folder, labels="category_ids_from_1")


NAN = float("nan")


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (truncated, r"train.json is not a whole JSON file: copy it again"),
        (other_json, r"train.json is not a COCO instances file: it has no list called images"),
        (no_annotations, r"cannot read .*train.json: set data.train_annotations"),
        (without("images", "file_name"), r"image 0 of .*train.json has no file_name"),
        (without("annotations", "bbox"), r"annotation 1 of .*train.json has no bbox"),
        (without("categories", "name"), r"category 0 of .*train.json has no name"),
        (changed("annotations", 0, category_id=4), r"unknown category 4; known: 3, 7"),
        (changed("annotations", 0, category_id=[4]), r"unknown category \[4\]; known: 3, 7"),
        (changed("annotations", 0, image_id=5), r"image 5, which the file does not list"),
        (changed("annotations", 0, bbox=[1, NAN, 2, 3]), r"1 of .*: bbox \[1, nan, 2, 3\] is not"),
        (changed("annotations", 0, bbox=[1, 2, 3]), r"bbox \[1, 2, 3\] is not x, y, width, height"),
        (changed("images", 2, id=10), r"image id 10 stands twice, for 1.png and 2.png"),
        (changed("images", 2, id="b"), r"image id 'b' of 2.png is not a whole number"),
        (changed("images", 2, width=0), r"width 0 and height 80 of 2.png are not a size"),
        (changed("categories", 1, id=3), r"category id 3 stands twice, for cat and dog"),
        (category_0, r"category_ids_from_1: there is a category 0 \(emu\), take category_ids"),
        (missing_file, r"1 of the 6 images .* the first is 4.png: set data.train_images"),
        (no_image, r"cannot read the image .*train/4.png: repair or remove it"),
        (other_image, r"4.png is 30x20 pixels, .*train.json says 50x80"),
        (val_with_other_classes, r"val.json: category 3 \(emu\) is cat in .*train.json"),
    ],
)
def test_bad_files_are_one_clear_line(folder: Path, bad, line: str) -> None:
    with pytest.raises(InputError) as caught:
        bad(folder)
    message = one_line(caught.value)
    assert re.search(line, message), message
    assert "\n" not in message


def shared(name: str, train: str, val: str, **options: Any) -> COCOFolder:
    root = SHARED / name
    paths = [root / train, root / "instances_train.json", root / val, root / "instances_val.json"]
    return COCOFolder(*map(str, paths), num_workers=0, **options)


@needs_data
def test_real_folders(tmp_path: Path, recwarn) -> None:
    cells = shared("bccd", "images", "images", group_by_shape=True)
    assert (cells.category_ids, cells.class_names) == ((1, 2, 3), ("RBC", "WBC", "Platelets"))
    objects = shared("coco_mini", "images/train2017", "images/val2017", labels="category_ids")
    assert objects.class_names == COCO("nowhere").class_names
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        images, file = f"{split}2017", f"instances_{split}.json"
        (tmp_path / images).symlink_to(SHARED / "coco_mini" / "images" / images)
        target = tmp_path / "annotations" / f"instances_{split}2017.json"
        target.symlink_to(SHARED / "coco_mini" / file)
    for data in (cells, objects, COCO(str(tmp_path), num_workers=0)):
        data.setup("fit")
        for loader in (data.train_dataloader(), data.val_dataloader()):
            images, padding_mask, targets = next(iter(loader))
            assert images.shape[0] == padding_mask.shape[0] == len(targets) == 2
            for target in targets:
                assert (target["boxes"][:, :2] <= 1).all()
                assert (target["labels"] < data.num_classes).all()
    assert not [w for w in recwarn if ".json" in str(w.message)]


def test_a_training_set_without_an_object_is_refused(folder: Path) -> None:
    save(folder, "train", load(folder) | {"annotations": []})
    with pytest.raises(InputError, match=r"train.json: no objects to train on"):
        opened(folder).source("train")
    save(folder, "val", load(folder, "val") | {"annotations": []})
    assert len(opened(folder).source("val")) == 6


@needs_data
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_numbers_equal_pycocotools_on_the_file(split: str) -> None:
    """From file to numbers: crowds, mask areas and sparse ids, against pycocotools' own reading."""
    data = shared("coco_mini", *(f"images/{part}2017" for part in (split, split)))
    data.annotations["val"] = str(SHARED / "coco_mini" / f"instances_{split}.json")
    data.setup("validate")
    metric, results = COCOAveragePrecision(), []
    rng = np.random.default_rng(0)
    for image in range(0, len(data.val_images)):
        _, target = data.val_images[image]
        boxes = to_pixels(target["boxes"], target["orig_size"]).numpy().repeat(3, 0)
        boxes += rng.normal(0, 4, boxes.shape) * rng.integers(0, 2, (len(boxes), 1))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = target["labels"].numpy().repeat(3)
        scores = rng.random(len(boxes)).round(2)
        prediction = {"boxes": boxes, "scores": scores, "labels": labels}
        metric.update([{k: torch.tensor(v) for k, v in prediction.items()}], [target])
        boxes = boxes.astype(float)
        boxes[:, 2:] -= boxes[:, :2]
        for box, label, score in zip(boxes.tolist(), labels, scores.tolist(), strict=True):
            entry = {"image_id": target["image_id"], "category_id": data.category_ids[label]}
            results.append({**entry, "bbox": box, "score": score})
    with redirect_stdout(io.StringIO()):
        coco = Pycocotools(data.annotations["val"])
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] > 0.3
    np.testing.assert_allclose(list(metric.compute().values()), evaluation.stats, rtol=0, atol=1e-9)


class Blurred(LightningModule):
    """Finds the boxes of an instances file, moved and with scores by their numbers."""

    def __init__(self, instances: dict[str, Any], labels: tuple[int, ...]):
        super().__init__()
        self.instances, self.labels = instances, labels
        self.average_precision = COCOAveragePrecision()

    def predict_step(self, batch: tuple, batch_idx: int) -> list[dict[str, torch.Tensor]]:
        found = []
        for target in batch[2]:
            rng = np.random.default_rng(target["image_id"])
            known = [
                (one["bbox"], self.labels.index(one["category_id"]))
                for one in self.instances["annotations"]
                if one["image_id"] == target["image_id"] and not one.get("iscrowd")
            ]
            boxes = np.array([box for box, _ in known for _ in range(4)]).reshape(-1, 4)
            boxes = boxes + rng.normal(0, 2, boxes.shape)
            boxes[:, 2:] += boxes[:, :2]
            labels = [
                label if rng.random() < 0.8 else 1 - label for _, label in known for _ in range(4)
            ]
            scores = torch.from_numpy(rng.random(len(boxes))).float()
            one = {"boxes": torch.from_numpy(boxes).float(), "scores": scores}
            found.append(one | {"labels": torch.tensor(labels, dtype=torch.int64)})
        return found

    def validation_step(self, batch: tuple, batch_idx: int) -> None:
        self.average_precision.update(self.predict_step(batch, batch_idx), batch[2])


def test_results_json_has_the_numbers_of_the_validation(folder: Path) -> None:
    """What `predict` writes, measured by pycocotools alone, is what `validate` measures."""
    data = opened(folder, images=str(folder / "val"))
    module = Blurred(load(folder, "val"), data.category_ids)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(folder / "run"),
        callbacks=[DetectionResults(pictures=False)],
    )  # fmt: skip
    trainer.validate(module, data, verbose=False)
    measured = list(module.average_precision.compute().values())
    trainer.predict(module, data, return_predictions=False)
    with redirect_stdout(io.StringIO()):
        coco = Pycocotools(str(folder / "val.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(folder / "run" / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert 0.1 < measured[0] < 0.9
    np.testing.assert_allclose(measured, evaluation.stats, rtol=0, atol=1e-9)
