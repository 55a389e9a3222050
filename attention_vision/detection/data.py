"""Data for detection: `DetectionData`, and scenes of digits.

Batches are (images (B, 3, H, W) float normalized and padded with zeros, padding_mask (B, H, W)
bool, True where padded, targets: a dict per image). A target has `image_id`; `orig_size` and
`size`, (h, w) of the file and as fed; and for its n objects `boxes` (n, 4) cxcywh in 0..1 of the
image without padding, `labels` (n,) int64, `area` (n,) in pixels of the file. In training there are
no crowds; in evaluation they are kept for the metric, which `iscrowd` (n,) tells it;
`criterion.without_crowds` leaves them out of a loss. In predict a target has `path` and no objects.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms import v2

from attention_vision.data.digits import CLASS_NAMES, MEAN, STD, scene
from attention_vision.data.image_files import IMAGENET_MEAN, IMAGENET_STD, image_files, read_image
from attention_vision.data.loading import (
    EpochSampler,
    OnBadImage,
    TaskData,
    random_stream,
    replicas,
)
from attention_vision.data.splits import SplitShares
from attention_vision.detection.instances import ImageEntry
from attention_vision.detection.transforms import DETRAugmentation
from attention_vision.errors import InputError
from attention_vision.ranges import Count, Range, Seed, Workers, checked
from attention_vision.training.labels import Labels
from attention_vision.training.steps import mix

Target = dict[str, Any]
Batch = tuple[Tensor, Tensor, list[Target]]


class Objects(NamedTuple):
    """The objects of one image, in pixels of its file."""

    boxes: Tensor  # (n, 4) float32, xyxy
    labels: Tensor  # (n,) int64
    area: Tensor  # (n,) float32
    iscrowd: Tensor  # (n,) int64


class DetectionSource(Protocol):
    """Images with their objects: `source[i]` is (RGB image, image id, objects)."""

    sizes: np.ndarray  # (images, 2): heights and widths

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Image.Image, int, Objects]: ...


@checked
class DetectionData(TaskData):
    """Base of all detection data: a subclass sets what is declared here, defines `source`.

    Args:
        recipe: scales and crops.
        batch_size, num_workers, seed, images, split, on_bad_image: see `TaskData`.
        group_by_shape: train on batches of either wide or tall images, so that less is padded.

    `num_classes`, `class_names` and `category_ids` (the category of each label) are known before
    `setup` and kept in checkpoints: a run resumes only on data with the same labels.

    Raises:
        InputError: `batch_size` is not positive, or `num_workers` negative.
    """

    category_ids: Sequence[int]
    train_images: "AnnotatedDataset"
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(
        self,
        recipe: DETRAugmentation,
        batch_size: Count,
        num_workers: Workers,
        seed: Seed | None,
        images: str | None,
        group_by_shape: bool,
        split: SplitShares | None = None,
        on_bad_image: OnBadImage = "stop",
    ):
        super().__init__(batch_size, num_workers, seed, images, split, on_bad_image)
        self.recipe, self.group_by_shape = recipe, group_by_shape

    def source(self, split: str) -> DetectionSource:
        """The images of a split. Raises InputError when they are missing or wrong."""
        raise NotImplementedError

    def dataset(self, split: str, seed: int) -> "AnnotatedDataset":
        training = split == "train"
        transform = (self.recipe.train if training else self.recipe.evaluate)(self.mean, self.std)
        return AnnotatedDataset(self._checked(split), transform, seed, crowds=not training)

    def inputs(self, folder: str) -> Dataset:
        transform = self.recipe.evaluate(self.mean, self.std)
        return DetectionInputs(folder, transform, self.annotated(folder))

    def annotated(self, folder: str) -> dict[str, ImageEntry]:
        """The images of a folder by their absolute path, where annotations describe them."""
        return {}

    def facts(self, split: str) -> dict[str, Any]:
        images = getattr(self, f"{split}_images")
        instances = getattr(images.source, "instances", None)
        if instances is None:
            return super().facts(split)
        per_image = np.diff(instances.first)
        labels = np.bincount(images.source.labels, minlength=self.num_classes)
        sides = np.sqrt(instances.area)
        return super().facts(split) | {
            "objects": len(instances.boxes),
            "classes": {
                name: int(count)
                for name, count in zip(self.class_names, labels, strict=True)
                if count or name in instances.categories.values()
            },
            "objects per image": {
                "least": int(per_image.min()),
                "median": int(np.median(per_image)),
                "most": int(per_image.max()),
            },
            "images without objects": int((per_image == 0).sum()),
            "objects by size": {
                "small (below 32x32 pixels)": int((sides < 32).sum()),
                "medium": int(((sides >= 32) & (sides < 96)).sum()),
                "large (from 96x96)": int((sides >= 96).sum()),
            },
            "crowds, not trained on": int(instances.iscrowd.sum()),
        }

    def sampler(self) -> EpochSampler:
        if not self.group_by_shape:
            return super().sampler()
        images, processes = self.train_images, replicas(self.trainer)
        wide = images.source.sizes[:, 1] > images.source.sizes[:, 0]
        return GroupedSampler(images, *processes, self.order_seed, wide.tolist(), self.batch_size)

    def use_labels(self, labels: Labels) -> None:
        super().use_labels(labels)
        if labels.category_ids:
            self.category_ids = labels.category_ids

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"category_ids": list(self.category_ids)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises InputError where a label, or a held-out sample, would change its meaning."""
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
        super().load_state_dict(state)

    def _loading(self) -> dict[str, Any]:
        return super()._loading() | {"collate_fn": partial(collate, multiple=self.recipe.pad_to)}

    def _checked(self, split: str) -> DetectionSource:
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
        return [index for number in shuffled for index in batches[number]] + rest

    def _cut(self, indices: list[int]) -> tuple[list[list[int]], list[int]]:
        """Full batches, and what is left over."""
        end = len(indices) - len(indices) % self.batch_size
        starts = range(0, end, self.batch_size)
        return [indices[start : start + self.batch_size] for start in starts], indices[end:]


class AnnotatedDataset(Dataset):
    """Transformed (image, target) pairs; each image has its own random stream.

    The stream is seeded by (seed, epoch, index): an image looks the same at any number of workers,
    and after a resume. An index without an epoch, as in evaluation, counts as epoch 0.
    """

    def __init__(self, source: DetectionSource, transform: v2.Transform, seed: int, crowds: bool):
        self.source, self.transform, self.seed, self.crowds = source, transform, seed, crowds

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Target]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, image_id, objects = self.source[index]
        original = (image.height, image.width)
        boxes = tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue] sees only Tensor's
            objects.boxes, format="XYXY", canvas_size=original
        )
        with random_stream(self.seed, epoch, index):
            image, boxes = self.transform(image, boxes)
        height, width = image.shape[1:]
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)  # a crop leaves others outside
        if not self.crowds:
            kept &= objects.iscrowd == 0
        centered = box_convert(boxes[kept], "xyxy", "cxcywh")
        # Where crowds are dropped already: a criterion would look for them on the device.
        crowds = {"iscrowd": objects.iscrowd[kept]} if self.crowds else {}
        return image, {
            "boxes": centered / torch.tensor([width, height, width, height]),
            "labels": objects.labels[kept],
            "area": objects.area[kept],
            **crowds,
            "image_id": image_id,
            "orig_size": torch.tensor(original),
            "size": torch.tensor([height, width]),
        }


class DetectionInputs(Dataset):
    """All images below a folder in the order of their paths.

    Args:
        folder: searched through its subfolders.
        transform: of the images.
        annotated: by absolute path; where it lacks one, all images are numbered from 0.
    """

    def __init__(self, folder: str, transform: v2.Transform, annotated: Mapping[str, ImageEntry]):
        self.files, self.transform = image_files(folder), transform
        entries = [annotated.get(str(Path(file).resolve())) for file in self.files]
        self.described = None not in entries
        self.entries = entries if self.described else [None] * len(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        entry = self.entries[index]
        read = read_annotated(self.files[index], entry and (entry.width, entry.height))
        image = self.transform(read)
        return image, {
            "path": self.files[index],
            "image_id": entry.number if entry else index,
            "orig_size": torch.tensor([read.height, read.width]),
            "size": torch.tensor(image.shape[1:]),
        }


def read_annotated(path: str, size: tuple[int, int] | None) -> Image.Image:
    """Read an image upright, but as it is stored where that alone has the annotated size (w, h)."""
    upright = read_image(path)
    if size in (None, upright.size):
        return upright
    stored = read_image(path, turn=False)
    return stored if stored.size == size else upright


def collate(samples: list[tuple[Tensor, Target]], multiple: int = 1) -> Batch:
    """Pads images to the largest height and width of the batch, right and below, with zeros.

    Both are rounded up to a `multiple`.
    """
    sizes = [image.shape[1:] for image, _ in samples]
    high, wide = (-(-max(extents) // multiple) * multiple for extents in zip(*sizes, strict=True))
    room = [(0, wide - width, 0, high - height) for height, width in sizes]
    images = torch.stack([pad(image, by) for (image, _), by in zip(samples, room, strict=True)])
    padding_mask = torch.ones(len(samples), high, wide, dtype=torch.bool)
    for mask, (height, width) in zip(padding_mask, sizes, strict=True):
        mask[:height, :width] = False
    return images, padding_mask, [target for _, target in samples]


@checked
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
    mean, std = (MEAN,) * 3, (STD,) * 3  # as the classifier has seen them
    category_ids = tuple(range(1, len(CLASS_NAMES) + 1))

    def __init__(
        self,
        scenes: Count = 2000,
        val_scenes: Count = 200,
        size: Annotated[int, Range(16, 65_536)] = 64,
        scene_seed: Seed = 0,
        recipe: DETRAugmentation | None = None,
        batch_size: Count = 32,
        num_workers: Workers = 0,
        seed: Seed | None = None,
        images: str | None = None,
    ):
        as_drawn = DETRAugmentation(flip=0.0, short_sides=(size,), crop=0.0, evaluation=size)
        super().__init__(recipe or as_drawn, batch_size, num_workers, seed, images, False)
        self.counts = {"train": scenes, "val": val_scenes}
        self.size, self.scene_seed = size, scene_seed

    def source(self, split: str) -> DetectionSource:
        drawn = (split, self.counts[split], self.size, self.scene_seed)
        return DrawnScenes(*drawn, self.trained_labels())


class DrawnScenes:
    """A source of scenes, held in memory.

    Args:
        split, count, size, seed: of the scenes.
        labels: label of each digit, itself by default.
    """

    def __init__(
        self, split: str, count: int, size: int, seed: int, labels: Sequence[int] = range(10)
    ):
        self.labels = torch.tensor(labels)
        self.scenes = [scene(split, index, size, seed) for index in range(count)]
        self.sizes = np.full((count, 2), size)
        self.image_ids = np.arange(1, count + 1)
        self.targets = [labels[digit] for drawn in self.scenes for digit in drawn.labels]

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Image.Image, int, Objects]:
        drawn = self.scenes[index]
        boxes, labels = torch.tensor(drawn.boxes), self.labels[drawn.labels]
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        objects = Objects(boxes, labels, area, torch.zeros_like(labels))
        return Image.fromarray(drawn.image), int(self.image_ids[index]), objects
