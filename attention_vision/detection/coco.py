"""COCO-format data: instances files, read, checked and repaired, and the data classes on them."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image

from attention_vision.detection.data import DetectionData, Objects, Source
from attention_vision.detection.transforms import Scales
from attention_vision.errors import InputError
from attention_vision.images import read_image

Labels = Literal["contiguous", "category_ids", "category_ids_from_1"]

DETR_RECIPE = Scales()
UNUSED = "N/A"  # the name of a label that no category has
ROUNDING = 0.5  # pixels by which a box may leave its image without a word: files are rounded

# Categories 1 to 90; ten numbers were never used.
COCO_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
N/A, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra,
giraffe, N/A, backpack, umbrella, N/A, N/A, handbag, tie, suitcase, frisbee, skis, snowboard,
sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, N/A,
wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, N/A, dining table, N/A, N/A, toilet,
N/A, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator,
N/A, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""


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
            _fields(image, ("id", "file_name", "width", "height"), f"image {place} of {path}")
            for place, image in enumerate(dataset["images"])
        ]
        place_of = _places(images, path)
        objects = [
            found
            for annotation in _once(dataset["annotations"], repairs)
            if (found := _object(annotation, images, place_of, categories, path, repairs))
        ]
        repairs.warn()
        objects.sort(key=lambda found: found[0])  # stable: the file's order within an image
        places, boxes, category_ids, area, iscrowd = (
            zip(*objects, strict=True) if objects else [()] * 5
        )
        return cls(
            path=Path(path),
            categories=categories,
            files=[file for _, file, _, _ in images],
            image_ids=np.array([image_id for image_id, *_ in images], dtype=np.int64),
            sizes=np.array([(h, w) for *_, w, h in images], dtype=np.int64).reshape(-1, 2),
            first=np.searchsorted(np.array(places, dtype=np.int64), np.arange(len(images) + 1)),
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
        raise InputError(f"{path} is no whole JSON file: copy it again ({error})") from None
    for name in ("images", "annotations", "categories"):
        if not isinstance(dataset, dict) or not isinstance(dataset.get(name), list):
            raise InputError(f"{path} is no COCO instances file: it has no list called {name}")
    return dataset


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _fields(entry: Any, names: tuple[str, ...], where: str) -> tuple:
    for name in names:
        if not isinstance(entry, dict) or name not in entry:
            raise InputError(f"{where} has no {name}")
    return tuple(entry[name] for name in names)


def _categories(entries: list, path: str, repairs: "Repairs") -> dict[int, str]:
    """Names by id, in the order of the ids."""
    categories: dict[int, str] = {}
    for place, entry in enumerate(entries):
        number, name = _fields(entry, ("id", "name"), f"category {place} of {path}")
        if type(number) is not int or number < 0:
            raise InputError(f"{path}: category id {number!r} is no number from 0 up")
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


def _places(images: list[tuple], path: str) -> dict[int, int]:
    """The place of each image by its id."""
    places: dict[int, int] = {}
    for place, (image_id, file, width, height) in enumerate(images):
        if type(image_id) is not int:
            raise InputError(f"{path}: image id {image_id!r} of {file} is no whole number")
        if image_id in places:
            first = images[places[image_id]][1]
            raise InputError(f"{path}: image id {image_id} stands twice, for {first} and {file}")
        if not isinstance(file, str):
            raise InputError(f"{path}: file_name {file!r} of image {image_id} is no name")
        if not all(_finite(side) and side >= 1 for side in (width, height)):
            raise InputError(f"{path}: width {width!r} and height {height!r} of {file} are no size")
        places[image_id] = place
    return places


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
    place_of: dict[int, int],
    categories: dict[int, str],
    path: str,
    repairs: Repairs,
) -> tuple | None:
    """(place of the image, xyxy, category, area, crowd); None for a box that holds nothing."""
    number = annotation.get("id") if isinstance(annotation, dict) else None
    where = f"annotation {number} of {path}"
    image_id, category, bbox = _fields(annotation, ("image_id", "category_id", "bbox"), where)
    if not _finite(image_id) or image_id not in place_of:
        raise InputError(f"{where} is of image {image_id}, which the file does not list")
    if not _finite(category) or category not in categories:
        known = ", ".join(map(str, list(categories)[:12])) + ", ..." * (len(categories) > 12)
        raise InputError(f"{where} is of the unknown category {category!r}; known: {known}")
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_finite, bbox))):
        raise InputError(f"{where}: bbox {bbox!r} is not x, y, width, height in finite numbers")
    left, top, width, height = bbox
    _, file, wide, high = images[place_of[image_id]]
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
    return place_of[image_id], box, category, area, int(bool(annotation.get("iscrowd", 0)))


class InstanceFiles:
    """A source of image files with their objects in COCO format.

    Raises InputError that names the first image file which is missing.

    Args:
        instances: the annotations.
        folder: of the image files.
        labels: of each category.
        key: of the configuration, for the line that says what to set.
    """

    def __init__(self, instances: Instances, folder: str, labels: dict[int, int], key: str):
        self.instances, self.folder = instances, Path(folder)
        self.sizes = instances.sizes
        self.labels = np.array([labels[k] for k in instances.category_ids.tolist()], dtype=np.int64)
        here = {path.name for path in self.folder.glob("*")}  # one look, not one per image
        missing = [
            file
            for file in instances.files
            if file not in here and not (self.folder / file).is_file()
        ]
        if missing:
            raise InputError(
                f"{len(missing)} of the {len(instances.files)} images of {instances.path} are not"
                f" in {folder}, the first is {missing[0]}: set {key} to their folder"
            )

    def __len__(self) -> int:
        return len(self.instances.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int, Objects]:
        all_of_them = self.instances
        here = slice(*all_of_them.first[index : index + 2])
        image = self._read(str(self.folder / all_of_them.files[index]), all_of_them.sizes[index])
        return (
            image,
            int(all_of_them.image_ids[index]),
            Objects(
                torch.tensor(all_of_them.boxes[here], dtype=torch.float32),
                torch.tensor(self.labels[here]),
                torch.tensor(all_of_them.area[here], dtype=torch.float32),
                torch.tensor(all_of_them.iscrowd[here]),
            ),
        )

    def _read(self, path: str, size: np.ndarray) -> Image.Image:
        """Turned as EXIF says, unless the file's annotations are on the image as it is stored."""
        height, width = size.tolist()
        for upright in (True, False):
            image = read_image(path, upright)
            if image.size == (width, height):
                return image
        raise InputError(
            f"{path} is {image.width}x{image.height} pixels, {self.instances.path} says"
            f" {width}x{height}: its boxes are of another image"
        )


class COCOFolder(DetectionData):
    """Any data set in COCO format: for each split a folder of images and an instances file.

    Labels are "contiguous", 0 to the number of categories - 1 in the order of their ids. For
    weights that were trained so they are the "category_ids" themselves, with num_classes = largest
    id + 1, as in the released DETR, or "category_ids_from_1", the ids less 1, as in torchvision's
    detectors, where 0 is background. `category_ids` leads back from labels in all cases. Every
    category has to be listed in the training file.

    Images are turned upright by EXIF, if the size in the instances file is that of the upright
    image; grey, palette and transparent images become RGB; images without objects are trained on.
    """

    def __init__(
        self,
        train_images: str,
        train_annotations: str,
        val_images: str,
        val_annotations: str,
        labels: Labels = "contiguous",
        recipe: Scales = DETR_RECIPE,
        batch_size: int = 2,
        num_workers: int = 2,
        seed: int | None = None,
        images: str | None = None,
        group_by_shape: bool = False,
    ):
        super().__init__(recipe, batch_size, num_workers, seed, images, group_by_shape)
        self.folders = {"train": train_images, "val": val_images}
        self.annotations = {"train": train_annotations, "val": val_annotations}
        self.labels = labels
        self._instances: dict[str, Instances] = {}

    @cached_property
    def categories(self) -> dict[int, str]:
        """Names by id, read when first asked for; the validation file serves where it is alone."""
        alone = (
            not Path(self.annotations["train"]).exists() and Path(self.annotations["val"]).exists()
        )
        return self._read("val" if alone else "train").categories

    @cached_property
    def category_ids(self) -> tuple[int, ...]:
        listed = tuple(self.categories)
        if self.labels == "contiguous":
            return listed
        first = 1 if self.labels == "category_ids_from_1" else 0
        if listed[0] < first:
            raise InputError(
                f"data.labels {self.labels}: there is a category {listed[0]}"
                f" ({self.categories[listed[0]]}), take category_ids"
            )
        return tuple(range(first, listed[-1] + 1))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.categories.get(number, UNUSED) for number in self.category_ids)

    def source(self, split: str) -> Source:
        instances = self._read(split)
        if split == "train" and instances.files and (instances.iscrowd != 0).all():
            raise InputError(f"{instances.path}: no objects to train on, all images are empty")
        for number, name in instances.categories.items():
            if (expected := self.categories.get(number, "unknown")) != name:
                raise InputError(
                    f"{instances.path}: category {number} ({name}) is {expected} in"
                    f" {self._reference()}"
                )
        labels = {number: label for label, number in enumerate(self.category_ids)}
        return InstanceFiles(instances, self.folders[split], labels, self._key(split, "images"))

    def _read(self, split: str) -> Instances:
        if split not in self._instances:
            key = self._key(split, "annotations")
            self._instances[split] = Instances.read(self.annotations[split], key)
        return self._instances[split]

    def _reference(self) -> str:
        return self.annotations["train"]

    def _key(self, split: str, what: str) -> str:
        return f"data.{split}_{what}"


class COCO(COCOFolder):
    """COCO 2017 in its official layout: ROOT/{train2017,val2017,annotations}.

    The labels are the category ids, 91 with 0 and ten more that no object has, so that the weights
    of DETR fit; those of Faster R-CNN fit "category_ids_from_1", which are 90, and "contiguous"
    gives 80. All are known without the files.
    """

    def __init__(
        self,
        root: str,
        labels: Labels = "category_ids",
        recipe: Scales = DETR_RECIPE,
        batch_size: int = 2,
        num_workers: int = 4,
        seed: int | None = None,
        images: str | None = None,
        group_by_shape: bool = False,
    ):
        paths = [
            str(Path(root) / path)
            for split in ("train2017", "val2017")
            for path in (split, f"annotations/instances_{split}.json")
        ]
        super().__init__(
            *paths, labels, recipe, batch_size, num_workers, seed, images, group_by_shape
        )

    @cached_property
    def categories(self) -> dict[int, str]:
        names = [name.strip() for name in COCO_NAMES.replace("\n", " ").split(",")]
        return {number: name for number, name in enumerate(names, 1) if name != UNUSED}

    def _reference(self) -> str:
        return "COCO 2017: COCOFolder takes any categories"

    def _key(self, split: str, what: str) -> str:
        return "data.root"
