"""Sources of labeled images, and the data sets that transform them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from attention_vision.classification.transforms import Pixels
from attention_vision.data.encoded_image import EncodedImage
from attention_vision.data.image_files import Listing, image_files
from attention_vision.data.loading import random_stream


class ClassificationSource(Protocol):
    """Images with labels, as torchvision's data sets have them: `source[i]` is (image, label).

    An image is a PIL image, a tensor, or an `EncodedImage`, which is decoded as the transform asks.
    One whose labels are not those of its data module has `class_names`, by which they are mapped.
    A class whose images are the same at every reading says so by `fixed = True`: they may be held
    in memory.
    """

    @property
    def targets(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Any, int]: ...


class AugmentedDataset(Dataset):
    """Transformed (image, label) pairs; each image has its own random stream.

    The stream is seeded by (seed, epoch, index): an image looks the same at any number of workers,
    and after a resume. An index without an epoch, as in evaluation, counts as epoch 0. With
    repeats, indices count them: index · repeats + repeat.
    """

    def __init__(
        self, source: ClassificationSource, transform: nn.Module, seed: int, repeats: int = 1
    ):
        self.source, self.transform = source, transform
        self.seed, self.repeats = seed, repeats
        self.targets = source.targets

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        return self._transformed(key, self.transform)

    def _transformed(self, key: int | tuple[int, int], transform: nn.Module) -> tuple[Tensor, int]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, label = self.source[index // self.repeats]
        with random_stream(self.seed, epoch, index):
            return transform(image), int(label)


class PixelBatches(AugmentedDataset):
    """An `AugmentedDataset` whose batches are normalized whole: `Pixels` is its transform.

    Workers pass on uint8, a quarter of the bytes, and the loader `finish`es a batch on the device
    that trains.
    """

    transform: Pixels

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[tuple[Tensor, int]]:
        return [self._transformed(key, self.transform.pixels) for key in keys]

    def finish(self, batch: list[Tensor], device: torch.device) -> list[Tensor]:
        """Move a batch of (pixels, labels) to a device, with the pixels normalized."""
        pixels, labels = (part.to(device, non_blocking=True) for part in batch)
        return [self.transform.normalized(pixels), labels]


class ClassificationInputs(Dataset):
    """All images below a folder in the order of their paths, as (image, path)."""

    def __init__(self, folder: str, transform: nn.Module):
        self.files = image_files(folder)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        return self.transform(EncodedImage(self.files[index])), self.files[index]


class TensorImages:
    """A source of images that are already tensors (n, C, H, W) uint8."""

    fixed = True

    def __init__(self, images: Tensor, targets: list[int]):
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


class LabeledFiles:
    """A source of image files with their labels.

    Args:
        files: (path, label) of each.
        class_names: by label.
    """

    fixed = True

    def __init__(self, files: Sequence[tuple[str, int]], class_names: Sequence[str]):
        self.files, self.class_names = list(files), class_names
        self.targets = [label for _, label in files]

    @classmethod
    def in_folders(
        cls, listing: Listing, folder: Path, class_names: Sequence[str]
    ) -> "LabeledFiles":
        """Of a listed folder, the images in one folder per class, in the order of the classes."""
        numbers = {name: number for number, name in enumerate(class_names)}
        classes = [below.partition("/")[0] for below in listing.below(folder)]
        files = [
            (path, numbers[name])
            for path, name in zip(listing.files, classes, strict=True)
            if name in numbers
        ]
        return cls(sorted(files, key=lambda pair: pair[1]), class_names)

    def chosen(self, indices: Sequence[int]) -> "LabeledFiles":
        return LabeledFiles([self.files[index] for index in indices], self.class_names)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[EncodedImage, int]:
        path, label = self.files[index]
        return EncodedImage(path), label


class RelabeledSource:
    """A source whose labels are replaced.

    Args:
        source: the images.
        labels: new label of each of its labels.
    """

    fixed = True  # if that source is

    def __init__(self, source: ClassificationSource, labels: Sequence[int]):
        self.source, self.labels = source, labels
        self.targets = [labels[label] for label in source.targets]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.source[index]
        return image, self.labels[label]


def first_per_class(labels: Sequence[int], count: int) -> list[int]:
    """Indices of the first `count` samples of each label, or of all if there are fewer."""
    seen: Counter[int] = Counter()
    kept = []
    for index, label in enumerate(labels):
        seen[label] += 1
        if seen[label] <= count:
            kept.append(index)
    return kept
