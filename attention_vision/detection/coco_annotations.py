"""Instances files in COCO format: read, checked and repaired."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

from attention_vision.data.formats import hint
from attention_vision.detection.instances import (
    MANY_CROWDS,
    ROUNDING,
    ImageEntry,
    Instances,
    ObjectEntry,
    Repairs,
    crowds_in_words,
    fitted_box,
)
from attention_vision.errors import InputError

LARGEST = 2**53  # numbers that a float holds exactly


def read_instances(path: str, key: str) -> Instances:
    """Read and check an instances file.

    What can be repaired is repaired, with one warning that counts it: boxes that leave their image
    by more than rounding are clipped, boxes without area or wholly outside dropped, an `area` that
    is missing or 0 is taken as that of the box, annotations that stand there twice are dropped, a
    name that two categories share gets the id of the second, a category that is only the
    supercategory of the others is left out. Warns of boxes that look like shares of the image, or
    like two corners.

    Args:
        path: of the file.
        key: of the configuration, for the line that says what to set.

    Raises:
        InputError: the rest of what is wrong.
    """
    dataset = _read_json(path, key)
    repairs = Repairs(path)
    entries = _without_root(dataset["categories"], dataset["annotations"], repairs)
    categories = _categories(entries, path, repairs)
    images = [
        ImageEntry(
            *_fields(image, ("id", "file_name", "width", "height"), f"image {index} of {path}")
        )
        for index, image in enumerate(dataset["images"])
    ]
    index_of = _indices(images, path)
    annotations = list(_once(dataset["annotations"], repairs))
    objects = [
        found
        for annotation in annotations
        if (found := _object(annotation, images, index_of, categories, path, repairs))
    ]
    repairs.warnings += _smells(annotations, images, index_of, path)
    if (crowds := sum(found.crowd for found in objects)) > MANY_CROWDS * len(objects):
        repairs.warnings.append(f"{path}: {crowds_in_words(crowds, len(objects))}")
    return Instances.build(Path(path), categories, images, objects, repairs)


def _without_root(entries: list, annotations: list, repairs: Repairs) -> list:
    """The categories without one that has no objects and is the supercategory of all others.

    By position, before names are made unique: the only class may have the name of its root.
    """
    if len(entries) < 2 or not all(isinstance(one, dict) for one in (*entries, *annotations)):
        return entries
    used = {number for one in annotations if _finite(number := one.get("category_id"))}
    for place, root in enumerate(entries):
        others = [*entries[:place], *entries[place + 1 :]]
        name = root.get("name")
        if root.get("id") in used or any(one.get("supercategory") != name for one in others):
            continue
        repairs.add(
            "categories left out that have no objects and are the supercategory of the others",
            f"{name} ({root.get('id')})",
        )
        return others
    return entries


def _smells(
    annotations: list, images: list[ImageEntry], index_of: dict[int, int], path: str
) -> list[str]:
    """Lines on boxes that are not x, y, width, height in pixels, as far as that can be seen."""
    pairs = [
        (annotation["bbox"], images[index_of[annotation["image_id"]]]) for annotation in annotations
    ]
    pairs = [(box, image) for box, image in pairs if min(image.width, image.height) > 2]
    if not pairs:
        return []
    if all(0 <= number <= 1 for box, _ in pairs for number in box):
        return [
            f"{path}: all {len(pairs)} boxes lie in 0..1, as shares of the image: COCO's are in"
            " pixels; multiply them by the width and height of their image"
        ]
    outside = sum(
        x + w > image.width + ROUNDING or y + h > image.height + ROUNDING
        for (x, y, w, h), image in pairs
    )
    corners = all(
        x < w <= image.width + ROUNDING and y < h <= image.height + ROUNDING
        for (x, y, w, h), image in pairs
    )
    if corners and outside > 0.1 * len(pairs):
        return [
            f"{path}: {outside} of the {len(pairs)} boxes leave their image, and all fit as two"
            " corners (x1, y1, x2, y2): COCO's are x, y, width, height"
        ]
    return []


def _read_json(path: str, key: str) -> dict[str, list]:
    try:
        dataset = json.loads(Path(path).read_bytes())  # UTF-8, -16 or -32, by their marks
    except OSError as error:
        looks = hint(path, "COCOFolder") if Path(path).exists() else ""
        raise InputError(
            f"cannot read {path}: set {key} to a COCO instances file ({error.strerror}){looks}"
        ) from None
    except (ValueError, RecursionError) as error:  # of JSON and of its encoding
        looks = hint(path, "COCOFolder")
        advice = looks if "looks like" in looks else ": copy it again"
        raise InputError(f"{path} is not a whole JSON file{advice} ({error})") from None
    for name in ("images", "annotations", "categories"):
        if not isinstance(dataset, dict) or not isinstance(dataset.get(name), list):
            raise InputError(f"{path} is not a COCO instances file: it has no list called {name}")
    return dataset


def _finite(value: Any) -> TypeGuard[Any]:
    return isinstance(value, int | float) and abs(value) < LARGEST  # which NaN is not


def _fields(entry: Any, names: tuple[str, ...], where: str) -> tuple:
    for name in names:
        if not isinstance(entry, dict) or name not in entry:
            raise InputError(f"{where} has no {name}")
    return tuple(entry[name] for name in names)


def _categories(entries: list, path: str, repairs: Repairs) -> dict[int, str]:
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


def _indices(images: list[ImageEntry], path: str) -> dict[int, int]:
    """The index of each image by its id."""
    indices: dict[int, int] = {}
    for index, (image_id, file, width, height) in enumerate(images):
        if type(image_id) is not int or not _finite(image_id):
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
    images: list[ImageEntry],
    index_of: dict[int, int],
    categories: dict[int, str],
    path: str,
    repairs: Repairs,
) -> ObjectEntry | None:
    """The object of an annotation; None for an empty box."""
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
    image = images[index_of[image_id]]
    example = f"annotation {number} of {image.file} ({image.width}x{image.height}): {bbox}"
    box = fitted_box((left, top, left + width, top + height), image, example, repairs)
    if box is None:
        return None
    area = annotation.get("area")
    if not _finite(area) or area <= 0:
        repairs.add("areas missing or 0, width x height of the box taken", example)
        area = width * height
    crowd = int(annotation.get("iscrowd") in (1, True, "1"))
    return ObjectEntry(index_of[image_id], box, int(category), area, crowd)
