"""Base of all data modules: order, random streams and loaders, resumable inside an epoch.

An image looks the same at any number of workers and after a resume, and evaluation counts every
image once at any number of processes.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cached_property
from inspect import getattr_static
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from attention_vision.data.findings import Findings
from attention_vision.data.fingerprint import as_lines, file_columns, file_sizes, fingerprint
from attention_vision.data.image_files import broken_images
from attention_vision.data.labels import labels_by_name, shown
from attention_vision.data.resident import ResidentLoader
from attention_vision.data.splits import SPLIT_NAMES, SplitShares, divide
from attention_vision.errors import InputError
from attention_vision.identity import data_difference, digest
from attention_vision.ranges import Count, Seed, Workers, checked
from attention_vision.training.distributed import broadcast, gather, rank, world_size
from attention_vision.training.labels import Labels
from attention_vision.training.steps import adds_seeds, draws_from_streams, mix, run_seed

OnBadImage = Literal["stop", "skip"]
FindBroken = Callable[[Sequence[str]], dict[str, str]]  # images -> those that do not decode: reason


def check_shared_memory(num_workers: int) -> None:
    """Raise InputError where the machine, often a container, has none for the workers."""
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise InputError(
            f"data.num_workers {num_workers}: worker processes need shared memory, and /dev/shm"
            f" cannot be written here ({error.strerror}): set data.num_workers to 0"
        ) from error


@checked
class TaskData(LightningDataModule):
    """Base of the data modules of all tasks: labels, splits, findings, and the loaders.

    A subclass sets `class_names` and defines `dataset`; one that predicts files defines `inputs`;
    one that has a test split says so by `has_split`.

    Args:
        batch_size: images per process and step.
        num_workers: processes that load images, 0 to load in the training process.
        seed: of order and augmentation; the run's seed where none is given.
        images: folder of images to predict, searched through its subfolders.
        split: shares of the training images that are held out to validate and to test on.
        on_bad_image: "stop" at an image that cannot be read, or "skip": each image is decoded once
            before training, and those that do not decode are left out, counted and listed.

    `num_classes` (0 without classes) and `class_names` are known before `setup`, and are kept in
    checkpoints: `use_labels` gives them to data that meets trained weights.

    Attributes:
        labels: of the weights that the data is for; None before there are any.
        own_names: names of the classes by the data's own numbers, where it knows them without
            reading files; kept when it takes the labels of weights.
        findings: by split, what was noticed while it was read.
        division: by split, names of the samples, where `split` divides them.

    Raises:
        InputError: `batch_size` is not positive, or `num_workers` negative.
    """

    class_names: Sequence[str] = ()
    own_names: Sequence[str] = ()
    train_images: Dataset
    val_images: Dataset
    test_images: Dataset
    predict_images: Dataset
    resident_gib: float = 0.0  # images are held in memory if they need up to so many GiB

    def __init__(
        self,
        batch_size: Count,
        num_workers: Workers,
        seed: Seed | None,
        images: str | None = None,
        split: SplitShares | None = None,
        on_bad_image: OnBadImage = "stop",
    ):
        super().__init__()
        if num_workers > 0:
            check_shared_memory(num_workers)
        self.batch_size, self.num_workers = batch_size, num_workers
        self.seed, self.images = seed, images
        self.split, self.on_bad_image = split or SplitShares(), on_bad_image
        self.labels: Labels | None = None
        self.findings: dict[str, Findings] = {}
        self.division: dict[str, list[str]] = {}
        self._sizes: dict[str, np.ndarray] = {}  # of the files of an opened split
        self._fingerprints: dict[str, dict[str, Any]] = {}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def order_seed(self) -> int:
        return run_seed() if self.seed is None else self.seed

    def use_labels(self, labels: Labels) -> None:
        """Take the labels of trained weights: no data is read for them from now on."""
        known = getattr_static(self, "class_names")
        if self.labels is None and not isinstance(known, property | cached_property):
            self.own_names = known
        self.labels = labels
        self.class_names = labels.class_names

    @property
    def names_here(self) -> Sequence[str]:
        """Names of the classes by the data's own numbers, else by those of the weights."""
        return self.own_names or self.class_names

    def trained_labels(self) -> list[int]:
        """The label, in the numbers of trained weights, of each class that the data names itself.

        Raises:
            InputError: the weights do not know a class.
        """
        own = list(map(str, self.names_here))
        return labels_by_name(list(map(str, self.class_names)), own, type(self).__name__)

    def dataset(self, split: str, seed: int) -> Dataset:
        """The samples of "train", "val" or "test". Raises InputError when they are missing.

        Training indexes `dataset[epoch, index]`, evaluation `dataset[index]`: what is random in a
        sample is drawn under `random_stream(seed, epoch, index)`. "test" is asked for only where
        `has_split("test")`.
        """
        raise NotImplementedError

    def has_split(self, split: str) -> bool:
        """Whether there are samples of a split; a test split is not taken for granted."""
        return split != "test" or self.split.test > 0

    def inputs(self, folder: str) -> Dataset:
        """The samples to predict: all files below a folder, with their `files`."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Opens the data of a stage. Raises InputError when it is missing or wrong."""
        if stage == "fit":
            self.train_images = self._opened("train")
        if stage in ("fit", "validate"):
            self.val_images = self._opened("val")
        if stage == "test":
            if not self.has_split("test"):
                raise InputError(
                    f"{type(self).__name__} has no test split here, nothing to test on: `validate`"
                    " measures the validation split"
                )
            self.test_images = self._opened("test")
        if stage == "predict":
            if self.images is None:
                raise InputError("nothing to predict: set data.images to a folder of images")
            self.predict_images = self.inputs(self.images)
            self._leave_out_broken(self.predict_images)

    def _opened(self, split: str) -> Dataset:
        self.findings[split] = Findings()
        for known in (self._sizes, self._fingerprints):
            known.pop(split, None)
        return self.dataset(split, self.order_seed)

    def divides(self, split: str, found: object) -> bool:
        """Whether `data.split` divides the training images for a split.

        Args:
            split: "train", "val" or "test".
            found: where the split is without that; None without one.

        Raises:
            InputError: there is such a split, and `data.split` would hold out another one.
        """
        share = {"val": self.split.val, "test": self.split.test}.get(split, 0.0)
        if found is not None and share:
            raise InputError(
                f"there is {found}, and data.split holds out {share} for {split}: leave"
                f" data.split.{split} out"
            )
        return bool(self.split) and (split == "train" or bool(share))

    def part(self, split: str, names: Sequence[str], labels: Sequence[int] | None) -> list[int]:
        """Indices of the samples that `data.split` gives to a split, see `divide`."""
        parts = divide(names, labels, self.split)
        self.division = {key: [names[i] for i in part] for key, part in parts.items()}
        return parts[split]

    def sound(
        self, split: str, files: Sequence[str], broken_of: FindBroken | None = None
    ) -> list[int]:
        """Indices of the files to use: all, or under "skip" those that decode.

        Each process decodes its share, by `broken_of` or else `broken`; all of them call this.
        """
        if self.on_bad_image == "stop":
            return list(range(len(files)))
        broken = all_broken(files, broken_of or self.broken)
        self.findings.setdefault(split, Findings()).broken = broken
        return [index for index, file in enumerate(files) if file not in broken]

    def broken(self, files: Sequence[str]) -> dict[str, str]:
        """File -> reason, of those that cannot be read; data of other files has its own."""
        return broken_images(files)

    def _leave_out_broken(self, inputs: Any) -> None:
        """A prediction goes on without what it cannot read, whatever `on_bad_image` is."""
        if not hasattr(inputs, "files"):
            return
        broken = all_broken(inputs.files, self.broken)
        self.findings["predict"] = Findings(broken=broken)
        if len(broken) == len(inputs.files):
            file, reason = next(iter(broken.items()))
            raise InputError(f"cannot read the image {file}: repair or remove it ({reason})")
        inputs.files = [file for file in inputs.files if file not in broken]

    def facts(self, split: str) -> dict[str, Any]:
        """Facts on an opened split for the table at the start of a run: name -> number or dict."""
        return {"images": length(getattr(self, f"{split}_images"))}

    def paths_of(self, split: str) -> list[str]:
        """Image files of an opened split; empty where its images are not files."""
        return file_columns(getattr(self, f"{split}_images", None))[0]

    def sizes(self, split: str) -> np.ndarray:
        """Bytes of the image files of an opened split, then of its masks; -1 of a missing one."""
        if split not in self._sizes:
            columns = file_columns(getattr(self, f"{split}_images", None))
            self._sizes[split] = file_sizes([file for column in columns for file in column])
        return self._sizes[split]

    def fingerprint(self) -> dict[str, Any]:
        """Identity of the classes and of the opened splits, which `data_difference` compares.

        The same data has the same one on every machine, see `data.fingerprint`. It costs a stat of
        each file, once.
        """
        found: dict[str, Any] = {}
        if self.num_classes:
            names = digest([as_lines(map(str, self.class_names))])
            found["classes"] = {"count": self.num_classes, "names": names}
        for split in SPLIT_NAMES:
            images: Any = getattr(self, f"{split}_images", None)
            if images is None:
                continue
            if split not in self._fingerprints:
                columns = file_columns(images)
                self._fingerprints[split] = fingerprint(images, columns, self.sizes(split))
            found[split] = self._fingerprints[split]
        return found

    def augmentation(self) -> list[str]:
        """What changes the training images, a line each."""
        recipe, flips = getattr(self, "recipe", None), self.__dict__.get("flip", False)
        if is_dataclass(recipe):
            return [f"{type(recipe).__name__}: {steps_of(recipe)}"]
        return [f"flip {flips:g}"] if flips else []

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if self.num_classes:
            state["class_names"] = [str(name) for name in self.class_names]
        state["division"] = {key: names_digest(part) for key, part in self.division.items()}
        if rank() == 0 and hasattr(self, "train_images"):  # the process that writes it
            state["fingerprint"] = self.fingerprint()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises InputError where a label, or a held-out sample, would change its meaning."""
        if "class_names" in state and self.labels is None:
            trained, here = list(state["class_names"]), [str(name) for name in self.class_names]
            if trained != here:
                raise InputError(
                    f"the checkpoint was trained on the classes {shown(trained)}, the data has"
                    f" {shown(here)}"
                )
        now = {key: names_digest(part) for key, part in self.division.items()}
        if now and now != state.get("division", now):  # before 0.2 it was not kept
            raise InputError(
                "the images, or data.split, are not those of the training: images that were"
                " trained on may now be held out; restore them, or train anew"
            )
        if rank() == 0 and hasattr(self, "train_images"):  # other data may be evaluated
            changed = data_difference(state.get("fingerprint", {}), self.fingerprint())
            if changed:
                raise InputError(
                    f"the data is not that of the checkpoint: {changed}; restore it, or start a run"
                    " of its own by --weights"
                )

    def sampler(self) -> "EpochSampler":
        """The order of the training samples of this process."""
        return EpochSampler(self.train_images, *replicas(self.trainer), seed=self.order_seed)

    def train_dataloader(self) -> StatefulDataLoader | ResidentLoader:
        """Shuffled full batches. Raises InputError when there is not even one."""
        held = self.held("train")
        return train_loader(self.trainer, self.sampler(), self._loading()) if held is None else held

    def val_dataloader(self) -> DataLoader | ResidentLoader:
        return self._evaluated("val")

    def test_dataloader(self) -> DataLoader | ResidentLoader:
        return self._evaluated("test")

    def held(self, split: str) -> ResidentLoader | None:
        """A loader of a split whose images are held in memory; None where each batch is read."""
        return None

    def _evaluated(self, split: str) -> DataLoader | ResidentLoader:
        held = self.held(split)
        if held is not None:
            return held
        images = getattr(self, f"{split}_images")
        return evaluation_loader(self.trainer, images, self._evaluation_loading())

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.predict_images, **self._loading())

    def _loading(self) -> dict[str, Any]:
        """The arguments of every loader."""
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
        }

    def _evaluation_loading(self) -> dict[str, Any]:
        """The arguments of the loaders of validation and test."""
        return self._loading()


def steps_of(recipe: Any) -> str:
    """The fields of a recipe that are on; those of a step that is off, as crop_size, are not."""
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    steps = {"magnitude": "randaugment"}  # field -> the step that it belongs to
    on = (
        f"{name} {value}"
        for name, value in values.items()
        if value and values.get(steps.get(name, name.partition("_")[0]), True)
    )
    return ", ".join(on) or "none"


def all_broken(files: Sequence[str], broken_of: FindBroken = broken_images) -> dict[str, str]:
    """File -> reason, of the images that do not decode; the processes share the work."""
    mine = broken_of(files[rank() :: world_size()])
    found = broadcast([item for part in gather(mine) for item in part.items()])
    return dict(sorted(found))


def names_digest(names: Sequence[str]) -> str:
    return digest(["\n".join(sorted(names)).encode(errors="surrogateescape")])


class EpochSampler(DistributedSampler):
    """Shuffled (epoch, index) pairs; the loader saves the position in the epoch.

    A DistributedSampler, so that Lightning leaves it alone and sets its epoch. Its order is drawn
    from seed and epoch mixed, where torch adds them: seed 1 would begin with the second order of
    seed 0. A run that began with sums, by an early version, goes on with them. A position that was
    loaded counts for its own epoch only: loaded at an epoch's end, it is gone when the next begins.
    """

    def __init__(self, images: Dataset, replicas: int, rank: int, seed: int):
        super().__init__(images, replicas, rank, shuffle=True, seed=seed, drop_last=True)
        self.yielded = 0
        self.adds = False
        self._resume: dict[int, int] = {}  # epoch -> samples to skip

    def order(self) -> list[int]:
        """The indices of this process in this epoch, from (seed, epoch, rank) alone."""
        return self.shuffled()[self.rank : self.total_size : self.num_replicas].tolist()

    def shuffled(self) -> Tensor:
        """The indices of all processes in this epoch."""
        seed = self.seed + self.epoch if self.adds else mix(self.seed, self.epoch)
        return torch.randperm(length(self.dataset), generator=torch.Generator().manual_seed(seed))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # A generator: nothing below runs before the first sample is asked for.
        epoch = self.epoch
        self.yielded = self._resume.get(epoch, 0)
        self._resume = {}
        for index in self.order()[self.yielded :]:
            self.yielded += 1
            yield epoch, index

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "yielded": self.yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume = {state["epoch"]: state["yielded"]}


class LabeledDataset(Protocol):
    """A data set that knows its labels without reading an image."""

    @property
    def targets(self) -> Sequence[int]: ...


class BalancedSampler(EpochSampler):
    """Epochs of the usual length in which all classes come equally often, in every batch.

    An image of a small class comes several times, one of a large class not in every epoch. A class
    without images is left out.
    """

    dataset: LabeledDataset

    def order(self) -> list[int]:
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        labels = torch.as_tensor(self.dataset.targets)
        rounds = []
        for label in labels.unique():
            members = (labels == label).nonzero()[:, 0]
            rounds.append(self._draw(members, generator))
        columns = torch.stack(rounds, 1)  # one image of each class a row
        mixed = torch.rand(columns.shape, generator=generator).argsort(1)
        order = columns.gather(1, mixed).flatten()[: self.total_size]
        return order[self.rank :: self.num_replicas].tolist()

    def _draw(self, members: Tensor, generator: torch.Generator) -> Tensor:
        """The images of a class that an epoch takes: all once, shuffled, before any comes twice."""
        wanted = -(-self.total_size // self.num_classes)
        passes = range(-(-wanted // len(members)))
        shuffled = [members[torch.randperm(len(members), generator=generator)] for _ in passes]
        return torch.cat(shuffled)[:wanted]

    @cached_property
    def num_classes(self) -> int:
        return len(set(self.dataset.targets))


class RepeatedSampler(EpochSampler):
    """Repeated augmentation (Hoffer et al., arXiv 1901.09335) as DeiT samples it (`RASampler`).

    Each of the shuffled images follows `repeats` times in a row, and the processes take turns. An
    epoch is cut to the length that it has without repeats, the number of images rounded down to a
    multiple of 256 and divided among the processes: it covers 1 / `repeats` of the images. Yields
    (epoch, index · repeats + repeat): every repeat has a random stream of its own.

    Raises InputError for fewer than 256 images, of which nothing is left.
    """

    def __init__(self, images: Dataset, replicas: int, rank: int, seed: int, repeats: int):
        super().__init__(images, replicas, rank, seed)
        self.repeats = repeats
        count = length(images)
        self.num_samples = count // 256 * 256 // replicas
        if not self.num_samples:
            raise InputError(
                f"data.repeats {repeats}: an epoch is a multiple of 256 images, and there are"
                f" {count}; leave repeats out"
            )

    def order(self) -> list[int]:
        samples = self.shuffled()[:, None] * self.repeats + torch.arange(self.repeats)
        return samples.flatten()[self.rank :: self.num_replicas][: self.num_samples].tolist()


class TrainLoader(StatefulDataLoader):
    """torchdata's loader, resumable inside an epoch with the same number of workers.

    A data set with `finish(batch, device) -> batch` has it called in this process: workers pass on
    what is small, and the rest is done on the device that trains, `device`.
    """

    device = torch.device("cpu")

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()
        finish = getattr(self.dataset, "finish", None)
        return batches if finish is None else (finish(batch, self.device) for batch in batches)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises InputError when the position was saved with another number of workers.

        Or by a loader of images in memory.
        """
        if "batches" in state:
            raise InputError(
                "the checkpoint lies inside an epoch of images that were held in memory: resume"
                " with the data.resident_gib of the run"
            )
        saved = state["_snapshot"]["_main_snapshot"]["_num_workers"] if "_snapshot" in state else 0
        if saved != self.num_workers:
            raise InputError(
                f"the checkpoint lies inside an epoch that was read with {saved} workers: resume"
                f" with data.num_workers {saved}, not {self.num_workers}"
            )
        super().load_state_dict(state)


@contextmanager
def random_stream(*numbers: int) -> Iterator[None]:
    """Seeds torch's CPU generator from the numbers inside a block, and restores its state after it.

    A sample that draws under (seed, epoch, index) depends neither on the process that loads it nor
    on the time.
    """
    generator = torch.default_generator  # torch.manual_seed would touch the GPU's stream as well
    state = generator.get_state()
    generator.manual_seed(mix(*numbers))
    try:
        yield
    finally:
        generator.set_state(state)


def length(images: Dataset) -> int:
    """The number of samples; torch's `Dataset` does not declare its length."""
    return len(cast(Sized, images))


def replicas(trainer: Trainer | None) -> tuple[int, int]:
    """Number of processes and the rank of this one; a single one without a trainer."""
    return (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)


def train_loader(
    trainer: Trainer | None, sampler: EpochSampler, loading: dict[str, Any]
) -> StatefulDataLoader:
    """Shuffled full batches. Raises InputError when there is not even one.

    Args:
        trainer: has the number of the epoch; None outside of training.
        sampler: the order; it holds the data set, `sampler.dataset`.
        loading: the other arguments of the loader, with `batch_size`.
    """
    begin_training(trainer, sampler, loading["batch_size"])
    loader = TrainLoader(sampler.dataset, sampler=sampler, drop_last=True, **loading)
    if trainer is not None:
        loader.device = trainer.strategy.root_device
    return loader


def begin_training(trainer: Trainer | None, sampler: EpochSampler, batch_size: int) -> EpochSampler:
    """Set a sampler to the epoch of the trainer; return it.

    Raises InputError when there is not even one full batch.
    """
    if len(sampler) < batch_size:
        raise InputError(
            f"batch_size {batch_size} is larger than the {len(sampler)} training images of a"
            " process: lower data.batch_size"
        )
    if trainer is not None:
        # Lightning tells the sampler only after the first epoch's workers have begun to load.
        epochs = trainer.fit_loop.epoch_progress.current  # annotated as its base class
        sampler.adds = adds_seeds(trainer)
        sampler.set_epoch(epochs.processed)  # pyright: ignore[reportAttributeAccessIssue]
    return sampler


def may_hold(trainer: Trainer, split: str, tensors: Tensor | None) -> bool:
    """Whether the images of a split may be held in memory, if they fit.

    Not those of a training that began without, whose augmentation draws from streams; not those of
    a trainer that sets an order of its own; and not files that are read once.

    Args:
        trainer: of the data.
        split: "train", "val" or "test".
        tensors: the images, where they are no files.
    """
    if trainer.overfit_batches:  # pyright: ignore[reportAttributeAccessIssue] set from afar
        return False
    if split == "train":
        return not draws_from_streams(trainer)
    return tensors is not None or trainer.state.fn == TrainerFn.FITTING


def evaluation_loader(
    trainer: Trainer | None, images: Dataset, loading: dict[str, Any]
) -> DataLoader:
    """All images in order, divided among the processes without repeats.

    Raises InputError where a process would have no image: it would not join the collectives.
    """
    count, rank = evaluation_share(trainer, images)
    sampler = None
    if count > 1:  # torch's own sampler repeats images to make the parts equal
        sampler = UnrepeatedDistributedSampler(images, count, rank, shuffle=False)
    return DataLoader(images, sampler=sampler, **loading)


def evaluation_share(trainer: Trainer | None, images: Dataset) -> tuple[int, int]:
    """Number of processes that evaluate, and the rank of this one.

    Raises InputError where a process would have no image: it would not join the collectives.
    """
    count, rank = replicas(trainer)
    if length(images) < count:
        raise InputError(
            f"{length(images)} images to evaluate cannot be divided among {count} processes: lower"
            " trainer.devices"
        )
    return count, rank


def data_of(trainer: Trainer) -> Any:
    """The data module of a trainer, whose class the caller knows; None with loaders alone."""
    return getattr(trainer, "datamodule", None)  # Lightning sets it without declaring it


def check_classes(network: nn.Module, data: TaskData | None) -> None:
    """Raises InputError when their `num_classes` differ; loaders alone, without data, pass."""
    if data is not None and data.num_classes != network.num_classes:
        raise InputError(
            f"the network has {network.num_classes} classes, {type(data).__name__}"
            f" {data.num_classes}: set num_classes of model.network to {data.num_classes}"
        )


def check_channels(network: nn.Module, data: TaskData | None, key: str) -> None:
    """Raise InputError when the training images have other channels than a network takes.

    An image is read where the network takes other than three alone.

    Args:
        network: with `in_channels`; others take three.
        data: after its `setup`.
        key: of the network in a config.
    """
    takes = getattr(network, "in_channels", 3)
    if data is None or takes == 3:
        return
    channels = len(cast(Any, data.train_images)[0][0])
    if channels != takes:
        raise InputError(
            f"{key} takes {takes} channels, {type(data).__name__} has {channels}: set"
            f" {key}.in_channels to {channels}"
        )
