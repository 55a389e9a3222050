"""Data in COCO format: COCO itself, and any folder of images with an instances file."""

from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from attention_vision.data.image_files import read_image
from attention_vision.detection.coco_annotations import Instances
from attention_vision.detection.data import DetectionData, DetectionSource, Objects
from attention_vision.detection.transforms import DETRAugmentation
from attention_vision.errors import InputError

Labels = Literal["contiguous", "category_ids", "category_ids_from_1"]

DETR_RECIPE = DETRAugmentation()
UNUSED = "N/A"  # the name of a label that no category has

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

    @property
    def files(self) -> list[str]:
        """Paths of the images."""
        return [str(self.folder / file) for file in self.instances.files]

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
        for turn in (True, False):
            image = read_image(path, turn)
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
        recipe: DETRAugmentation = DETR_RECIPE,
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

    def source(self, split: str) -> DetectionSource:
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
    has 80. All are known without the files.
    """

    def __init__(
        self,
        root: str,
        labels: Labels = "category_ids",
        recipe: DETRAugmentation = DETR_RECIPE,
        batch_size: int = 2,
        num_workers: int = 4,
        seed: int | None = None,
        images: str | None = None,
        group_by_shape: bool = False,
    ):
        folder = Path(root)
        super().__init__(
            str(folder / "train2017"), str(folder / "annotations/instances_train2017.json"),
            str(folder / "val2017"), str(folder / "annotations/instances_val2017.json"),
            labels, recipe, batch_size, num_workers, seed, images, group_by_shape,
        )  # fmt: skip

    @cached_property
    def categories(self) -> dict[int, str]:
        names = [name.strip() for name in COCO_NAMES.replace("\n", " ").split(",")]
        return {number: name for number, name in enumerate(names, 1) if name != UNUSED}

    def _reference(self) -> str:
        return "COCO 2017: COCOFolder takes any categories"

    def _key(self, split: str, what: str) -> str:
        return "data.root"
