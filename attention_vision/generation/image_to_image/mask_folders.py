"""Folders of images and of their masks: pairs of files, patches and whole images."""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from attention_vision.data.findings import Findings
from attention_vision.data.formats import Folder, image_mask_pair, name_patterns
from attention_vision.data.image_files import Listing, image_files, no_images, walk
from attention_vision.data.loading import OnBadImage, length, random_stream
from attention_vision.data.samples import evenly_spaced
from attention_vision.data.splits import SplitShares
from attention_vision.errors import InputError
from attention_vision.generation.image_to_image.data import (
    ImageToImageData,
    by,
    check_sizes,
    cut,
)
from attention_vision.generation.image_to_image.mask_codes import IGNORED, MaskCodes
from attention_vision.ranges import Count, Seed, Size, Workers, checked
from attention_vision.training.labels import Labels

NAME = "{name}"
VERBS = {"train": "train", "val": "validate", "test": "test"}
DOMINANT = 0.99  # share of the pixels of one class, above which there is little to learn


class ImagesAndMasks(Protocol):
    """Images with masks as arrays, which are cut first and converted to tensors then."""

    @property
    def files(self) -> Sequence[tuple[str, str]]:
        """(image, mask) of each."""
        ...

    def __len__(self) -> int: ...
    def open(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (*size, ...) and mask (*size)."""
        ...

    def tensors(self, image: np.ndarray, mask: np.ndarray, index: int) -> tuple[Tensor, Tensor]:
        """Input (C, *size) float and classes (*size) int64, of the whole or of a part."""
        ...

    def classes(self, mask: np.ndarray, index: int) -> Tensor:
        """The classes alone, `IGNORED` where there is none."""
        ...


class Patches(Dataset):
    """Random patches, flipped at random, several of an image per epoch.

    The randomness follows from (seed, epoch, index); an index alone counts as epoch 0.

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

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        number = index // self.per_image
        image, mask = self.source.open(number)
        with random_stream(self.seed, epoch, index):
            patch = cut(mask.shape, self.size, self.source.files[number][0])
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


@checked
class SegmentationFolders(ImageToImageData):
    """Base of images or volumes with masks, in two folders or in one.

    Trains on patches, evaluates whole images one by one. Folders are searched through their
    subfolders; a TIFF of several pages stands for a folder of them.

    Args:
        train_images, train_masks: folders, which may be the same.
        val_images, val_masks: folders of the validation, if it has its own.
        val_names: names or patterns such as `case_1*`, without the suffix, of images in the
            training folders that are held out for the validation; or what `{name}` stands for.
        class_names: names of the classes, the background first.
        patches_per_image: number of patches in an epoch.
        flips: flip patches, each axis with probability 0.5.
        image_pattern, mask_pattern: names of images and masks below their folders, with `{name}`
            for the part that a mask shares with its image, such as `{name}_training.tif` and
            `{name}_manual1.gif`; without an ending for any. Files of other names are left out.
        test_images, test_masks, test_names: as those of the validation.
        batch_size, num_workers, seed, images, split, on_bad_image: see `ImageToImageData`.

    Raises:
        InputError: no or too many ways to choose what to validate on; from `setup`, a folder that
            is missing or empty, an image without its mask or the reverse.
    """

    evaluation_batch = 1
    looked_at = 32  # training masks whose classes are counted before training
    patch: Sequence[int]
    codes: MaskCodes  # how masks write the classes

    @property
    def extensions(self) -> Collection[str]:
        """Endings of files, in lower case."""
        raise NotImplementedError

    def __init__(
        self,
        train_images: str,
        train_masks: str,
        val_images: str | None,
        val_masks: str | None,
        val_names: Sequence[str],
        class_names: Sequence[str],
        size: Size,
        patches_per_image: Count,
        flips: bool,
        image_pattern: str,
        mask_pattern: str,
        test_images: str | None,
        test_masks: str | None,
        test_names: Sequence[str],
        batch_size: Count,
        num_workers: Workers,
        seed: Seed | None,
        images: str | None,
        split: SplitShares | None,
        on_bad_image: OnBadImage,
    ):
        super().__init__(size, batch_size, num_workers, seed, images, split, on_bad_image)
        if len(class_names) < 2:
            raise InputError("data.class_names: name the background and at least one class more")
        if twice := [name for name, count in Counter(class_names).items() if count > 1]:
            raise InputError(f"data.class_names: {twice[0]} is there twice; give each class a name")
        for key, pattern in (("image", image_pattern), ("mask", mask_pattern)):
            if pattern.count(NAME) != 1:
                raise InputError(
                    f"data.{key}_pattern {pattern}: write {NAME} once, for what an image and its"
                    " mask share"
                )
        self.class_names = self.own_names = tuple(class_names)
        self.patterns = image_pattern, mask_pattern
        self.folders = {"train": (train_images, train_masks)}
        self.names = {"val": tuple(val_names), "test": tuple(test_names)}
        self._add_folders("val", val_images, val_masks)
        self._add_folders("test", test_images, test_masks)
        self.patches_per_image, self.flips = patches_per_image, flips
        self.shares: dict[str, float] = {}  # class -> share of the pixels of training masks

    def _add_folders(self, split: str, images: str | None, masks: str | None) -> None:
        if (images is None) != (masks is None):
            raise InputError(
                f"data.{split}_images and data.{split}_masks: give both, or {split}_names instead"
            )
        ways = [images is not None, bool(self.names[split]), getattr(self.split, split) > 0]
        if sum(ways) > 1 or (split == "val" and not any(ways)):
            raise InputError(
                f"what to {'validate' if split == 'val' else 'test'} on: give one of"
                f" data.{split}_names, data.{split}_images with {split}_masks, and data.split:"
                f" {{{split}: 0.2}}"
            )
        if images is not None and masks is not None:
            self.folders[split] = images, masks

    def use_labels(self, labels: Labels) -> None:
        super().use_labels(labels)
        self.codes.use_labels(self.trained_labels(), self.num_classes)

    def images_and_masks(self, files: list[tuple[str, str]]) -> ImagesAndMasks:
        """The images of these (image, mask) files."""
        raise NotImplementedError

    def header_size(self, file: str) -> tuple[int, ...] | None:
        """Size of an image as the network sees it, from its header; None where it has none."""
        raise NotImplementedError

    def has_split(self, split: str) -> bool:
        return super().has_split(split) or split in self.folders or bool(self.names[split])

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            images: Any = self.train_images
            files = [image for image, _ in images.source.files]
            check_sizes(files, self.header_size, self.patch)
            self._look_at_masks(images.source)

    def dataset(self, split: str, seed: int) -> Dataset:
        source = self.images_and_masks(self.pairs(split))
        if split == "train":
            return Patches(source, self.patch, self.patches_per_image, self.flips, seed)
        return Whole(source)

    def pairs(self, split: str) -> list[tuple[str, str]]:
        """(image, mask) of a split, in the order of the images' paths."""
        findings = self.findings.setdefault(split, Findings())
        if split != "train" and split in self.folders:
            found = find_pairs(*self.folders[split], self.patterns, self.extensions, findings)
            return self._sound(split, list(found.values()))
        every = find_pairs(*self.folders["train"], self.patterns, self.extensions, findings)
        splits = {name: self._held_out_for(name, image) for name, (image, _) in every.items()}
        chosen = [name for name, part in splits.items() if part == split]
        if self.divides(split, None):
            left = [name for name, part in splits.items() if part == "train"]
            chosen = [left[index] for index in self.part(split, left, None)]
        if not chosen:
            keys = [f"data.{part}_names {', '.join(n)}" for part, n in self.names.items() if n]
            which = "all" if split == "train" else "none"
            raise InputError(
                f"{' and '.join(keys) or 'data.split'}: {which} of the {len(every)} images in"
                f" {self.folders['train'][0]}, which leaves none to {VERBS[split]} on"
            )
        return self._sound(split, [every[name] for name in chosen])

    def _held_out_for(self, name: str, image: str) -> str:
        """The split of an image in the training folders, by `val_names` and `test_names`."""
        texts = name, os.path.basename(name), os.path.splitext(os.path.basename(image))[0]
        for split, patterns in self.names.items():
            if any(fnmatch(text, pattern) for text in texts for pattern in patterns):
                return split
        return "train"

    def _sound(self, split: str, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The pairs of which both files can be used, see `sound`."""
        count, files = len(pairs), [file for kind in zip(*pairs, strict=True) for file in kind]
        sound = set(self.sound(split, files))
        kept = [pair for i, pair in enumerate(pairs) if i in sound and i + count in sound]
        if not kept:
            raise InputError(f"none of the {count} {split} images and masks can be read")
        return kept

    def _look_at_masks(self, source: ImagesAndMasks) -> None:
        """Count the classes in some training masks, and warn of what looks wrong."""
        counts = np.zeros(self.num_classes)
        looked_at = evenly_spaced(range(len(source)), self.looked_at)
        for index in looked_at:
            classes = source.classes(source.open(index)[1], index)
            counts += np.bincount(classes[classes != IGNORED], minlength=self.num_classes)
        shares = (counts / max(1, counts.sum())).tolist()
        self.shares = dict(zip(map(str, self.class_names), shares, strict=True))
        masks = f"the {len(looked_at)} training masks that were looked at"
        lines = self.findings["train"].warnings
        if absent := [name for name, share in self.shares.items() if not share]:
            lines.append(f"no pixel of {', '.join(absent)} in {masks}")
        most = max(self.shares, key=lambda name: self.shares[name])
        if self.shares[most] > DOMINANT:
            lines.append(
                f"{self.shares[most]:.2%} of the pixels in {masks} are {most}: to answer that alone"
                " is nearly right; look at the Dice of each class"
            )

    def facts(self, split: str) -> dict[str, Any]:
        samples: Any = getattr(self, f"{split}_images")
        found: dict[str, Any] = {"images": len(samples.source)}
        if split == "train":
            found["patches"] = length(samples)
            found["pixels"] = {name: f"{share:.2%}" for name, share in self.shares.items()}
        return found

    def augmentation(self) -> list[str]:
        flips = ", flipped along each axis" if self.flips else ""
        return [f"patches of {by(self.patch)}, {self.patches_per_image} of an image{flips}"]


class NamePattern:
    """Names of files with a part that stands for the name of an image.

    Args:
        pattern: such as `{name}_mask.png`, or `{name}_mask` for any ending.
        extensions: endings of files, in lower case.

    Attributes:
        literals: number of characters that a name has to have.
    """

    def __init__(self, pattern: str, extensions: Collection[str]):
        self.before, self.after = pattern.split(NAME)
        self.literals = len(self.before) + len(self.after)
        self.has_ending = os.path.splitext(pattern)[1].lower() in extensions

    def name(self, path: str) -> str | None:
        """The name in a path below a folder; None where it does not match."""
        text = path if self.has_ending else os.path.splitext(path)[0]
        fits = text.startswith(self.before) and text.endswith(self.after)
        if not fits or len(text) <= self.literals:
            return None
        return text[len(self.before) :].removesuffix(self.after)


def find_pairs(
    images: str,
    masks: str,
    patterns: tuple[str, str],
    extensions: Collection[str],
    findings: Findings,
) -> dict[str, tuple[str, str]]:
    """Name -> (image, mask), in the order of the images' paths.

    Args:
        images, masks: folders, or TIFFs of several pages.
        patterns: of the names of images and of masks.
        extensions: endings of files, in lower case.
        findings: is told what was left out.

    Raises:
        InputError: a folder that is missing or empty, two files of one name, an image without a
            mask or the reverse; it says which patterns would fit.
    """
    of_image, of_mask = (NamePattern(pattern, extensions) for pattern in patterns)
    image_paths = listed(images, masks, extensions, findings)
    mask_paths = listed(masks, images, extensions, findings)
    together = Path(images) == Path(masks)
    pictures = named(image_paths, images, of_image, of_mask if together else None)
    levels = named(mask_paths, masks, of_mask, of_image if together else None)
    alone = [path for name, path in pictures.items() if name not in levels]
    orphans = [path for name, path in levels.items() if name not in pictures]
    says = ""
    if together and patterns[0] == patterns[1]:
        says = f"images and masks are both in {images}"
    elif alone or orphans:
        kind = "has no mask" if alone else "is a mask without an image"
        first, *others = alone or orphans
        says = f"{first} {kind}" + (f", like {len(others)} more" if others else "")
    elif not pictures:
        says = f"no image in {images} is named {patterns[0]}"
    if says:
        fits = advice(images, masks, image_paths, mask_paths, patterns)
        raise InputError(f"{says}: {fits}")
    for path in sorted({*image_paths, *mask_paths} - {*pictures.values(), *levels.values()}):
        findings.left_out.setdefault(f"not named {' or '.join(patterns)}", []).append(path)
    return {name: (path, levels[name]) for name, path in pictures.items()}


def listed(folder: str, other: str, extensions: Collection[str], findings: Findings) -> list[str]:
    """Files with these endings below a folder, but not those below another one inside of it."""
    if Path(folder).is_file():
        return image_files(folder)
    if not Path(folder).is_dir():
        raise InputError(f"no folder {folder}: set data.train_images, train_masks and so on")
    found, inner = Listing(), Path(other)
    nests = inner != Path(folder) and inner.is_relative_to(folder)
    for path, ending in walk(folder, found):
        if nests and Path(path).is_relative_to(inner):
            continue
        if ending in extensions:
            found.files.append(path)
        else:
            found.leave_out(f"*{ending}" if ending else "files without an ending", path)
    if not found.files:
        raise no_images(folder, found)
    for kind, paths in found.left_out.items():
        known = findings.left_out.setdefault(kind, [])
        known += sorted({*paths} - {*known})  # images and masks may be in one folder
    return sorted(found.files)


def named(
    paths: Sequence[str], folder: str, pattern: NamePattern, other: NamePattern | None
) -> dict[str, str]:
    """Name -> path, of the files that a pattern fits.

    Args:
        other: pattern of the other kind of files in the same folder; one that says more wins.
    """
    found, start = {}, len(os.path.join(folder, ""))
    for path in paths:
        below = path[start:].replace(os.sep, "/")
        name = pattern.name(below)
        if name is None or (
            other and other.literals > pattern.literals and other.name(below) is not None
        ):
            continue
        if name in found:
            raise InputError(f"{found[name]} and {path} have the same name")
        found[name] = path
    return found


def advice(
    images: str,
    masks: str,
    image_paths: Sequence[str],
    mask_paths: Sequence[str],
    patterns: tuple[str, str],
) -> str:
    """What names there are, and the patterns that would fit them."""
    names = Path(image_paths[0]).name, Path(mask_paths[-1]).name
    if Path(images) == Path(masks):
        pair = image_mask_pair(Folder(Path(images)))
        fitting = pair.patterns if pair and pair.images == pair.masks else None
    else:
        fitting = name_patterns([Path(p) for p in image_paths], [Path(p) for p in mask_paths])
    verb = "set"
    if fitting is None or fitting == patterns:
        fitting, verb = patterns, "not of"
    return (
        f"there are {names[0]} and {names[1]}, {verb} data.image_pattern '{fitting[0]}' and"
        f" data.mask_pattern '{fitting[1]}'"
    )
