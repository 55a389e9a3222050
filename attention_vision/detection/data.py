"""Data for detection: the base class holds loaders, sampling, recipe; subclasses the images.

Batches are (images (B, 3, H, W) float normalised and padded with zeros, padding_mask (B, H, W)
bool, True where padded, targets: a dict per image). A target holds `image_id`; `orig_size` and
`size`, (h, w) of the file and as fed; and of its n objects `boxes` (n, 4) cxcywh in 0..1 of the
image without padding, `labels` (n,) int64, `area` (n,) in pixels of the file, `iscrowd` (n,). In
training there are no crowds; in evaluation they are kept for the metric; `criterion.without_crowds`
leaves them out of a loss. In predict a target holds `path` and no objects.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms import v2

from attention_vision.callbacks import mix, run_seed
from attention_vision.detection.transforms import Scales
from attention_vision.digits import CLASS_NAMES, scene
from attention_vision.errors import InputError
from attention_vision.images import IMAGENET_MEAN, IMAGENET_STD, image_files, read_image
from attention_vision.sampling import (
    EpochSampler,
    evaluation_loader,
    random_stream,
    replicas,
    train_loader,
)

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

Target = dict[str, Any]
Batch = tuple[Tensor, Tensor, list[Target]]


class Objects(NamedTuple):
    """The objects of one image, in pixels of its file."""

    boxes: Tensor  # (n, 4) float32, xyxy
    labels: Tensor  # (n,) int64
    area: Tensor  # (n,) float32
    iscrowd: Tensor  # (n,) int64


class Source(Protocol):
    """Images with their objects: `source[i]` is (RGB image, image id, objects)."""

    sizes: np.ndarray  # (images, 2): heights and widths

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Image.Image, int, Objects]: ...


class DetectionData(LightningDataModule):
    """Base of all detection data: a subclass sets what is declared here and gives `source`.

    Args:
        recipe: scales and crops.
        batch_size: images per process and step.
        num_workers: processes that load images, 0 to load in the training process.
        seed: of order and augmentation; the run's seed where none is given.
        images: folder of images to predict, searched through its subfolders.
        group_by_shape: train on batches of either wide or tall images, so that less is padded.

    `num_classes`, `class_names` and `category_ids` (the category of each label) are known before
    `setup` and kept in checkpoints: a run resumes only on data with the same labels.
    """

    class_names: Sequence[str]
    category_ids: Sequence[int]
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(
        self,
        recipe: Scales,
        batch_size: int,
        num_workers: int,
        seed: int | None,
        images: str | None,
        group_by_shape: bool,
    ):
        super().__init__()
        self.recipe = recipe
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.images, self.group_by_shape = images, group_by_shape

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def source(self, split: str) -> Source:
        """The images of "train" or "val". Raises InputError when they are missing or wrong."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        train, evaluation = (
            make(self.mean, self.std) for make in (self.recipe.train, self.recipe.evaluate)
        )
        seed = run_seed() if self.seed is None else self.seed
        if stage == "fit":
            self.train_images = Annotated(self._checked("train"), train, seed, crowds=False)
        if stage in ("fit", "validate", "test"):
            self.val_images = Annotated(self._checked("val"), evaluation, seed, crowds=True)
        if stage == "predict":
            if self.images is None:
                raise InputError(
                    "nothing to predict: set data.init_args.images to a folder of images"
                )
            self.predict_images = ImageFiles(self.images, evaluation)

    def train_dataloader(self) -> StatefulDataLoader:
        """Shuffled full batches. Raises InputError when there is not even one."""
        images, place = self.train_images, replicas(self.trainer)
        if self.group_by_shape:
            wide = images.source.sizes[:, 1] > images.source.sizes[:, 0]
            sampler = GroupedSampler(images, *place, images.seed, wide.tolist(), self.batch_size)
        else:
            sampler = EpochSampler(images, *place, images.seed)
        return train_loader(self.trainer, sampler, self._loading())

    def val_dataloader(self) -> DataLoader:
        return evaluation_loader(self.trainer, self.val_images, self._loading())

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.predict_images, **self._loading())

    def state_dict(self) -> dict[str, Any]:
        return {"class_names": list(self.class_names), "category_ids": list(self.category_ids)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises InputError where a label would change its meaning."""
        trained, here = (
            list(zip(labels["category_ids"], labels["class_names"], strict=True))
            for labels in (state, self.state_dict())
        )
        if trained != here:
            pairs = enumerate(zip_longest(trained, here, fillvalue=("none", "no class")))
            label, (was, now) = next((k, pair) for k, pair in pairs if pair[0] != pair[1])
            raise InputError(
                f"the checkpoint was trained on other classes ({len(trained)}, here {len(here)}):"
                f" label {label} was category {was[0]} ({was[1]}), here it is {now[0]} ({now[1]})"
            )

    def _loading(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": collate,
        }

    def _checked(self, split: str) -> Source:
        source = self.source(split)
        if not len(source):
            raise InputError(f"{type(self).__name__}: no {split} images")
        return source


class GroupedSampler(EpochSampler):
    """Batches whose images are all of one group, as far as they come out even.

    There are as many batches as without groups, on every process: what is left over from the
    groups makes up mixed ones.

    Args:
        groups: of each image.
        batch_size: images per process and step.
    """

    def __init__(
        self,
        images: Dataset,
        replicas: int,
        rank: int,
        seed: int,
        groups: Sequence[int],
        batch_size: int,
    ):
        super().__init__(images, replicas, rank, seed)
        self.groups, self.batch_size = groups, batch_size

    def order(self) -> list[int]:
        members: dict[int, list[int]] = {}
        for index in super().order():
            members.setdefault(self.groups[index], []).append(index)
        batches, rest = [], []
        for group in members.values():
            whole, left = self._cut(group)
            batches += whole
            rest += left
        whole, rest = self._cut(rest)
        batches += whole
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch, self.rank))
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return [index for place in shuffled for index in batches[place]] + rest

    def _cut(self, indices: list[int]) -> tuple[list[list[int]], list[int]]:
        """Full batches, and what is left over."""
        end = len(indices) - len(indices) % self.batch_size
        starts = range(0, end, self.batch_size)
        return [indices[start : start + self.batch_size] for start in starts], indices[end:]


class Annotated(Dataset):
    """Transformed (image, target) pairs; each image draws from a stream of its own.

    The stream follows from (seed, epoch, index): an image looks the same at any number of workers,
    and after a resume. An index without its epoch, as evaluation asks, is taken as epoch 0.
    """

    def __init__(self, source: Source, transform: v2.Transform, seed: int, crowds: bool):
        self.source, self.transform, self.seed, self.crowds = source, transform, seed, crowds

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Target]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, image_id, objects = self.source[index]
        original = (image.height, image.width)
        boxes = tv_tensors.BoundingBoxes(objects.boxes, format="XYXY", canvas_size=original)
        with random_stream(self.seed, epoch, index):
            image, boxes = self.transform(image, boxes)
        height, width = image.shape[1:]
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)  # a crop leaves others outside
        if not self.crowds:
            kept &= objects.iscrowd == 0
        centred = box_convert(boxes[kept], "xyxy", "cxcywh")
        return image, {
            "boxes": centred / torch.tensor([width, height, width, height]),
            "labels": objects.labels[kept],
            "area": objects.area[kept],
            "iscrowd": objects.iscrowd[kept],
            "image_id": image_id,
            "orig_size": torch.tensor(original),
            "size": torch.tensor([height, width]),
        }


class ImageFiles(Dataset):
    """All images below a folder in the order of their paths, numbered from 0."""

    def __init__(self, folder: str, transform: v2.Transform):
        self.files, self.transform = image_files(folder), transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        read = read_image(self.files[index], upright=True)
        image = self.transform(read)
        return image, {
            "path": self.files[index],
            "image_id": index,
            "orig_size": torch.tensor([read.height, read.width]),
            "size": torch.tensor(image.shape[1:]),
        }


def collate(samples: list[tuple[Tensor, Target]]) -> Batch:
    """Pads images to the largest height and width of the batch, right and below, with zeros."""
    sizes = [image.shape[1:] for image, _ in samples]
    high, wide = (max(extents) for extents in zip(*sizes, strict=True))
    room = [(0, wide - width, 0, high - height) for height, width in sizes]
    images = torch.stack([pad(image, by) for (image, _), by in zip(samples, room, strict=True)])
    padding_mask = torch.ones(len(samples), high, wide, dtype=torch.bool)
    for mask, (height, width) in zip(padding_mask, sizes, strict=True):
        mask[:height, :width] = False
    return images, padding_mask, [target for _, target in samples]


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

    Labels are either "contiguous", 0 to the number of categories - 1 in the order of their ids, or
    the "category_ids" themselves, with num_classes = largest id + 1, as in the released DETR: use
    that for weights that were trained so. `category_ids` leads back from labels in both cases.
    Every category has to be listed in the training file.

    Images are turned upright by EXIF, if the size in the instances file is that of the upright
    image; grey, palette and transparent images become RGB; images without objects are trained on.
    """

    def __init__(
        self,
        train_images: str,
        train_annotations: str,
        val_images: str,
        val_annotations: str,
        labels: Literal["contiguous", "category_ids"] = "contiguous",
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
        return listed if self.labels == "contiguous" else tuple(range(listed[-1] + 1))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.categories.get(number, UNUSED) for number in self.category_ids)

    def source(self, split: str) -> Source:
        instances = self._read(split)
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
        return f"data.init_args.{split}_{what}"


class COCO(COCOFolder):
    """COCO 2017 in its official layout: ROOT/{train2017,val2017,annotations}.

    The labels are the category ids, 91 with 0 and ten more that no object has, so that released
    weights fit; "contiguous" gives 80. Both are known without the files.
    """

    def __init__(
        self,
        root: str,
        labels: Literal["contiguous", "category_ids"] = "category_ids",
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
        return "data.init_args.root"


class DigitScenes(DetectionData):
    """Scenes of scikit-learn's digits, drawn before training; see `digits.scene`.

    Training scenes hold training digits only, validation scenes held-out digits only. The same
    images and targets as `digits.write_scenes` leaves on disk: category 1 is digit 0.

    Args:
        scenes: to train on.
        val_scenes: to validate on.
        size: side of a scene, in pixels.
        scene_seed: of the scenes. The run's seed does not move them, so that AP can be compared.
        recipe: none feeds the scenes as they are drawn. A flip would make other digits.
    """

    class_names = CLASS_NAMES
    mean, std = (0.25,) * 3, (0.2,) * 3
    category_ids = tuple(range(1, len(CLASS_NAMES) + 1))

    def __init__(
        self,
        scenes: int = 2000,
        val_scenes: int = 200,
        size: int = 64,
        scene_seed: int = 0,
        recipe: Scales | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = None,
        images: str | None = None,
    ):
        as_drawn = Scales(flip=0.0, short_sides=(size,), crop=0.0, evaluation=size)
        super().__init__(recipe or as_drawn, batch_size, num_workers, seed, images, False)
        self.counts = {"train": scenes, "val": val_scenes}
        self.size, self.scene_seed = size, scene_seed

    def source(self, split: str) -> Source:
        return DrawnScenes(split, self.counts[split], self.size, self.scene_seed)


class DrawnScenes:
    """A source of scenes, held in memory."""

    def __init__(self, split: Literal["train", "val"], count: int, size: int, seed: int):
        self.scenes = [scene(split, index, size, seed) for index in range(count)]
        self.sizes = np.full((count, 2), size)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Image.Image, int, Objects]:
        drawn = self.scenes[index]
        boxes, labels = torch.tensor(drawn.boxes), torch.tensor(drawn.labels)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        objects = Objects(boxes, labels, area, torch.zeros_like(labels))
        return Image.fromarray(drawn.image), index + 1, objects
