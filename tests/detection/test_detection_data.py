"""COCO-format data: transforms, labels, sampling, and the one clear line for bad data."""

import io
import json
import os
import re
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO as Pycocotools
from pycocotools.cocoeval import COCOeval

from attention_vision.detection.average_precision import COCOAveragePrecision
from attention_vision.detection.boxes import to_pixels
from attention_vision.detection.coco import COCO, COCOFolder
from attention_vision.detection.criterion import without_crowds
from attention_vision.detection.data import (
    DetectionData,
    DigitScenes,
    GroupedSampler,
    collate,
)
from attention_vision.detection.transforms import RandomShortSide, Scales, resized
from attention_vision.errors import InputError, one_line

SMALL = Scales(
    short_sides=(40, 48, 56),
    longest=90,
    crop_short_sides=(44, 52),
    crop_least=30,
    crop_most=50,
    evaluation=48,
)
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
SHARED = Path(os.environ.get("ATTENTION_VISION_DATA", "/nowhere"))
needs_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="set ATTENTION_VISION_DATA to a folder with coco_mini and bccd"
)


def dataset(folder: Path, split: str) -> dict[str, Any]:
    """Six images, wide and tall, each with a red box on blue; the first has no object."""
    (folder / split).mkdir(parents=True)
    images, annotations = [], []
    rng = np.random.default_rng(split == "val")
    for number in range(6):
        width, height = (90, 60) if number % 2 else (50, 80)
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 2] = 255
        images.append({"id": number * 10, "file_name": f"{number}.png"})
        images[-1] |= {"width": width, "height": height}
        if number:
            x, y = (int(k) for k in rng.integers(2, 20, 2))
            pixels[y : y + 30, x : x + 24] = (255, 0, 0)
            annotations.append(
                {"id": number, "image_id": number * 10, "category_id": 3 + number % 2 * 4}
            )
            annotations[-1] |= {"bbox": [x, y, 24, 30], "area": 700.5, "iscrowd": 0}
        Image.fromarray(pixels).save(folder / split / f"{number}.png")
    annotations.append({"id": 99, "image_id": 10, "category_id": 3, "bbox": [1, 2, 80, 40]})
    annotations[-1] |= {"area": 100, "iscrowd": 1}
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        save(tmp_path, split, dataset(tmp_path, split))
    return tmp_path


def save(folder: Path, split: str, instances: Any) -> None:
    (folder / f"{split}.json").write_text(json.dumps(instances))


def load(folder: Path, split: str = "train") -> dict[str, Any]:
    return json.loads((folder / f"{split}.json").read_text())


def opened(folder: Path, **options: Any) -> COCOFolder:
    paths = [str(folder / name) for name in ("train", "train.json", "val", "val.json")]
    options = {"recipe": SMALL, "batch_size": 2, "num_workers": 0, "seed": 0, **options}
    return COCOFolder(*paths, **options)


def fitted(folder: Path, **options: Any) -> COCOFolder:
    data = opened(folder, **options)
    data.setup("fit")
    return data


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
    recipe = Scales()
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
            assert target["iscrowd"].sum() == 0  # crowds are not trained on
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
    assert [len(trained[key]) for key in ("boxes", "labels", "area", "iscrowd")] == [1] * 4


def test_labels_are_contiguous_or_the_category_ids(folder: Path) -> None:
    dense, sparse = fitted(folder), fitted(folder, labels="category_ids")
    assert (dense.num_classes, dense.category_ids, dense.class_names) == (2, (3, 7), ("cat", "dog"))
    assert (sparse.num_classes, sparse.category_ids) == (8, tuple(range(8)))
    assert sparse.class_names == ("N/A",) * 3 + ("cat",) + ("N/A",) * 3 + ("dog",)
    for number, annotation in enumerate(load(folder, "val")["annotations"][:5], 1):
        for data in (dense, sparse):
            label = int(data.val_images[number][1]["labels"][0])
            assert data.category_ids[label] == annotation["category_id"]


def test_the_checkpoint_keeps_the_labels(folder: Path) -> None:
    data = opened(folder)
    data.load_state_dict(data.state_dict())
    with pytest.raises(InputError, match=r"\(2, here 8\): label 0 was category 3 \(cat\), here"):
        opened(folder, labels="category_ids").load_state_dict(data.state_dict())
    state = {"class_names": ["cat"], "category_ids": [3]}
    with pytest.raises(InputError, match=r"label 1 was category none .*, here it is 7 \(dog\)"):
        data.load_state_dict(state)


def test_coco_is_known_without_files() -> None:
    data = COCO("nowhere")
    assert data.num_classes == 91
    assert data.class_names[1] == "person"
    assert data.class_names[90] == "toothbrush"
    assert COCO("nowhere", labels="contiguous").num_classes == 80
    with pytest.raises(InputError, match=r"set data.root to a COCO instances file"):
        data.setup("fit")


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


def test_predict_carries_paths(folder: Path) -> None:
    data = opened(folder, images=str(folder), batch_size=12)
    data.setup("predict")
    ((images, padding_mask, targets),) = data.predict_dataloader()
    assert len(images) == len(padding_mask) == 12
    assert targets[1]["path"] == str(folder / "train" / "1.png")
    assert targets[1]["orig_size"].tolist() == [60, 90]
    assert [target["image_id"] for target in targets] == list(range(12))


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
        r"1 areas missing, width x height of the box taken \(first: annotation 3",
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


def empty(folder: Path) -> None:
    save(folder, "train", {**load(folder), "images": [], "annotations": []})
    fitted(folder)


def val_with_other_classes(folder: Path) -> None:
    save(folder, "val", {**load(folder, "val"), "categories": [{"id": 3, "name": "emu"}]})
    save(folder, "val", {**load(folder, "val"), "annotations": []})
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


NAN = float("nan")


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (truncated, r"train.json is no whole JSON file: copy it again"),
        (other_json, r"train.json is no COCO instances file: it has no list called images"),
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
        (changed("images", 2, id="b"), r"image id 'b' of 2.png is no whole number"),
        (changed("images", 2, width=0), r"width 0 and height 80 of 2.png are no size"),
        (changed("categories", 1, id=3), r"category id 3 stands twice, for cat and dog"),
        (missing_file, r"1 of the 6 images .* the first is 4.png: set data.train_images"),
        (no_image, r"cannot read the image .*train/4.png: repair or remove it"),
        (other_image, r"4.png is 30x20 pixels, .*train.json says 50x80"),
        (empty, r"COCOFolder: no train images"),
        (val_with_other_classes, r"val.json: category 3 \(emu\) is cat in .*train.json"),
        (no_batch, r"data.batch_size 0 is not positive"),
        (fewer_than_no_workers, r"data.num_workers -1 is negative"),
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


def test_digit_scenes_are_known_before_setup() -> None:
    data: DetectionData = DigitScenes(scenes=8, val_scenes=3, batch_size=4)
    assert (data.num_classes, data.category_ids) == (10, tuple(range(1, 11)))
    data.setup("fit")
    images, padding_mask, _ = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 64, 64)
    assert not padding_mask.any()
    assert collate([data.val_images[0]])[0].shape == (1, 3, 64, 64)
