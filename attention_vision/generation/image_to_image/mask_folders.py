"""Folders of images and of their masks: files of equal names, patches and whole images."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from attention_vision.data.loading import random_stream
from attention_vision.errors import InputError
from attention_vision.generation.image_to_image.data import ImageToImageData, cut


class ImagesAndMasks(Protocol):
    """Images with masks as arrays, which are cut first and converted to tensors then."""

    def __len__(self) -> int: ...
    def open(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (*size, ...) and mask (*size)."""
        ...

    def tensors(self, image: np.ndarray, mask: np.ndarray, index: int) -> tuple[Tensor, Tensor]:
        """Input (C, *size) float and classes (*size) int64, of the whole or of a part."""
        ...


class Patches(Dataset):
    """Random patches, flipped at random, several of an image per epoch.

    The randomness follows from (seed, epoch, index).

    Raises:
        InputError: from `dataset[...]`, an image that is smaller than a patch.
    """

    def __init__(
        self,
        source: ImagesAndMasks,
        size: Sequence[int],
        per_image: int,
        flips: bool,
        seed: int,
    ):
        self.source, self.size, self.per_image = source, size, per_image
        self.flips, self.seed = flips, seed

    def __len__(self) -> int:
        return len(self.source) * self.per_image

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        number = index // self.per_image
        image, mask = self.source.open(number)
        with random_stream(self.seed, epoch, index):
            patch = cut(mask.shape, self.size)
            flipped = (torch.rand(len(self.size)) < 0.5) & self.flips
        inputs, target = self.source.tensors(image[patch], mask[patch], number)
        axes = [axis - len(self.size) for axis, flip in enumerate(flipped.tolist()) if flip]
        return inputs.flip(axes), target.flip(axes)


class Whole(Dataset):
    """Whole images in order."""

    def __init__(self, source: ImagesAndMasks):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.source.tensors(*self.source.open(index), index)


class SegmentationFolders(ImageToImageData):
    """Base of images or volumes in one folder and their masks, of the same names, in another.

    Trains on patches, evaluates whole images one by one.

    Args:
        train_images, train_masks: folders; a mask has the name of its image, up to the suffix.
        val_images, val_masks: folders of the evaluation, if it has its own.
        val_names: names or patterns such as `case_1*`, without the suffix, of images in the
            training folders that are held out for the evaluation.
        class_names: names of the classes, the background first.
        patches_per_image: number of patches in an epoch.
        flips: flip patches, each axis with probability 0.5.
        batch_size, num_workers, seed, images: see `ImageToImageData`.

    Raises:
        InputError: a folder that is missing or empty, an image without its mask or the reverse, or
            nothing to evaluate; from `setup`.
    """

    evaluation_batch = 1
    extensions: Sequence[str]
    patch: Sequence[int]

    def __init__(
        self,
        train_images: str,
        train_masks: str,
        val_images: str | None,
        val_masks: str | None,
        val_names: Sequence[str],
        class_names: Sequence[str],
        size: int,
        patches_per_image: int,
        flips: bool,
        batch_size: int,
        num_workers: int,
        seed: int | None,
        images: str | None,
    ):
        super().__init__(size, batch_size, num_workers, seed, images)
        if len(class_names) < 2:
            raise InputError("data.class_names: name the background and at least one class more")
        if patches_per_image < 1:
            raise InputError(f"data.patches_per_image {patches_per_image} is not positive")
        if (val_images is None) != (val_masks is None):
            raise InputError("data.val_images and data.val_masks: give both, or val_names instead")
        if (val_images is None) == (not val_names):
            raise InputError(
                "what to evaluate on: give either data.val_names or data.val_images and val_masks"
            )
        self.class_names = class_names
        self.train_folders = train_images, train_masks
        self.val_folders = None
        if val_images is not None and val_masks is not None:
            self.val_folders = val_images, val_masks
        self.val_names, self.patches_per_image, self.flips = val_names, patches_per_image, flips

    def images_and_masks(self, files: list[tuple[Path, Path]]) -> ImagesAndMasks:
        raise NotImplementedError

    def dataset(self, split: str, seed: int) -> Dataset:
        source = self.images_and_masks(self.files(split))
        if split == "train":
            return Patches(source, self.patch, self.patches_per_image, self.flips, seed)
        return Whole(source)

    def files(self, split: str) -> list[tuple[Path, Path]]:
        """(image, mask) of a split, in the order of their paths."""
        if split == "val" and self.val_folders is not None:
            return with_masks(*self.val_folders, self.extensions)
        every = with_masks(*self.train_folders, self.extensions)
        chosen = [files for files in every if self.held_out(files[0]) == (split == "val")]
        if not chosen:
            which = "all of them" if split == "train" else "none"
            raise InputError(
                f"data.val_names {', '.join(self.val_names)}: {which} of the {len(every)} images in"
                f" {self.train_folders[0]}"
            )
        return chosen

    def held_out(self, file: Path) -> bool:
        return any(fnmatch(file.stem, pattern) for pattern in self.val_names)


def with_masks(images: str, masks: str, extensions: Sequence[str]) -> list[tuple[Path, Path]]:
    """(image, mask) files of two folders, of the same names up to the suffix."""
    of_images, of_masks = (stems(folder, extensions) for folder in (images, masks))
    for stem, file in of_images.items():
        if stem not in of_masks:
            raise InputError(f"{file} has no mask: there is no {stem}.* in {masks}")
    for stem, file in of_masks.items():
        if stem not in of_images:
            raise InputError(f"{file} is a mask without an image: no {stem}.* in {images}")
    return [(file, of_masks[stem]) for stem, file in of_images.items()]


def stems(folder: str, extensions: Sequence[str]) -> dict[str, Path]:
    if not Path(folder).is_dir():
        raise InputError(f"no folder {folder}: set data.train_images, train_masks and so on")
    found: dict[str, Path] = {}
    for file in sorted(Path(folder).iterdir()):
        if file.suffix.lower() in extensions:
            if file.stem in found:
                raise InputError(f"{found[file.stem]} and {file} have the same name")
            found[file.stem] = file
    if not found:
        raise InputError(f"nothing in {folder}: looked for {', '.join(extensions)}")
    return found
