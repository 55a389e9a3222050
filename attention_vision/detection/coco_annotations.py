"""Instances files in COCO format: read, checked and repaired."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from attention_vision.errors import InputError

ROUNDING = 0.5  # pixels by which a box may leave its image without a word: files are rounded


@dataclass(frozen=True)
class Instances:
    """An instances file in COCO format, checked; objects in the order of the images.

    Flat arrays, which worker processes share without copies.
    """

    path: Path
    categories: dict[int, str]
    files: list[str]
    image_ids: np.ndarray  # (images,)
    sizes: np.ndarray  # (images, 2): heights and widths
    first: np.ndarray  # (images + 1,): where an image's objects begin
    boxes: np.ndarray  # (objects, 4) float64, xyxy in pixels
    category_ids: np.ndarray  # (objects,)
    area: np.ndarray  # (objects,)
    iscrowd: np.ndarray  # (objects,)

    @classmethod
    def read(cls, path: str, key: str) -> "Instances":
        """Reads and checks a file.

        What can be repaired is repaired, with one warning that counts it: boxes that leave their
        image by more than rounding are clipped, boxes without area or wholly outside dropped, a
        missing `area` is taken as that of the box, annotations that stand there twice are dropped,
        a name that two categories share gets the id of the second. Raises InputError for the rest.

        Args:
            path: of the file.
            key: of the configuration, for the line that says what to set.
        """
        dataset = _read_json(path, key)
        repairs = Repairs(path)
        categories = _categories(dataset["categories"], path, repairs)
        images = [
            _fields(image, ("id", "file_name", "width", "height"), f"image {index} of {path}")
            for index, image in enumerate(dataset["images"])
        ]
        index_of = _indices(images, path)
        objects = [
            found
            for annotation in _once(dataset["annotations"], repairs)
            if (found := _object(annotation, images, index_of, categories, path, repairs))
        ]
        repairs.warn()
        objects.sort(key=lambda found: found[0])  # stable: the file's order within an image
        indices, boxes, category_ids, area, iscrowd = (
            zip(*objects, strict=True) if objects else [()] * 5
        )
        return cls(
            path=Path(path),
            categories=categories,
            files=[file for _, file, _, _ in images],
            image_ids=np.array([image_id for image_id, *_ in images], dtype=np.int64),
            sizes=np.array([(h, w) for *_, w, h in images], dtype=np.int64).reshape(-1, 2),
            first=np.searchsorted(np.array(indices, dtype=np.int64), np.arange(len(images) + 1)),
            boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            category_ids=np.array(category_ids, dtype=np.int64),
            area=np.array(area, dtype=np.float64),
            iscrowd=np.array(iscrowd, dtype=np.int64),
        )


class Repairs:
    """Counts what was repaired in a file, with the first example of each kind."""

    def __init__(self, path: str):
        self.path = path
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def add(self, kind: str, example: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.first.setdefault(kind, example)

    def warn(self) -> None:
        if self.counts:
            parts = (f"{n} {kind} (first: {self.first[kind]})" for kind, n in self.counts.items())
            rank_zero_warn(f"{self.path}: {'; '.join(parts)}")


def _read_json(path: str, key: str) -> dict[str, list]:
    try:
        with open(path, encoding="utf-8") as file:
            dataset = json.load(file)
    except OSError as error:
        raise InputError(
            f"cannot read {path}: set {key} to a COCO instances file ({error.strerror})"
        ) from None
    except ValueError as error:  # of JSON and of UTF-8
        raise InputError(f"{path} is not a whole JSON file: copy it again ({error})") from None
    for name in ("images", "annotations", "categories"):
        if not isinstance(dataset, dict) or not isinstance(dataset.get(name), list):
            raise InputError(f"{path} is not a COCO instances file: it has no list called {name}")
    return dataset


def _finite(value: Any) -> TypeGuard[Any]:
    return isinstance(value, int | float) and math.isfinite(value)


def _fields(entry: Any, names: tuple[str, ...], where: str) -> tuple:
    for name in names:
        if not isinstance(entry, dict) or name not in entry:
            raise InputError(f"{where} has no {name}")
    return tuple(entry[name] for name in names)


def _categories(entries: list, path: str, repairs: "Repairs") -> dict[int, str]:
    """Names by id, in the order of the ids."""
    categories: dict[int, str] = {}
    for index, entry in enumerate(entries):
        number, name = _fields(entry, ("id", "name"), f"category {index} of {path}")
        if type(number) is not int or number < 0:
            raise InputError(f"{path}: category id {number!r} is not a whole number from 0 up")
        if number in categories:
            raise InputError(
                f"{path}: category id {number} stands twice, for {categories[number]} and {name}"
            )
        if name in categories.values():
            repairs.add("categories renamed whose name another one has too", f"{name} ({number})")
            name = f"{name} ({number})"
        categories[number] = str(name)
    if not categories:
        raise InputError(f"{path} lists no categories")
    return dict(sorted(categories.items()))


def _indices(images: list[tuple], path: str) -> dict[int, int]:
    """The index of each image by its id."""
    indices: dict[int, int] = {}
    for index, (image_id, file, width, height) in enumerate(images):
        if type(image_id) is not int:
            raise InputError(f"{path}: image id {image_id!r} of {file} is not a whole number")
        if image_id in indices:
            first = images[indices[image_id]][1]
            raise InputError(f"{path}: image id {image_id} stands twice, for {first} and {file}")
        if not isinstance(file, str):
            raise InputError(f"{path}: file_name {file!r} of image {image_id} is not a name")
        if not all(_finite(side) and side >= 1 for side in (width, height)):
            raise InputError(
                f"{path}: width {width!r} and height {height!r} of {file} are not a size"
            )
        indices[image_id] = index
    return indices


def _once(annotations: list, repairs: Repairs) -> Iterable[dict]:
    """The annotations without those that repeat an earlier one, id and all."""
    seen: dict[Any, dict] = {}
    for annotation in annotations:
        number = annotation.get("id") if isinstance(annotation, dict) else None
        if _finite(number) and number in seen:
            if annotation == seen[number]:
                repairs.add("annotations that stand there twice dropped", f"annotation {number}")
                continue
            repairs.add("annotations kept whose id another one has too", f"annotation {number}")
        if _finite(number):
            seen.setdefault(number, annotation)
        yield annotation


def _object(
    annotation: dict,
    images: list[tuple],
    index_of: dict[int, int],
    categories: dict[int, str],
    path: str,
    repairs: Repairs,
) -> tuple | None:
    """(index of the image, xyxy, category, area, crowd); None for an empty box."""
    number = annotation.get("id") if isinstance(annotation, dict) else None
    where = f"annotation {number} of {path}"
    image_id, category, bbox = _fields(annotation, ("image_id", "category_id", "bbox"), where)
    if not _finite(image_id) or image_id not in index_of:
        raise InputError(f"{where} is of image {image_id}, which the file does not list")
    if not _finite(category) or category not in categories:
        known = ", ".join(map(str, list(categories)[:12])) + ", ..." * (len(categories) > 12)
        raise InputError(f"{where} is of the unknown category {category!r}; known: {known}")
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_finite, bbox))):
        raise InputError(f"{where}: bbox {bbox!r} is not x, y, width, height in finite numbers")
    left, top, width, height = bbox
    _, file, wide, high = images[index_of[image_id]]
    example = f"annotation {number} of {file} ({wide}x{high}): {bbox}"
    if width <= 0 or height <= 0:
        repairs.add("boxes without area dropped", example)
        return None
    box = (left, top, left + width, top + height)
    clipped = (max(left, 0), max(top, 0), min(box[2], wide), min(box[3], high))
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        repairs.add("boxes wholly outside their image dropped", example)
        return None
    if max(abs(a - b) for a, b in zip(box, clipped, strict=True)) > ROUNDING:
        repairs.add("boxes clipped to their image", example)
        box = clipped
    area = annotation.get("area")
    if not _finite(area) or area < 0:
        repairs.add("areas missing, width x height of the box taken", example)
        area = width * height
    return index_of[image_id], box, category, area, int(bool(annotation.get("iscrowd", 0)))
