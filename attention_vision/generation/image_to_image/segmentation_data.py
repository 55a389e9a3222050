"""Data for segmentation: images with masks, and digits in noise."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from attention_vision.data.digits import single_digits
from attention_vision.data.image_files import extensions, image_files, read_image, read_levels
from attention_vision.data.loading import random_stream
from attention_vision.data.splits import Split
from attention_vision.errors import InputError
from attention_vision.generation.image_to_image.data import EVALUATION, ImageToImageData, by
from attention_vision.generation.image_to_image.mask_folders import (
    ImagesAndMasks,
    SegmentationFolders,
)


class MaskFolder(SegmentationFolders):
    """RGB images, and masks whose gray levels are the classes.

    Args:
        values: gray level of each class in the masks.
        shrink: divisor of the sides of images and masks; a pixel has the class that covers most of
            it.
        size: side of the training patches after shrinking, in pixels.
        in_memory: keep images and masks in memory; for small sets.
        train_images, train_masks, val_images, val_masks, val_names, class_names,
            patches_per_image, flips: see `SegmentationFolders`.
        batch_size, num_workers, seed, images: see `ImageToImageData`.
    """

    extensions = property(lambda self: extensions())

    def __init__(
        self,
        train_images: str,
        train_masks: str,
        val_images: str | None = None,
        val_masks: str | None = None,
        val_names: Sequence[str] = (),
        class_names: Sequence[str] = ("background", "foreground"),
        values: Sequence[int] = (0, 255),
        shrink: float = 1.0,
        size: int = 128,
        patches_per_image: int = 16,
        flips: bool = True,
        in_memory: bool = False,
        batch_size: int = 8,
        num_workers: int = 2,
        seed: int | None = None,
        images: str | None = None,
    ):
        super().__init__(
            train_images, train_masks, val_images, val_masks, val_names, class_names, size,
            patches_per_image, flips, batch_size, num_workers, seed, images,
        )  # fmt: skip
        if len(values) != len(class_names) or len(set(values)) != len(values):
            raise InputError(
                f"data.values: one grey level for each of the {len(class_names)} classes, not"
                f" {list(values)}"
            )
        if shrink < 1:
            raise InputError(f"data.shrink {shrink} is less than 1")
        self.values, self.shrink, self.in_memory = values, shrink, in_memory
        self.patch = (size, size)

    def images_and_masks(self, files: list[tuple[Path, Path]]) -> ImagesAndMasks:
        return MaskedImages(files, self.values, self.shrink, self.in_memory)

    def inputs(self, folder: str) -> Dataset:
        return ImagesToSegment(folder, self.shrink)


class MaskedImages:
    """Image files with mask files, as uint8 arrays (H, W, 3) and class numbers (H, W).

    Raises:
        InputError: from `open`, sizes that differ, or a gray level that is not a class.
    """

    def __init__(
        self, files: list[tuple[Path, Path]], values: Sequence[int], shrink: float, in_memory: bool
    ):
        self.files, self.values, self.shrink = files, values, shrink
        self.in_memory = in_memory
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def open(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index in self._kept:
            return self._kept[index]
        image_file, mask_file = self.files[index]
        image, mask = read_image(str(image_file)), read_levels(mask_file)
        if mask.ndim == 3:
            raise InputError(
                f"{mask_file}: a mask is a grey image whose levels are the classes, not a coloured"
            )
        if (image.height, image.width) != mask.shape:
            raise InputError(
                f"{image_file} is {by((image.height, image.width))}, its mask {mask_file}"
                f" {by(mask.shape)}"
            )
        if unknown := set(np.unique(mask).tolist()) - set(self.values):
            raise InputError(
                f"{mask_file}: grey levels {', '.join(map(str, sorted(unknown)[:5]))} are no class;"
                f" data.values are {', '.join(map(str, self.values))}"
            )
        classes = np.zeros(mask.shape, np.uint8)
        for number, value in enumerate(self.values):
            classes[mask == value] = number
        arrays = (
            np.asarray(shrunk(image, self.shrink)),
            shrunk_classes(classes, len(self.values), self.shrink),
        )
        if self.in_memory:
            self._kept[index] = arrays
        return arrays

    def tensors(self, image: np.ndarray, mask: np.ndarray, index: int) -> tuple[Tensor, Tensor]:
        # Copies: a part of an array is neither contiguous nor ours to write.
        return torch.tensor(image).movedim(-1, 0) / 255, torch.tensor(mask).long()


class ImagesToSegment(Dataset):
    """All images below a folder in the order of their paths, as (input, path, the file's size)."""

    def __init__(self, folder: str, shrink: float):
        self.files, self.shrink = image_files(folder), shrink

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, str, torch.Size]:
        image = read_image(self.files[index])
        size = torch.Size((image.height, image.width))
        return pil_to_tensor(shrunk(image, self.shrink)) / 255, self.files[index], size


def shrunk(image: Image.Image, factor: float) -> Image.Image:
    size = [max(1, round(length / factor)) for length in image.size]
    return image if factor == 1 else image.resize(size, Image.Resampling.BILINEAR)


def shrunk_classes(classes: np.ndarray, count: int, factor: float) -> np.ndarray:
    """Shrink class numbers (H, W) uint8: each pixel has the class that covers most of it."""
    if factor == 1:
        return classes
    size = [max(1, round(length / factor)) for length in reversed(classes.shape)]
    masks = (Image.fromarray((classes == number).astype(np.float32)) for number in range(count))
    fractions = [np.asarray(mask.resize(size, Image.Resampling.BOX)) for mask in masks]
    return np.argmax(np.stack(fractions), 0).astype(np.uint8)


class DigitMasks(ImageToImageData):
    """scikit-learn's digits in noise, and their ink as the mask; 1,442 to train on, 355 held out.

    Args:
        sigma: of the noise, where ink is 1.
        size, batch_size, num_workers, seed, images: see `ImageToImageData`.
    """

    class_names = ("background", "ink")

    def __init__(
        self,
        sigma: float = 0.5,
        size: int = 32,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = None,
        images: str | None = None,
    ):
        super().__init__(size, batch_size, num_workers, seed, images)
        self.sigma = sigma

    def dataset(self, split: Split, seed: int) -> Dataset:
        digits, _ = single_digits(split, self.size)
        return NoisyDigits(digits, self.sigma, seed if split == "train" else EVALUATION)

    def inputs(self, folder: str) -> Dataset:
        return ImagesToSegment(folder, 1.0)


class NoisyDigits(Dataset):
    """(noisy digit (3, H, W), its ink (H, W)); the noise follows from (seed, epoch, index)."""

    def __init__(self, digits: Tensor, sigma: float, seed: int):
        self.digits, self.sigma, self.seed = digits, sigma, seed

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        digit = self.digits[index]
        with random_stream(self.seed, epoch, index):
            noisy = digit.expand(3, -1, -1) + self.sigma * torch.randn(3, *digit.shape[1:])
        return noisy, (digit[0] > 0.5).long()
