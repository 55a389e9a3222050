"""Data for segmentation: images with masks, and digits in noise."""

from collections.abc import Collection, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from attention_vision.data.digits import single_digits
from attention_vision.data.image_files import extensions, header, image_files, read_image
from attention_vision.data.loading import OnBadImage, random_stream
from attention_vision.data.samples import evenly_spaced
from attention_vision.data.splits import Split, SplitShares
from attention_vision.errors import InputError
from attention_vision.generation.image_to_image.data import (
    EVALUATION,
    HEADERS,
    ImageToImageData,
    by,
    upright_size,
)
from attention_vision.generation.image_to_image.mask_codes import (
    IGNORED,
    LOSSY,
    Color,
    Level,
    MaskCodes,
    read_colors,
)
from attention_vision.generation.image_to_image.mask_folders import (
    ImagesAndMasks,
    SegmentationFolders,
)
from attention_vision.ranges import Count, NonNegative, Range, Seed, Size, Workers, checked

TWO_CLASSES = ("background", "foreground")


@checked
class MaskFolder(SegmentationFolders):
    """RGB images, and masks whose gray levels, palette indices or colors are the classes.

    Args:
        values: gray level, or index of a palette image, of each class in the masks; `rest` stands
            for all levels that are not named: [0, rest] takes numbered objects for one class. By
            default 0 and 255 for two classes, else the numbers of the classes.
        colors: class -> [R, G, B] in the place of values, or a CSV of name,r,g,b; the names are the
            classes.
        ignore: gray level or color of pixels that count neither in the loss nor in the metrics;
            `rest` for all that are not a class.
        shrink: divisor of the sides of images and masks; a pixel has the class that covers most of
            it.
        size: side of the training patches after shrinking, in pixels.
        in_memory: keep images and masks in memory; for small sets.
        train_images, train_masks, val_images, val_masks, val_names, class_names,
            patches_per_image, flips, image_pattern, mask_pattern, test_images, test_masks,
            test_names: see `SegmentationFolders`.
        batch_size, num_workers, seed, images, split, on_bad_image: see `ImageToImageData`.
    """

    @property
    def extensions(self) -> Collection[str]:
        return extensions()

    def __init__(
        self,
        train_images: str,
        train_masks: str,
        val_images: str | None = None,
        val_masks: str | None = None,
        val_names: Sequence[str] = (),
        class_names: Sequence[str] = TWO_CLASSES,
        values: Sequence[Level] | None = None,
        shrink: Annotated[float, Range(1)] = 1.0,
        size: Size = 128,
        patches_per_image: Count = 16,
        flips: bool = True,
        in_memory: bool = False,
        batch_size: Count = 8,
        num_workers: Workers = 2,
        seed: Seed | None = None,
        images: str | None = None,
        image_pattern: str = "{name}",
        mask_pattern: str = "{name}",
        colors: dict[str, Color] | str | None = None,
        ignore: Level | Color | None = None,
        test_images: str | None = None,
        test_masks: str | None = None,
        test_names: Sequence[str] = (),
        split: SplitShares | None = None,
        on_bad_image: OnBadImage = "stop",
    ):
        if (table := read_colors(colors)) is not None:
            if values is not None or tuple(class_names) not in (TWO_CLASSES, tuple(table)):
                raise InputError("data.colors names the classes: leave values and class_names out")
            class_names = tuple(table)
        super().__init__(
            train_images, train_masks, val_images, val_masks, val_names, class_names, size,
            patches_per_image, flips, image_pattern, mask_pattern, test_images, test_masks,
            test_names, batch_size, num_workers, seed, images, split, on_bad_image,
        )  # fmt: skip
        self.codes = MaskCodes(self.own_names, values, table, ignore)
        self.shrink, self.in_memory = shrink, in_memory
        self.patch = (size, size)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            images: Any = self.train_images
            self._look_at_headers(evenly_spaced(images.source.files, HEADERS))

    def _look_at_headers(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Note training masks that are JPEG, or turned otherwise than their images."""
        findings = self.findings["train"]
        lossy = [mask for _, mask in pairs if mask.lower().endswith(LOSSY)]
        if lossy:
            findings.repaired.append(
                f"{len(lossy)} masks are JPEG, such as {lossy[0]}: each pixel counts for the"
                " nearest class"
            )
        turned = [pair for pair in pairs if len({orientation(file) for file in pair}) > 1]
        if turned:
            findings.warnings.append(
                f"{len(turned)} images are turned by EXIF otherwise than their masks, such as"
                f" {turned[0][0]}: look whether they lie on each other"
            )

    def header_size(self, file: str) -> tuple[int, ...] | None:
        size = upright_size(file)
        return size and tuple(max(1, round(length / self.shrink)) for length in size)

    def images_and_masks(self, files: list[tuple[str, str]]) -> ImagesAndMasks:
        return MaskedImages(files, self.codes, self.shrink, self.in_memory)

    def inputs(self, folder: str) -> Dataset:
        return ImagesToSegment(folder, self.shrink)


class MaskedImages:
    """Image files with mask files, as uint8 arrays (H, W, 3) and class numbers (H, W).

    An image that EXIF turns on its side is left as it is stored where its mask lies that way.

    Raises:
        InputError: from `open`, sizes that differ, or a level or color that is not a class.
    """

    def __init__(
        self, files: list[tuple[str, str]], codes: MaskCodes, shrink: float, in_memory: bool
    ):
        self.files, self.codes, self.shrink = files, codes, shrink
        self.in_memory = in_memory
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def open(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index in self._kept:
            return self._kept[index]
        image_file, mask_file = self.files[index]
        image, classes = read_image(image_file), self.codes.read(mask_file)
        if image.size[::-1] != classes.shape == image.size:
            image = read_image(image_file, turn=False)
        if image.size[::-1] != classes.shape:
            raise InputError(
                f"{image_file} is {by(image.size[::-1])}, its mask {mask_file} {by(classes.shape)}"
            )
        arrays = (
            np.asarray(shrunk(image, self.shrink)),
            shrunk_classes(classes, self.codes.count, self.shrink),
        )
        if self.in_memory:
            self._kept[index] = arrays
        return arrays

    def tensors(self, image: np.ndarray, mask: np.ndarray, index: int) -> tuple[Tensor, Tensor]:
        # Copies: a part of an array is neither contiguous nor ours to write.
        return torch.tensor(image).movedim(-1, 0) / 255, self.classes(mask, index)

    def classes(self, mask: np.ndarray, index: int) -> Tensor:
        return torch.tensor(mask).long()


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


def orientation(file: str) -> int:
    """EXIF orientation of an image, 1 where it is not given."""
    found = header(file)
    return found[1] if found else 1


def shrunk(image: Image.Image, factor: float) -> Image.Image:
    size = [max(1, round(length / factor)) for length in image.size]
    return image if factor == 1 else image.resize(size, Image.Resampling.BILINEAR)


def shrunk_classes(classes: np.ndarray, count: int, factor: float) -> np.ndarray:
    """Shrink class numbers (H, W) uint8: each pixel has the class that covers most of it.

    Pixels of which most has no class are `IGNORED` again.
    """
    if factor == 1:
        return classes
    size = [max(1, round(length / factor)) for length in reversed(classes.shape)]
    numbers = [*range(count), *([IGNORED] if IGNORED in classes else [])]
    masks = (Image.fromarray((classes == number).astype(np.float32)) for number in numbers)
    fractions = [np.asarray(mask.resize(size, Image.Resampling.BOX)) for mask in masks]
    return np.array(numbers, np.uint8)[np.argmax(np.stack(fractions), 0)]


@checked
class DigitMasks(ImageToImageData):
    """scikit-learn's digits in noise, and their ink as the mask; 1,442 to train on, 355 held out.

    Args:
        sigma: of the noise, where ink is 1.
        size, batch_size, num_workers, seed, images: see `ImageToImageData`.
    """

    class_names = ("background", "ink")

    def __init__(
        self,
        sigma: NonNegative = 0.5,
        size: Size = 32,
        batch_size: Count = 32,
        num_workers: Workers = 0,
        seed: Seed | None = None,
        images: str | None = None,
    ):
        super().__init__(size, batch_size, num_workers, seed, images)
        self.sigma = sigma

    def dataset(self, split: Split, seed: int) -> Dataset:
        digits, _ = single_digits(split, self.size)
        seed = seed if split == "train" else EVALUATION
        return NoisyDigits(digits, self.sigma, seed, self.trained_labels())

    def inputs(self, folder: str) -> Dataset:
        return ImagesToSegment(folder, 1.0)


class NoisyDigits(Dataset):
    """(noisy digit (3, H, W), its ink (H, W)); the noise follows from (seed, epoch, index).

    Args:
        digits: (n, 1, H, W) float in 0..1.
        sigma: of the noise.
        seed: of the noise.
        labels: number of the background, and of ink.
    """

    def __init__(self, digits: Tensor, sigma: float, seed: int, labels: Sequence[int]):
        self.digits, self.sigma, self.seed = digits, sigma, seed
        self.labels = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        digit = self.digits[index]
        with random_stream(self.seed, epoch, index):
            noisy = digit.expand(3, -1, -1) + self.sigma * torch.randn(3, *digit.shape[1:])
        return noisy, self.labels[(digit[0] > 0.5).long()]
