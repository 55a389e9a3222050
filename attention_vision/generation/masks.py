"""Data for segmentation: images and volumes with masks, and digits in noise."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from attention_vision.digits import single_digits
from attention_vision.errors import InputError
from attention_vision.generation.pairs import EVALUATION, PairData, by, cut
from attention_vision.images import EXTENSIONS, image_files, read_image
from attention_vision.sampling import random_stream

VOLUMES = (".npy", ".npz")


class Pairs(Protocol):
    """Images with masks as arrays; cut first, then made tensors."""

    def __len__(self) -> int: ...
    def open(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (*size, ...) and mask (*size)."""

    def tensors(self, image: np.ndarray, mask: np.ndarray, index: int) -> tuple[Tensor, Tensor]:
        """Input (C, *size) float and classes (*size) int64, of the whole or of a part."""


class Patches(Dataset):
    """Patches cut out at random and flipped at random, several of an image per epoch.

    What is drawn follows from (seed, epoch, index).

    Raises:
        InputError: from `dataset[...]`, an image that is smaller than a patch.
    """

    def __init__(self, pairs: Pairs, size: Sequence[int], per_image: int, flips: bool, seed: int):
        self.pairs, self.size, self.per_image = pairs, size, per_image
        self.flips, self.seed = flips, seed

    def __len__(self) -> int:
        return len(self.pairs) * self.per_image

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        number = index // self.per_image
        image, mask = self.pairs.open(number)
        with random_stream(self.seed, epoch, index):
            place = cut(mask.shape, self.size)
            flipped = (torch.rand(len(self.size)) < 0.5) & self.flips
        inputs, target = self.pairs.tensors(image[place], mask[place], number)
        axes = [axis - len(self.size) for axis, flip in enumerate(flipped.tolist()) if flip]
        return inputs.flip(axes), target.flip(axes)


class Whole(Dataset):
    """Whole images in order."""

    def __init__(self, pairs: Pairs):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pairs.tensors(*self.pairs.open(index), index)


class PairFolders(PairData):
    """Base of images or volumes in one folder and their masks, of the same names, in another.

    Trains on patches, evaluates whole images one by one.

    Args:
        train_images, train_masks: folders; a mask has the name of its image, up to the ending.
        val_images, val_masks: of the evaluation, where it has folders of its own.
        val_names: names or patterns such as `case_1*`, without the ending, of those in the training
            folders that are held out for the evaluation.
        class_names: of the classes, the first one is the background.
        patches_per_image: in an epoch.
        flips: flip patches, each axis with probability 0.5.
        batch_size, num_workers, seed, images: see `PairData`.

    Raises:
        InputError: from `setup`, a folder that is missing or empty, an image without its mask or
            the reverse, or nothing to evaluate.
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
        self.train_folders, self.val_folders = (train_images, train_masks), (val_images, val_masks)
        self.val_names, self.patches_per_image, self.flips = val_names, patches_per_image, flips

    def pairs(self, files: list[tuple[Path, Path]]) -> Pairs:
        raise NotImplementedError

    def dataset(self, split: str, seed: int) -> Dataset:
        pairs = self.pairs(self.files(split))
        if split == "train":
            return Patches(pairs, self.patch, self.patches_per_image, self.flips, seed)
        return Whole(pairs)

    def files(self, split: str) -> list[tuple[Path, Path]]:
        """(image, mask) of a split, in the order of their paths."""
        if split == "val" and self.val_folders[0] is not None:
            return paired(*self.val_folders, self.extensions)
        every = paired(*self.train_folders, self.extensions)
        chosen = [pair for pair in every if self.held_out(pair[0]) == (split == "val")]
        if not chosen:
            which = "all of them" if split == "train" else "none"
            raise InputError(
                f"data.val_names {', '.join(self.val_names)}: {which} of the {len(every)} images in"
                f" {self.train_folders[0]}"
            )
        return chosen

    def held_out(self, file: Path) -> bool:
        return any(fnmatch(file.stem, pattern) for pattern in self.val_names)


def paired(images: str, masks: str, extensions: Sequence[str]) -> list[tuple[Path, Path]]:
    """Files of two folders that have the same names up to the ending."""
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


class MaskFolder(PairFolders):
    """RGB images and masks, whose grey levels are the classes.

    Args:
        values: grey level of each class in the masks.
        shrink: divides the sides of images and masks; a pixel gets the class that covers most.
        size: side of the training patches after shrinking, in pixels.
        in_memory: keep what was read; for small sets.
        train_images, train_masks, val_images, val_masks, val_names, class_names,
            patches_per_image, flips, batch_size, num_workers, seed, images: see `PairFolders`.
    """

    extensions = EXTENSIONS

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

    def pairs(self, files: list[tuple[Path, Path]]) -> Pairs:
        return MaskedImages(files, self.values, self.shrink, self.in_memory)

    def inputs(self, folder: str) -> Dataset:
        return ImagesToSegment(folder, self.shrink)


class MaskedImages:
    """Image files with mask files, as uint8 arrays (H, W, 3) and class numbers (H, W).

    Raises:
        InputError: from `open`, sizes that differ, or a grey level that is no class.
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
        image, mask = read_image(str(image_file)), np.asarray(read_grey(mask_file))
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
        pair = (
            np.asarray(shrunk(image, self.shrink)),
            shrunk_classes(classes, len(self.values), self.shrink),
        )
        if self.in_memory:
            self._kept[index] = pair
        return pair

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


def read_grey(file: Path) -> Image.Image:
    """A mask, whose numbers stay as they are: palette images keep the palette's indices.

    Raises InputError for a file that cannot be read, or has colours.
    """
    try:
        with Image.open(file) as image:
            if image.mode in ("L", "P"):
                return image.copy()
            grey = image.convert("L")
            if image.mode == "1" or image.convert("RGB") == grey.convert("RGB"):
                return grey
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"cannot read the mask {file}: repair it ({error})") from None
    raise InputError(f"{file}: a mask is a grey image whose levels are the classes, not a coloured")


def shrunk(image: Image.Image, factor: float) -> Image.Image:
    size = [max(1, round(length / factor)) for length in image.size]
    return image if factor == 1 else image.resize(size, Image.Resampling.BILINEAR)


def shrunk_classes(classes: np.ndarray, count: int, factor: float) -> np.ndarray:
    """(H, W) uint8, smaller by the factor: each pixel has the class that covers most of it."""
    if factor == 1:
        return classes
    size = [max(1, round(length / factor)) for length in reversed(classes.shape)]
    shares = [
        Image.fromarray((classes == number).astype(np.float32)).resize(size, Image.Resampling.BOX)
        for number in range(count)
    ]
    return np.argmax(np.stack(shares), 0).astype(np.uint8)


class VolumeFolder(PairFolders):
    """Volumes of one channel and their masks, .npy or .npz files of arrays (D, H, W).

    A mask holds class numbers 0..num_classes-1. An .npy is not read whole for a patch.

    Args:
        window: (low, high), what becomes 0 and 1; values outside are clipped. In CT, Hounsfield
            units.
        patch: depth, height and width of the training patches.
        train_images, train_masks, val_images, val_masks, val_names, class_names,
            patches_per_image, flips, batch_size, num_workers, seed, images: see `PairFolders`.
    """

    extensions = VOLUMES
    channels = 1

    def __init__(
        self,
        train_images: str,
        train_masks: str,
        val_images: str | None = None,
        val_masks: str | None = None,
        val_names: Sequence[str] = (),
        class_names: Sequence[str] = ("background", "foreground"),
        window: tuple[float, float] = (-150.0, 250.0),
        patch: tuple[int, int, int] = (96, 96, 96),
        patches_per_image: int = 1,
        flips: bool = True,
        batch_size: int = 2,
        num_workers: int = 2,
        seed: int | None = None,
        images: str | None = None,
    ):
        super().__init__(
            train_images, train_masks, val_images, val_masks, val_names, class_names, min(patch),
            patches_per_image, flips, batch_size, num_workers, seed, images,
        )  # fmt: skip
        if not window[0] < window[1]:
            raise InputError(f"data.window {list(window)} is no range")
        self.window, self.patch = window, patch

    def pairs(self, files: list[tuple[Path, Path]]) -> Pairs:
        return MaskedVolumes(files, self.num_classes, self.window)

    def inputs(self, folder: str) -> Dataset:
        return VolumesToSegment(folder, self.window)


class MaskedVolumes:
    """Volume files with mask files.

    Raises:
        InputError: sizes that differ, or a number that is no class.
    """

    def __init__(
        self, files: list[tuple[Path, Path]], num_classes: int, window: tuple[float, float]
    ):
        self.files, self.num_classes, self.window = files, num_classes, window

    def __len__(self) -> int:
        return len(self.files)

    def open(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        volume, mask = (read_volume(file) for file in self.files[index])
        if volume.shape != mask.shape:
            volume_file, mask_file = self.files[index]
            raise InputError(
                f"{volume_file} is {by(volume.shape)}, its mask {mask_file} {by(mask.shape)}"
            )
        return volume, mask

    def tensors(self, image: np.ndarray, mask: np.ndarray, index: int) -> tuple[Tensor, Tensor]:
        low, high = mask.min(), mask.max()
        if low < 0 or high >= self.num_classes or mask.dtype.kind not in "iub":
            raise InputError(
                f"{self.files[index][1]}: {mask.dtype} from {low} to {high}; a mask holds whole"
                f" numbers 0..{self.num_classes - 1}, one per class of data.class_names"
            )
        return windowed(image, self.window), torch.from_numpy(mask.astype(np.int64))


class VolumesToSegment(Dataset):
    """All volumes below a folder in the order of their paths, as (input, path, size)."""

    def __init__(self, folder: str, window: tuple[float, float]):
        if not Path(folder).is_dir():
            raise InputError(f"no folder {folder}: set data.images to a folder of volumes")
        self.files = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix in VOLUMES)
        if not self.files:
            raise InputError(f"no volumes in {folder}: looked for {', '.join(VOLUMES)}")
        self.window = window

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, str, torch.Size]:
        volume = windowed(read_volume(Path(self.files[index])), self.window)
        return volume, self.files[index], volume.shape[1:]


def read_volume(file: Path) -> np.ndarray:
    """(D, H, W), on disk still where the file is an .npy."""
    try:
        array = np.load(file, mmap_mode="r")
        if isinstance(array, np.lib.npyio.NpzFile):
            if len(array.files) != 1:
                raise InputError(f"{file} holds {len(array.files)} arrays, not one")
            array = array[array.files[0]]
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read the volume {file}: repair or remove it ({error})") from None
    if array.ndim != 3:
        raise InputError(f"{file} is {by(array.shape)}: a volume has three axes")
    return array


def windowed(volume: np.ndarray, window: tuple[float, float]) -> Tensor:
    """(D, H, W) -> (1, D, H, W) float, the window's ends at 0 and 1."""
    low, high = window
    scaled = (torch.from_numpy(volume.astype(np.float32)) - low) / (high - low)
    return scaled.clamp_(0, 1)[None]


class DigitMasks(PairData):
    """scikit-learn's digits in noise, and their ink as the mask; 1,442 to train on, 355 held out.

    Args:
        sigma: of the noise, where ink is 1.
        size, batch_size, num_workers, seed, images: see `PairData`.
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

    def dataset(self, split: str, seed: int) -> Dataset:
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
