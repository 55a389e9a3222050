"""Data for classification: `ClassificationData` and the data sets that derive from it.

Batches are (images (B, 3, H, W) float normalized, labels (B,) int64); in predict (images, list of
paths).
"""

import re
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from attention_vision.checkpoints.preprocessing import Preprocessing
from attention_vision.classification.sources import (
    AugmentedDataset,
    ClassificationInputs,
    ClassificationSource,
    LabeledFiles,
    PixelBatches,
    RelabeledSource,
    TensorImages,
    first_per_class,
)
from attention_vision.classification.transforms import (
    Augmentation,
    CIFARAugmentation,
    ImageNetAugmentation,
    Pixels,
    batched_form,
)
from attention_vision.data.decoded_cache import CachedImages
from attention_vision.data.digits import CLASS_NAMES, MEAN, STD, cluttered_digits, single_digits
from attention_vision.data.findings import Findings
from attention_vision.data.formats import hint
from attention_vision.data.image_files import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Listing,
    class_folders,
    list_images,
)
from attention_vision.data.labels import labels_by_name
from attention_vision.data.loading import (
    BalancedSampler,
    EpochSampler,
    OnBadImage,
    RepeatedSampler,
    TaskData,
    begin_training,
    evaluation_share,
    may_hold,
    replicas,
)
from attention_vision.data.resident import (
    RESIDENT_GIB,
    ResidentLoader,
    held_images,
    is_fixed,
    tensors_of,
)
from attention_vision.data.splits import SplitShares, refuse_splits_among_classes, split_folder
from attention_vision.data.torchvision_sets import (
    CIFAR10_NAMES,
    InMemoryClass,
    load_torchvision_dataset,
)
from attention_vision.errors import InputError
from attention_vision.ranges import Count, NonNegative, NonNegativeInt, Seed, Size, Workers, checked

SYNSET = re.compile(r"n\d{8}")
CACHED = 0.875  # image size by short side in the cache: 224 by 256, as photographs are evaluated
UNSET = Preprocessing()  # the weights', or else the data set's
SMALL_IMAGES, PHOTOGRAPHS = CIFARAugmentation(), ImageNetAugmentation()
# No flips, which would make other digits; small turns, shifts and zooms instead.
HANDWRITING = CIFARAugmentation(padding=0, flip=0.0, rotation=10.0, shift=0.08, zoom=0.1)

CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@checked
class ClassificationData(TaskData):
    """Base of all classification data: a subclass sets what is declared here, defines `source`.

    A subclass takes any `recipe`, the augmentation of the training images, with its own default.

    Args:
        image_size: side of the square images that the network sees, in pixels.
        repeats: how often an epoch shows each image that it takes, augmented anew; its length stays
            (repeated augmentation, see `RepeatedSampler`; 3 in DeiT).
        preprocessing: normalization, filter and crop; what is not given comes from the weights
            where their release states it, else from the data set and its recipe.
        balanced: train on all classes equally often, however many images they have, see
            `BalancedSampler`.
        resident_gib: the images of a split are held in memory, on the device, if they need up to so
            much and a recipe makes them equally large; 0 to read them in every epoch.
        cache: folder in which the training images are kept decoded, with a short side of
            `image_size` / 0.875 at most, from which all epochs cut; see `CachedImages`.
        batch_size, num_workers, seed, images, split, on_bad_image: see `TaskData`.

    Raises:
        InputError: a size or number that is not positive.
    """

    recipe: Augmentation
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(
        self,
        image_size: Size,
        batch_size: Count,
        num_workers: Workers,
        seed: Seed | None,
        images: str | None,
        repeats: Count,
        split: SplitShares | None = None,
        on_bad_image: OnBadImage = "stop",
        preprocessing: Preprocessing = UNSET,
        balanced: bool = False,
        resident_gib: NonNegative = RESIDENT_GIB,
        cache: str | None = None,
    ):
        super().__init__(batch_size, num_workers, seed, images, split, on_bad_image)
        if balanced and repeats > 1:
            raise InputError("data.balanced and data.repeats both set the order: leave one out")
        self.image_size, self.repeats, self.balanced = image_size, repeats, balanced
        self.resident_gib, self.cache = resident_gib, cache
        self.use_preprocessing(preprocessing)

    def use_preprocessing(self, preprocessing: Preprocessing) -> None:
        """Normalize, resize and crop images so from now on; `setup` reads it."""
        self.preprocessing = preprocessing
        self.mean = preprocessing.mean or type(self).mean
        self.std = preprocessing.std or type(self).std

    def source(self, split: str) -> ClassificationSource:
        """The images of a split. Raises InputError when they are missing or wrong."""
        raise NotImplementedError

    def dataset(self, split: str, seed: int) -> Dataset:
        if split == "train":
            given = self.preprocessing.options("interpolation")
            transform = self.recipe.train(self.image_size, self.mean, self.std, **given)
            kind = PixelBatches if isinstance(transform, Pixels) else AugmentedDataset
            return kind(self._cached(self._checked(split)), transform, seed, self.repeats)
        return AugmentedDataset(self._checked(split), self._evaluation(), seed)

    def facts(self, split: str) -> dict[str, Any]:
        counts = Counter(getattr(self, f"{split}_images").source.targets)
        classes = {str(name): counts[label] for label, name in enumerate(self.class_names)}
        return super().facts(split) | {"classes": classes}

    def inputs(self, folder: str) -> Dataset:
        return ClassificationInputs(folder, self._evaluation())

    def sampler(self) -> EpochSampler:
        images, processes, seed = self.train_images, replicas(self.trainer), self.order_seed
        if self.balanced:
            return BalancedSampler(images, *processes, seed)
        if self.repeats > 1:
            return RepeatedSampler(images, *processes, seed, self.repeats)
        return super().sampler()

    def train_dataloader(self) -> StatefulDataLoader | ResidentLoader:
        source = getattr(self.train_images, "source", None)
        if self.trainer is not None and isinstance(source, CachedImages):
            source.open()  # here, not in each worker
        return super().train_dataloader()

    def held(self, split: str) -> ResidentLoader | None:
        dataset, trainer, trains = getattr(self, f"{split}_images"), self.trainer, split == "train"
        known = type(dataset) in (AugmentedDataset, PixelBatches)
        if not self.resident_gib or not known or not is_fixed(dataset.source):
            return None
        if trainer is not None and not may_hold(trainer, split, tensors_of(dataset.source)):
            return None
        given = self.preprocessing.options("interpolation", *(() if trains else ("crop",)))
        form = batched_form(self.recipe, "train" if trains else "evaluation")
        form = form(self.image_size, self.mean, self.std, **given)
        images = form and held_images(
            dataset.source, form.pixels, self.resident_gib, max(1, self.num_workers)
        )
        if form is None or images is None:
            return None
        images = images if trainer is None else images.to(trainer.strategy.root_device)
        loading = dataset, images, form.steps, self.batch_size
        if not trains:
            return ResidentLoader(*loading, share=evaluation_share(trainer, dataset))
        sampler = begin_training(trainer, self.sampler(), self.batch_size)
        return ResidentLoader(*loading, sampler, self.order_seed, self.repeats)

    def _evaluation(self) -> nn.Module:
        given = self.preprocessing.options("interpolation", "crop")
        return self.recipe.evaluation(self.image_size, self.mean, self.std, **given)

    def _cached(self, source: ClassificationSource) -> ClassificationSource:
        if self.cache is None:
            return source
        return CachedImages(source, self.cache, "train", round(self.image_size / CACHED))

    def _checked(self, split: str) -> ClassificationSource:
        source = self._in_trained_labels(self.source(split))
        if not len(source):
            raise InputError(f"{type(self).__name__}: no {split} images")
        for index, label in enumerate(source.targets):
            if not 0 <= label < self.num_classes:
                raise InputError(
                    f"{type(self).__name__}: label {int(label)} of {split} image {index} is outside"
                    f" 0..{self.num_classes - 1}"
                )
        return source

    def _in_trained_labels(self, source: ClassificationSource) -> ClassificationSource:
        """Map the labels of a source by name to those of the data, or of its weights."""
        own = list(getattr(source, "class_names", self.names_here))
        if own == list(self.class_names):
            return source
        where = type(self).__name__
        if self.labels is None and (unknown := [n for n in own if n not in self.class_names]):
            raise InputError(f"{where}: train has no class {unknown[0]}, which another split has")
        return RelabeledSource(source, labels_by_name(self.class_names, own, where))


@checked
class Digits(ClassificationData):
    """The 8x8 digits of scikit-learn, upscaled; 1,442 to train on, 355 held out.

    Args:
        cluttered: training images more, see `digits.cluttered_digits`: a detector of digits in
            scenes starts better from a network that has seen clutter.
        per_class: scans of each class to train on, the first ones; all where none is given.
    """

    class_names = CLASS_NAMES
    mean, std = (MEAN,) * 3, (STD,) * 3

    def __init__(
        self,
        recipe: Augmentation = HANDWRITING,
        image_size: Size = 32,
        batch_size: Count = 64,
        num_workers: Workers = 0,
        seed: Seed | None = None,
        images: str | None = None,
        cluttered: NonNegativeInt = 0,
        repeats: Count = 1,
        per_class: Count | None = None,
        preprocessing: Preprocessing = UNSET,
        balanced: bool = False,
        resident_gib: NonNegative = RESIDENT_GIB,
    ):
        super().__init__(
            image_size, batch_size, num_workers, seed, images, repeats,
            preprocessing=preprocessing, balanced=balanced, resident_gib=resident_gib,
        )  # fmt: skip
        self.recipe, self.cluttered, self.per_class = recipe, cluttered, per_class

    def source(self, split: str) -> ClassificationSource:
        images, labels = single_digits(split, self.image_size)
        if split == "train" and self.per_class is not None:
            kept = first_per_class(labels.tolist(), self.per_class)
            images, labels = images[kept], labels[kept]
        if split == "train" and self.cluttered:
            more, of_more = cluttered_digits(split, self.cluttered, self.image_size)
            images = torch.cat((images.expand(-1, 3, -1, -1), more))
            labels = torch.cat((labels, of_more))
        return TensorImages((images * 255).round().byte(), labels.tolist())


@checked
class TorchvisionData(ClassificationData):
    """Base of torchvision's small data sets, held in memory; their test images are "val" here.

    Args:
        root: folder of the data, as torchvision lays it out; or with the images themselves in
            train/CLASS and test/CLASS (or val/CLASS), under the names of the classes.
        image_size: in pixels; the images' own size where none is given.
        download: fetch the data into `root` first.
        per_class: training images of each class, the first ones; all where none is given.
    """

    torchvision_class: InMemoryClass
    own_size = 32

    def __init__(
        self,
        root: str,
        download: bool = False,
        recipe: Augmentation = SMALL_IMAGES,
        image_size: Size | None = None,
        batch_size: Count = 128,
        num_workers: Workers = 2,
        seed: Seed | None = None,
        images: str | None = None,
        per_class: Count | None = None,
        repeats: Count = 1,
        preprocessing: Preprocessing = UNSET,
        balanced: bool = False,
        resident_gib: NonNegative = RESIDENT_GIB,
    ):
        size = image_size or self.own_size
        super().__init__(
            size, batch_size, num_workers, seed, images, repeats,
            preprocessing=preprocessing, balanced=balanced, resident_gib=resident_gib,
        )  # fmt: skip
        self.recipe, self.per_class = recipe, per_class
        self.root, self.download = root, download

    def prepare_data(self) -> None:
        if self.download:
            for split in ("train", "val"):
                load_torchvision_dataset(self.torchvision_class, self.root, split, download=True)

    def source(self, split: str) -> ClassificationSource:
        if folder := self._image_folder(split):
            source = LabeledFiles.in_folders(list_images(folder), folder, self.names_here)
            if split == "train" and self.per_class is not None:
                source = source.chosen(first_per_class(source.targets, self.per_class))
            return source
        images, labels = load_torchvision_dataset(self.torchvision_class, self.root, split)
        if split == "train" and self.per_class is not None:
            kept = first_per_class(labels, self.per_class)
            images, labels = images[kept], [labels[index] for index in kept]
        return TensorImages(images, labels)

    def _image_folder(self, split: str) -> Path | None:
        """The folder of a split with folders of the data set's classes; None if there is none.

        Raises:
            InputError: the folders are not the classes of the data set.
        """
        root = Path(self.root)
        folder = split_folder(root, split)
        if folder is None and split == "val":
            folder = split_folder(root, "test")
        names = set(class_folders(folder)[0]) if folder else set()
        own = set(self.names_here)
        if not names & own:
            return None
        if wrong := names ^ own:
            raise InputError(
                f"{folder} does not have the {len(own)} classes of {type(self).__name__} as"
                f" folders: '{min(wrong)}' is in one of them alone; ImageFolder takes any classes"
            )
        return folder


class CIFAR10(TorchvisionData):
    """50,000 training and 10,000 test images of 32x32 pixels."""

    torchvision_class = torchvision.datasets.CIFAR10
    class_names = CIFAR10_NAMES
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class CIFAR100(TorchvisionData):
    """50,000 training and 10,000 test images of 32x32 pixels, 100 fine classes."""

    torchvision_class = torchvision.datasets.CIFAR100
    class_names = tuple(CIFAR100_NAMES.split())
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


class FashionMNIST(TorchvisionData):
    """60,000 training and 10,000 test images of 28x28 pixels, grey."""

    torchvision_class = torchvision.datasets.FashionMNIST
    class_names = tuple(torchvision.datasets.FashionMNIST.classes)
    mean, std = (0.2860,) * 3, (0.3530,) * 3
    own_size = 28


@checked
class ImageFolder(ClassificationData):
    """ROOT/train/CLASS/*.jpg, ROOT/val/CLASS/*.jpg and, if it is there, ROOT/test/CLASS/*.jpg.

    The folders under train are the classes; `val` may be called valid, validation or dev, and
    `train` and `test` training and testing. Without a folder of validation or test images, or
    without any of the three (ROOT/CLASS/*.jpg), `split` holds out a share of the training images.

    Args:
        root: the folder.
        recipe, image_size, repeats, balanced, resident_gib, cache: see `ClassificationData`.
        batch_size, num_workers, seed, images, split, on_bad_image: see `TaskData`.
    """

    def __init__(
        self,
        root: str,
        recipe: Augmentation = PHOTOGRAPHS,
        image_size: Size = 224,
        batch_size: Count = 64,
        num_workers: Workers = 4,
        seed: Seed | None = None,
        images: str | None = None,
        repeats: Count = 1,
        split: SplitShares | None = None,
        on_bad_image: OnBadImage = "stop",
        preprocessing: Preprocessing = UNSET,
        balanced: bool = False,
        resident_gib: NonNegative = RESIDENT_GIB,
        cache: str | None = None,
    ):
        super().__init__(
            image_size, batch_size, num_workers, seed, images, repeats, split, on_bad_image,
            preprocessing, balanced, resident_gib, cache,
        )  # fmt: skip
        self.recipe = recipe
        self.root = Path(root)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Read when first asked for: a missing root is not an error of the configuration."""
        return self._classes()

    def has_split(self, split: str) -> bool:
        return super().has_split(split) or split_folder(self.root, split) is not None

    def source(self, split: str) -> ClassificationSource:
        divided = self.divides(split, split_folder(self.root, split))
        folder = self._folder("train" if divided else split)
        names = self._folders(folder)
        listing = list_images(folder)
        source = LabeledFiles.in_folders(listing, folder, names)
        self._note_left_out(split, folder, listing)
        if divided:
            start = len(str(folder)) + 1
            below = [path[start:].replace("\\", "/") for path, _ in source.files]
            source = source.chosen(self.part(split, below, source.targets))
        source = source.chosen(self.sound(split, [path for path, _ in source.files]))
        if self.labels is None and (unknown := set(names) - set(self.class_names)):
            raise InputError(f"{folder / min(unknown)}: train has no class {min(unknown)}")
        return source

    def _note_left_out(self, split: str, folder: Path, listing: Listing) -> None:
        findings = self.findings.setdefault(split, Findings())
        findings.left_out = listing.left_out
        if empty := class_folders(folder)[1]:
            findings.left_out["folders without images"] = [str(folder / name) for name in empty]
        below = zip(listing.files, listing.below(folder), strict=True)
        if beside := [path for path, name in below if "/" not in name]:
            findings.left_out["images beside the class folders"] = beside

    def _classes(self) -> tuple[str, ...]:
        return self._folders(self._folder("train"))

    def _folder(self, split: str) -> Path:
        """The folder of a split; of the training, the root itself if it has class folders alone."""
        found = split_folder(self.root, split)
        if found is None and split == "train" and self.split:
            return self.root
        return found or self.root / split

    def _folders(self, folder: Path) -> tuple[str, ...]:
        names, empty = class_folders(folder)
        refuse_splits_among_classes(names, folder)
        if not names and empty:
            raise InputError(f"no images in the class folders of {folder}, such as {empty[0]}")
        if not names:
            raise InputError(
                f"no class folders in {folder}: set data.root to a folder that holds"
                " train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg and data.split:"
                f" {{val: 0.2}}{hint(self.root, type(self).__name__)}"
            )
        return tuple(names)


class ImageNet(ImageFolder):
    """ILSVRC 2012 in ImageFolder layout: ROOT/train and ROOT/val, 1,000 folders n01440764 ... each.

    The folders are looked up when data is needed, so that experiments can be read without them.

    Raises:
        InputError: another number of folders, or other names: releases number the classes in the
            order of these.
    """

    def source(self, split: str) -> ClassificationSource:
        folder = self._folder(split)
        names = self._folders(folder)
        if len(names) != 1000:
            raise InputError(
                f"{folder} has {len(names)} class folders, not the 1,000 of ImageNet:"
                " ImageFolder takes any number"
            )
        if other := [name for name in names if not SYNSET.match(name)]:
            raise InputError(
                f"{folder / other[0]} is not named as n01440764, in whose order released weights"
                " number the classes: rename the folders, or take ImageFolder for weights of"
                " your own"
            )
        return super().source(split)

    def _classes(self) -> tuple[str, ...]:
        for split in ("train", "val"):  # val alone is enough to validate
            if (folder := split_folder(self.root, split)) is not None:
                return self._folders(folder)
        return tuple(str(number) for number in range(1000))
