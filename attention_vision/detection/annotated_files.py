"""Base of detection data in files: splits, labels by name, and images with their objects."""

from abc import abstractmethod
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from attention_vision.data.findings import Findings
from attention_vision.data.image_files import leaves_folder, list_images
from attention_vision.data.labels import labels_by_name
from attention_vision.data.loading import OnBadImage
from attention_vision.data.splits import SplitShares
from attention_vision.detection.data import (
    DetectionData,
    DetectionSource,
    Objects,
    read_annotated,
)
from attention_vision.detection.instances import Instances, crowds_in_words
from attention_vision.detection.transforms import DETRAugmentation
from attention_vision.errors import InputError
from attention_vision.ranges import Count, Seed, Workers, checked

DETR_RECIPE = DETRAugmentation()


@checked
class AnnotatedFiles(DetectionData):
    """Base of detection data in files: a subclass reads the instances of each split.

    Images are turned upright by EXIF, unless the annotations are on the image as it is stored;
    images without objects are trained on. The categories are those of the training images.

    Args:
        recipe, group_by_shape: see `DetectionData`.
        batch_size, num_workers, seed, images, split, on_bad_image: see `TaskData`.
    """

    def __init__(
        self,
        recipe: DETRAugmentation,
        batch_size: Count,
        num_workers: Workers,
        seed: Seed | None,
        images: str | None,
        group_by_shape: bool,
        split: SplitShares | None,
        on_bad_image: OnBadImage,
    ):
        super().__init__(
            recipe, batch_size, num_workers, seed, images, group_by_shape, split, on_bad_image
        )
        self._instances: dict[str, Instances] = {}

    @abstractmethod
    def has_own(self, split: str) -> bool:
        """Whether the files say which images belong to a split."""

    @abstractmethod
    def instances(self, split: str) -> Instances:
        """The annotated images of a split, or of "train" those that `data.split` divides."""

    @abstractmethod
    def folder(self, split: str) -> Path:
        """The folder that the files of `instances` are relative to."""

    def key(self, split: str) -> str:
        """The key of the config that sets the folder of the images."""
        return "data.root"

    def has_split(self, split: str) -> bool:
        return super().has_split(split) or self.has_own(split)

    @property
    def naming_split(self) -> str:
        """The split whose files name the categories: that of validation where it is alone."""
        return "train"

    @cached_property
    def categories(self) -> dict[int, str]:
        """Names by id, read when first asked for."""
        return self._read(self.naming_split).categories

    @cached_property
    def category_ids(self) -> tuple[int, ...]:
        return tuple(self.categories)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.categories[number] for number in self.category_ids)

    def source(self, split: str) -> DetectionSource:
        own = self.has_own(split)
        divided = self.divides(split, f"a {split} split of its own" if own else None)
        if not own and not divided and split != "train":
            raise InputError(self.without(split))
        whole = split if own else "train"
        instances, labels = self._read(whole), self._labels(whole)
        if divided:
            instances = instances.chosen(self.part(split, instances.files, instances.rarest()))
        files = FilesOfImages(instances, self.folder(whole))
        if files.missing and self.on_bad_image == "stop":
            raise InputError(files.refusal(self.key(whole)))
        sound = self.sound(split, files.paths)
        instances, paths = instances.chosen(sound), [files.paths[index] for index in sound]
        if split == "train" and instances.files and (instances.iscrowd != 0).all():
            crowds = len(instances.iscrowd)
            why = f": {crowds_in_words(crowds, crowds)}" if crowds else ", all images are empty"
            raise InputError(f"{instances.path}: no objects to train on{why}")
        findings = self.findings.setdefault(split, Findings())
        findings.repaired += [*instances.repaired, *files.repaired]
        findings.warnings += instances.warnings
        return InstanceFiles(instances, paths, labels)

    def without(self, split: str) -> str:
        """One line for a split that is not there."""
        return (
            f"{type(self).__name__} has no {split} images: set data.split.{split} to a share of the"
            " training images, such as 0.2"
        )

    def _read(self, split: str) -> Instances:
        if split not in self._instances:
            self._instances[split] = self.instances(split)
        return self._instances[split]

    def _labels(self, split: str) -> dict[int, int]:
        """The label of each category of a split: by name, once weights know names."""
        instances = self._read(split)
        if self.labels is not None:
            used = set(instances.category_ids.tolist())
            named = {
                number: name
                for number, name in instances.categories.items()
                if number in used or name in self.class_names
            }
            found = labels_by_name(self.class_names, list(named.values()), str(instances.path))
            return dict(zip(named, found, strict=True))
        for number, name in instances.categories.items():
            if (expected := self.categories.get(number, "unknown")) != name:
                raise InputError(
                    f"{instances.path}: category {number} ({name}) is {expected} in"
                    f" {self.reference()}: number the categories of both alike"
                )
        return {number: label for label, number in enumerate(self.category_ids)}

    def reference(self) -> str:
        """The file that names the categories, for messages."""
        return str(self._read("train").path)


def read_lines(file: Path) -> list[str]:
    """Lines of a text file, with any byte order mark. Raises InputError if it is no text."""
    try:
        content = file.read_bytes()
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        return content.decode("utf-16" if wide else "utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as text in UTF-8: {error}") from None


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


class FilesOfImages:
    """The image files of instances, found in their folder.

    A name with backslashes, with folders that are not there, or that leaves the folder, is taken
    for the file that it means below the folder, and counted. A file that is missing keeps the path
    where it should be.
    """

    def __init__(self, instances: Instances, folder: Path):
        self.instances, self.folder = instances, folder
        here = {path.name for path in folder.glob("*")}  # one look, not one per image
        self.paths: list[str] = []
        self.repaired: list[str] = []
        self.missing: list[str] = []
        changed = []
        taken: set[str] = set()
        inside: dict[str, list[str]] | None = None
        for file in instances.files:
            outside = leaves_folder(file)
            if file in here or (not outside and is_file(folder / file)):
                self.paths.append(str(folder / file))
                continue
            plain = file.replace("\\", "/")
            if not outside and is_file(folder / plain):
                self.paths.append(str(folder / plain))
                changed.append(file)
                continue
            if inside is None:
                inside = {}
                for path in list_images(folder).files:
                    inside.setdefault(Path(path).name, []).append(path)
            of_that_name = inside.get(plain.rpartition("/")[2], [])
            # A file that another entry has taken is not this one's too.
            if len(of_that_name) == 1 and of_that_name[0] not in taken:
                taken.add(of_that_name[0])
                self.paths.append(of_that_name[0])
                changed.append(file)
            else:
                self.paths.append(str(folder / (plain.rpartition("/")[2] if outside else file)))
                self.missing.append(file)
        if changed:
            self.repaired.append(
                f"{instances.path}: {len(changed)} images found under another path (first:"
                f" {changed[0]})"
            )

    def refusal(self, key: str) -> str:
        """One line on the images that are missing."""
        return (
            f"{len(self.missing)} of the {len(self.paths)} images of {self.instances.path} are not"
            f" in {self.folder}, the first is {self.missing[0]}: set {key} to their folder, or"
            " data.on_bad_image to skip"
        )


class InstanceFiles:
    """A source of image files with their objects.

    Args:
        instances: the annotations.
        paths: of the image files.
        labels: of each category.
    """

    def __init__(self, instances: Instances, paths: list[str], labels: dict[int, int]):
        self.instances, self.files = instances, paths
        self.sizes, self.image_ids = instances.sizes, instances.image_ids
        numbers = instances.category_ids.tolist()
        self.labels = np.array([labels[number] for number in numbers], dtype=np.int64)

    @property
    def annotations(self) -> list[bytes]:
        """Objects of all images, for the fingerprint of the data."""
        all_of_them = self.instances
        numbers = (all_of_them.first, self.labels, all_of_them.iscrowd)
        arrays = (*(array.astype(np.int64) for array in numbers), all_of_them.boxes)
        return [array.tobytes() for array in arrays]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int, Objects]:
        all_of_them = self.instances
        here = slice(*all_of_them.first[index : index + 2])
        image = self._read(self.files[index], all_of_them.sizes[index])
        return (
            image,
            int(self.image_ids[index]),
            Objects(
                torch.tensor(all_of_them.boxes[here], dtype=torch.float32),
                torch.tensor(self.labels[here]),
                torch.tensor(all_of_them.area[here], dtype=torch.float32),
                torch.tensor(all_of_them.iscrowd[here]),
            ),
        )

    def _read(self, path: str, size: np.ndarray) -> Image.Image:
        height, width = size.tolist()
        image = read_annotated(path, (width, height))
        if image.size == (width, height):
            return image
        raise InputError(
            f"{path} is {image.width}x{image.height} pixels, {self.instances.path} says"
            f" {width}x{height}: its boxes are of another image"
        )
