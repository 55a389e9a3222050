"""Labeled images for GANs, and the indices of the images that validation and predict generate."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torchvision
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchvision.transforms import v2

from attention_vision.data.augmentation import Crop, Rescale, Steps
from attention_vision.data.digits import CLASS_NAMES, single_digits
from attention_vision.data.findings import Findings
from attention_vision.data.image_files import (
    class_folders,
    image_size,
    is_junk,
    list_images,
    no_images,
)
from attention_vision.data.labels import labels_by_name
from attention_vision.data.loading import (
    BalancedSampler,
    EpochSampler,
    OnBadImage,
    begin_training,
    may_hold,
    random_stream,
    replicas,
    train_loader,
)
from attention_vision.data.resident import (
    RESIDENT_GIB,
    ResidentLoader,
    held_images,
    is_fixed,
    tensors_of,
)
from attention_vision.data.samples import evenly_spaced
from attention_vision.data.splits import refuse_splits_among_classes, split_folder
from attention_vision.data.torchvision_sets import CIFAR10_NAMES, load_torchvision_dataset
from attention_vision.errors import InputError
from attention_vision.generation.data import GenerationData
from attention_vision.generation.gan.sources import Files, InMemory, Source
from attention_vision.ranges import Count, NonNegative, Probability, Seed, Size, Workers, checked

LOOKED_AT = 256  # images whose size is read before training


@checked
class LabelledImages(GenerationData):
    """Base of a GAN's data: images with labels to train on. A subclass gives `source`.

    Validation and test measure images that are generated: their batches, and those of predict, are
    (indices (B,) int64, labels (B,) int64) of the images to generate, the classes in turn.

    Args:
        flip: probability that a training image is mirrored.
        balanced: train on all classes equally often, however many images they have.
        count: number of images that predict generates, each into a file.
        resident_gib: the training images are held in memory, on the device, if they need up to so
            much; 0 to read them in every epoch.
        size, batch_size, num_workers, seed, on_bad_image: see `GenerationData`.

    Attributes:
        batches_per_step: batches that are loaded as one, for a step that takes several. `SAGAN`
            sets it, as it does `samples`, in its `setup`: before loaders are built.
        samples: number of images to generate in validation; `count` where it is None.
    """

    def __init__(
        self,
        size: Size,
        flip: Probability,
        balanced: bool,
        batch_size: Count,
        num_workers: Workers,
        seed: Seed | None,
        count: Count,
        on_bad_image: OnBadImage = "stop",
        resident_gib: NonNegative = RESIDENT_GIB,
    ):
        super().__init__(size, batch_size, num_workers, seed, on_bad_image=on_bad_image)
        self.flip, self.balanced, self.count = flip, balanced, count
        self.resident_gib = resident_gib
        self.batches_per_step = 1
        self.samples: int | None = None

    def source(self) -> Source:
        """The images to train on. Raises InputError when they are missing or wrong."""
        raise NotImplementedError

    def dataset(self, split: str, seed: int) -> Dataset:
        """Images of "train", whatever the split: `val_dataloader` generates its images."""
        return FlippedDataset(self.source(), self.flip, seed)

    def has_split(self, split: str) -> bool:
        return split != "test"

    def setup(self, stage: str) -> None:
        """Open the training images. Raises InputError for "test": there is nothing held out."""
        if stage == "fit":
            self.train_images = self._opened("train")
        if stage == "test":
            raise InputError(
                f"{type(self).__name__} has no test split: a GAN is scored against its training"
                " images, by `validate`"
            )

    def facts(self, split: str) -> dict[str, Any]:
        if split == "train":
            images: Any = self.train_images
            counts = Counter(int(label) for label in images.targets)
            classes = {str(name): counts[label] for label, name in enumerate(self.class_names)}
            return super().facts(split) | ({"images of a class": classes} if classes else {})
        return {"images to generate": self.count if self.samples is None else self.samples}

    def sampler(self) -> EpochSampler:
        kind = BalancedSampler if self.balanced and self.num_classes else EpochSampler
        return kind(self.train_images, *replicas(self.trainer), seed=self.order_seed)

    def train_dataloader(self) -> StatefulDataLoader | ResidentLoader:
        held = self.held("train")
        if held is not None:
            return held
        loading = self._loading()
        loading["batch_size"] *= self.batches_per_step
        return train_loader(self.trainer, self.sampler(), loading)

    def held(self, split: str) -> ResidentLoader | None:
        dataset, trainer = self.train_images, self.trainer
        if not self.resident_gib or type(dataset) is not FlippedDataset:
            return None
        source, threads = dataset.source, max(1, self.num_workers)
        if not is_fixed(source) or (trainer and not may_hold(trainer, split, tensors_of(source))):
            return None
        images = held_images(source, torch.as_tensor, self.resident_gib, threads)
        if images is None:
            return None
        images = images if trainer is None else images.to(trainer.strategy.root_device)
        steps = Steps([Crop(0, self.flip), Rescale()] if self.flip else [Rescale()])
        batch_size = self.batch_size * self.batches_per_step
        sampler = begin_training(trainer, self.sampler(), batch_size)
        return ResidentLoader(dataset, images, steps, batch_size, sampler, self.order_seed)

    def val_dataloader(self) -> DataLoader:
        return self._indices(self.count if self.samples is None else self.samples)

    def predict_dataloader(self) -> DataLoader:
        return self._indices(self.count)

    def _indices(self, count: int) -> DataLoader:
        """(index, label) of `count` images to generate, this process's share."""
        images, (processes, rank) = NoiseIndices(count, self.num_classes), replicas(self.trainer)
        if count < processes:
            raise InputError(
                f"{count} images to draw cannot be divided among {processes} processes: lower"
                " trainer.devices"
            )
        batch_size = min(self.batch_size, -(-count // processes))
        sampler = BatchesInTurn(images, processes, rank, batch_size)
        return DataLoader(images, batch_size=batch_size, sampler=sampler)


class FlippedDataset(Dataset):
    """(image (3, H, W) float in -1..1, label), in training mirrored with a probability.

    Each image has a random stream of its own, see `random_stream`; an index without its epoch
    returns the image as it is.
    """

    def __init__(self, source: Source, flip: float, seed: int):
        self.source, self.flip, self.seed = source, flip, seed
        self.targets = source.targets

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        image, label = self.source[index]
        if self.flip and epoch is not None:
            with random_stream(self.seed, epoch, index):
                image = (
                    v2.functional.horizontal_flip(image) if torch.rand(()) < self.flip else image
                )
        return image.float() / 127.5 - 1, int(label)


class NoiseIndices(Dataset):
    """(index, label) of images to generate; the classes come in turn, so each equally often."""

    def __init__(self, count: int, num_classes: int):
        self.count, self.num_classes = count, max(1, num_classes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, index % self.num_classes


class BatchesInTurn(UnrepeatedDistributedSampler):
    """Deals whole batches to the processes in turn: the batches are the same at any number of them.

    Convolutions round differently in batches of different sizes. A DistributedSampler, so that
    Lightning leaves it alone.
    """

    def __init__(self, images: NoiseIndices, processes: int, rank: int, batch_size: int):
        super().__init__(images, processes, rank, shuffle=False)
        batches = torch.arange(len(images)).split(batch_size)
        self.mine = torch.cat(batches[rank::processes]).tolist()

    def __iter__(self) -> Iterator[int]:
        return iter(self.mine)

    def __len__(self) -> int:
        return len(self.mine)


@checked
class DigitImages(LabelledImages):
    """The 8x8 digits of scikit-learn, upscaled; the 1,442 that are not held out, see `digits`.

    Args:
        size, flip, balanced, batch_size, num_workers, seed, count, resident_gib: see
            `LabelledImages`. A flipped digit would be another symbol.
    """

    class_names = CLASS_NAMES

    def __init__(
        self,
        size: Size = 16,
        flip: Probability = 0.0,
        balanced: bool = False,
        batch_size: Count = 64,
        num_workers: Workers = 0,
        seed: Seed | None = None,
        count: Count = 100,
        resident_gib: NonNegative = RESIDENT_GIB,
    ):
        super().__init__(
            size, flip, balanced, batch_size, num_workers, seed, count, resident_gib=resident_gib
        )

    def source(self) -> Source:
        images, labels = single_digits("train", self.size)
        return InMemory((images * 255).round().byte().expand(-1, 3, -1, -1), labels.tolist())


@checked
class CIFAR10Images(LabelledImages):
    """CIFAR-10's 50,000 training images of 32x32 pixels.

    Args:
        root: folder of the data, as torchvision lays it out.
        download: fetch the data into `root` first.
        flip, balanced, batch_size, num_workers, seed, count, resident_gib: see `LabelledImages`.
    """

    class_names = CIFAR10_NAMES

    def __init__(
        self,
        root: str,
        download: bool = False,
        flip: Probability = 0.5,
        balanced: bool = False,
        batch_size: Count = 64,
        num_workers: Workers = 2,
        seed: Seed | None = None,
        count: Count = 100,
        resident_gib: NonNegative = RESIDENT_GIB,
    ):
        super().__init__(
            32, flip, balanced, batch_size, num_workers, seed, count, resident_gib=resident_gib
        )
        self.root, self.download = root, download

    def prepare_data(self) -> None:
        if self.download:
            load_torchvision_dataset(
                torchvision.datasets.CIFAR10, self.root, "train", download=True
            )

    def source(self) -> Source:
        return InMemory(*load_torchvision_dataset(torchvision.datasets.CIFAR10, self.root, "train"))


@checked
class FolderImages(LabelledImages):
    """Images in ROOT/CLASS/*.jpg, or in ROOT/train/CLASS/*.jpg if there is ROOT/train or training.

    The center square of each image, resized; gray, palette and transparent images become RGB.
    Images beside class folders are not read. A folder of images alone has no classes: the networks
    are unconditional.

    Args:
        root: the folder.
        size, flip, balanced, batch_size, num_workers, seed, count, on_bad_image, resident_gib: see
            `LabelledImages`.
    """

    def __init__(
        self,
        root: str,
        size: Size = 128,
        flip: Probability = 0.5,
        balanced: bool = False,
        batch_size: Count = 64,
        num_workers: Workers = 4,
        seed: Seed | None = None,
        count: Count = 100,
        on_bad_image: OnBadImage = "stop",
        resident_gib: NonNegative = RESIDENT_GIB,
    ):
        super().__init__(
            size, flip, balanced, batch_size, num_workers, seed, count, on_bad_image, resident_gib
        )
        self.root = root
        self._read: tuple[list[tuple[str, int]], Findings] | None = None

    @property
    def folder(self) -> Path:
        return split_folder(Path(self.root), "train") or Path(self.root)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Read on first access: a missing root is not an error of the configuration."""
        if not self.folder.is_dir():
            raise InputError(
                f"no folder {self.root}: set data.root to one that holds CLASS/*.jpg, or *.jpg"
                " without classes"
            )
        names = class_folders(self.folder)[0]
        refuse_splits_among_classes(names, self.folder)
        return tuple(names)

    def source(self) -> Source:
        if self._read is None:  # training and scorer open the images, and one of them may be slow
            self._read = self._files(), self.findings.get("train", Findings())
        files, self.findings["train"] = self._read
        return Files(files, self.size)

    def _files(self) -> list[tuple[str, int]]:
        """(path, label) of all training images; labels are found by the names of the folders."""
        findings, folder = self.findings.setdefault("train", Findings()), self.folder
        names, empty = class_folders(folder)
        listed = {label: list_images(folder / name) for label, name in enumerate(names)}
        if self.class_names and names:
            numbers = labels_by_name(self.class_names, names, str(folder))
        elif self.class_names:
            raise InputError(f"no class folders in {folder}: the weights were trained with classes")
        else:
            numbers, listed = [0], {0: list_images(folder)}
        files = [(path, numbers[label]) for label, one in listed.items() for path in one.files]
        if not files:
            raise no_images(folder, list_images(folder))
        for one in listed.values():
            for kind, paths in one.left_out.items():
                findings.left_out.setdefault(kind, []).extend(paths)
        for path in sorted(folder.iterdir()) if names else []:
            kind = "hidden or of the system" if is_junk(path.name) else "beside class folders"
            if is_junk(path.name) or path.is_file():
                findings.left_out.setdefault(kind, []).append(str(path))
        if empty:
            findings.left_out["folders without images"] = [str(folder / name) for name in empty]
        files = [files[index] for index in self.sound("train", [path for path, _ in files])]
        if not files:
            raise InputError(f"no image in {folder} can be read")
        self._warn_of_small([path for path, _ in files])
        return files

    def _warn_of_small(self, files: Sequence[str]) -> None:
        some = evenly_spaced(files, LOOKED_AT)
        sizes = {file: size for file in some if (size := image_size(file))}
        small = [file for file, size in sizes.items() if min(size) < self.size]
        if small:
            self.findings["train"].warnings.append(
                f"{len(small)} of {len(some)} images that were looked at are smaller than data.size"
                f" {self.size} and are enlarged, such as {small[0]}"
            )
