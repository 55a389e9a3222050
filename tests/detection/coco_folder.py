"""A small data set in COCO format, which tests change for the worse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attention_vision.detection.coco import COCOFolder
from attention_vision.detection.transforms import DETRAugmentation

SMALL = DETRAugmentation(
    short_sides=(40, 48, 56),
    longest=90,
    crop_short_sides=(44, 52),
    crop_least=30,
    crop_most=50,
    evaluation=48,
)
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


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
