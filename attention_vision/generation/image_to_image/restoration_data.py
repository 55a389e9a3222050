"""Data for restoration: degraded images as inputs, the images themselves as targets."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset

from attention_vision.data.digits import single_digits
from attention_vision.data.encoded_image import EncodedImage
from attention_vision.data.findings import Findings
from attention_vision.data.image_files import image_files, list_images, path_below
from attention_vision.data.loading import OnBadImage, random_stream
from attention_vision.data.splits import Split, SplitShares
from attention_vision.data.torchvision_sets import load_torchvision_dataset
from attention_vision.errors import InputError
from attention_vision.generation.image_to_image.data import (
    EVALUATION,
    ImageToImageData,
    by,
    check_sizes,
    cut,
    upright_size,
)
from attention_vision.generation.image_to_image.degradations import Degradation
from attention_vision.ranges import Count, Seed, Size, Workers, checked

SSIM_WINDOW = (6, 6)  # reflected at the borders to the 11 x 11 that torchmetrics measures in


@checked
class DegradedImages(ImageToImageData):
    """Base of data for restoration: a subclass implements `pictures`.

    A training patch is cut, flipped and degraded anew in every epoch, by (seed, epoch, index); an
    evaluation image is whole and always degraded in the same way, by its index alone.

    Args:
        degradation: the degradation to undo.
        flip: mirror half of the training patches.
        images: folder to predict, of images that are degraded already.
        degrade: degrade the images to predict first.
        size, batch_size, num_workers, seed, split, on_bad_image: see `ImageToImageData`.
    """

    def __init__(
        self,
        degradation: Degradation,
        size: Size,
        flip: bool,
        batch_size: Count,
        num_workers: Workers,
        seed: Seed | None,
        images: str | None,
        degrade: bool,
        split: SplitShares | None = None,
        on_bad_image: OnBadImage = "stop",
    ):
        super().__init__(size, batch_size, num_workers, seed, images, split, on_bad_image)
        self.degradation, self.flip, self.degrade = degradation, flip, degrade
        self.channels = degradation.channels

    def pictures(self, split: Split) -> Sequence[Tensor] | Tensor:
        """Images (3, H, W) uint8 of a split. Raises InputError if there are none."""
        raise NotImplementedError

    def dataset(self, split: Split, seed: int) -> Dataset:
        pictures = self.pictures(split)
        if split == "train":
            return DegradedPatches(pictures, self.degradation, self.size, self.flip, seed)
        return DegradedWhole(pictures, self.degradation)

    def inputs(self, folder: str) -> Dataset:
        return ImagesToRestore(folder, self.degradation, self.degrade)

    def augmentation(self) -> list[str]:
        degradation = type(self.degradation).__name__
        flip = ", half of them mirrored" if self.flip else ""
        return [f"patches of {by((self.size, self.size))}{flip}; {degradation} drawn anew"]


class DegradedPatches(Dataset):
    """(input, image in 0..1) for training; randomness follows from (seed, epoch, index).

    An index without an epoch, as `overfit_batches` has it, counts as epoch 0.
    """

    def __init__(
        self,
        pictures: Sequence[Tensor] | Tensor,
        degradation: Degradation,
        size: int,
        flip: bool,
        seed: int,
    ):
        self.source, self.degradation = pictures, degradation
        self.size, self.flip, self.seed = size, flip, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        picture = self.source[index]
        files = getattr(self.source, "files", None)
        name = files[index] if files else f"training image {index}"
        with random_stream(self.seed, epoch, index):
            image = picture[:, *cut(picture.shape[1:], (self.size, self.size), name)] / 255
            if self.flip and torch.rand(()) < 0.5:
                image = image.flip(-1)
            return self.degradation(image), image


class DegradedWhole(Dataset):
    """(input, image in 0..1) for evaluation; randomness follows from the index."""

    def __init__(self, pictures: Sequence[Tensor] | Tensor, degradation: Degradation):
        self.source, self.degradation = pictures, degradation

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.source[index] / 255
        with random_stream(EVALUATION, 0, index):
            return self.degradation(image), image


class ImagesToRestore(Dataset):
    """All images below a folder in the order of their paths, as (input, path, size)."""

    def __init__(self, folder: str, degradation: Degradation, degrade: bool):
        self.files = image_files(folder)
        self.degradation, self.degrade = degradation, degrade

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, str, torch.Size]:
        image = EncodedImage(self.files[index]).tensor() / 255
        make = self.degradation if self.degrade else self.degradation.undegraded
        with random_stream(EVALUATION, 0, index):
            degraded = make(image)
        return degraded, self.files[index], degraded.shape[1:]


@checked
class DegradedFolder(DegradedImages):
    """Images of folders, searched through their subfolders; or pages of TIFFs.

    Args:
        train_images: cut into patches.
        degradation: see `DegradedImages`.
        val_images: whole, one by one; `split` holds out a share of the training images instead.
        test_images: as `val_images`.
        size, flip, batch_size, num_workers, seed, images, degrade, split, on_bad_image: see
            `DegradedImages`.

    Raises:
        InputError: a split that is given in both ways, or nothing to validate on.
    """

    evaluation_batch = 1

    def __init__(
        self,
        train_images: str,
        degradation: Degradation,
        val_images: str | None = None,
        size: Size = 64,
        flip: bool = True,
        batch_size: Count = 16,
        num_workers: Workers = 2,
        seed: Seed | None = None,
        images: str | None = None,
        degrade: bool = False,
        test_images: str | None = None,
        split: SplitShares | None = None,
        on_bad_image: OnBadImage = "stop",
    ):
        super().__init__(
            degradation, size, flip, batch_size, num_workers, seed, images, degrade, split,
            on_bad_image,
        )  # fmt: skip
        self.folders = {"train": train_images}
        for part, folder in (("val", val_images), ("test", test_images)):
            share = getattr(self.split, part)
            if folder is not None and share:
                raise InputError(f"data.{part}_images and data.split.{part}: leave one of them out")
            if part == "val" and folder is None and not share:
                raise InputError(
                    "what to validate on: set data.val_images, or data.split: {val: 0.2}"
                )
            if folder is not None:
                self.folders[part] = folder

    def has_split(self, split: str) -> bool:
        return super().has_split(split) or split in self.folders

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self._check("train", (self.size, self.size))
        if stage != "predict":
            self._check("test" if stage == "test" else "val", SSIM_WINDOW, "the window of SSIM")

    def _check(self, split: str, part: tuple[int, int], use: str = "the patches") -> None:
        check_sizes(getattr(self, f"{split}_images").source.files, upright_size, part, use)

    def pictures(self, split: Split) -> Sequence[Tensor] | Tensor:
        folder = self.folders.get(split, self.folders["train"])
        files = image_files(folder)
        if Path(folder).is_dir():
            findings = self.findings.setdefault(split, Findings())
            findings.left_out = list_images(folder).left_out
        if self.split and (split == "train" or split not in self.folders):
            names = [path_below(file, folder).as_posix() for file in files]
            files = [files[index] for index in self.part(split, names, None)]
        files = [files[index] for index in self.sound(split, files)]
        if not files:
            raise InputError(f"no {split} image in {folder} can be read")
        return FilePictures(files)


class FilePictures(Sequence):
    """Image files, each read on access."""

    def __init__(self, files: list[str]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return EncodedImage(self.files[index]).tensor()


@checked
class DegradedCIFAR10(DegradedImages):
    """CIFAR-10's 50,000 training images; its 10,000 test images to evaluate on.

    Args:
        root: folder of the data, as torchvision lays it out.
        download: fetch the data into `root` first.
        degradation, flip, batch_size, num_workers, seed, images, degrade: see `DegradedImages`.
    """

    def __init__(
        self,
        root: str,
        degradation: Degradation,
        download: bool = False,
        flip: bool = True,
        batch_size: Count = 64,
        num_workers: Workers = 2,
        seed: Seed | None = None,
        images: str | None = None,
        degrade: bool = False,
    ):
        super().__init__(degradation, 32, flip, batch_size, num_workers, seed, images, degrade)
        self.root, self.download = root, download

    def prepare_data(self) -> None:
        if self.download:
            for split in ("train", "val"):
                load_torchvision_dataset(
                    torchvision.datasets.CIFAR10, self.root, split, download=True
                )

    def pictures(self, split: str) -> Sequence[Tensor] | Tensor:
        return load_torchvision_dataset(torchvision.datasets.CIFAR10, self.root, split)[0]


@checked
class DegradedDigits(DegradedImages):
    """scikit-learn's digits, upscaled; 1,442 to train on, 355 held out.

    Args:
        degradation, size, batch_size, num_workers, seed, images, degrade: see `DegradedImages`.
    """

    def __init__(
        self,
        degradation: Degradation,
        size: Size = 32,
        batch_size: Count = 32,
        num_workers: Workers = 0,
        seed: Seed | None = None,
        images: str | None = None,
        degrade: bool = False,
    ):
        super().__init__(degradation, size, False, batch_size, num_workers, seed, images, degrade)

    def pictures(self, split: Split) -> Sequence[Tensor] | Tensor:
        digits, _ = single_digits(split, self.size)
        return (digits * 255).round().byte().expand(-1, 3, -1, -1)
