"""Order, random streams and loaders of data that resumes inside an epoch, for all tasks.

An image looks the same at any number of workers and after a resume, and evaluation counts every
image once at any number of processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from attention_vision.errors import InputError
from attention_vision.training.steps import mix


class EpochSampler(DistributedSampler):
    """Shuffled (epoch, index) pairs, with its place in the epoch as state for the loader to save.

    A DistributedSampler, so that Lightning leaves it alone and sets its epoch. A place that was
    loaded counts for its own epoch only: loaded at an epoch's end, it is gone when the next begins.
    """

    def __init__(self, images: Dataset, replicas: int, rank: int, seed: int):
        super().__init__(images, replicas, rank, shuffle=True, seed=seed, drop_last=True)
        self.yielded = 0
        self._resume: dict[int, int] = {}  # epoch -> samples to skip

    def order(self) -> list[int]:
        """The indices of this process in this epoch, from (seed, epoch, rank) alone."""
        return list(super().__iter__())

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


class RepeatedSampler(EpochSampler):
    """Repeated augmentation (Hoffer et al., arXiv 1901.09335) as DeiT samples it (`RASampler`).

    The shuffled images stand `repeats` times one behind the other, and the processes take turns. An
    epoch is cut to as many samples as without repeats, the images rounded down to a multiple of 256
    and divided among the processes, so that it sees a `repeats`-th of the images. Yields
    (epoch, index · repeats + repeat): for the stream of randomness every repeat is another sample.

    Raises InputError for fewer than 256 images, of which nothing is left.
    """

    def __init__(self, images: Dataset, replicas: int, rank: int, seed: int, repeats: int):
        super().__init__(images, replicas, rank, seed)
        self.repeats = repeats
        self.num_samples = len(images) // 256 * 256 // replicas
        if not self.num_samples:
            raise InputError(
                f"data.repeats {repeats}: an epoch is a multiple of 256 images, and there are"
                f" {len(images)}; leave repeats out"
            )

    def order(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        images = torch.randperm(len(self.dataset), generator=generator)
        samples = images[:, None] * self.repeats + torch.arange(self.repeats)
        return samples.flatten()[self.rank :: self.num_replicas][: self.num_samples].tolist()


class TrainLoader(StatefulDataLoader):
    """torchdata's loader: a checkpoint keeps its place in an epoch, for as many workers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises InputError when the place was saved with another number of workers."""
        saved = state["_snapshot"]["_main_snapshot"]["_num_workers"] if "_snapshot" in state else 0
        if saved != self.num_workers:
            raise InputError(
                f"the checkpoint lies inside an epoch that was read with {saved} workers: resume"
                f" with data.num_workers {saved}, not {self.num_workers}"
            )
        super().load_state_dict(state)


@contextmanager
def random_stream(*numbers: int) -> Iterator[None]:
    """Inside, torch draws from a stream that follows from the numbers; outside, nothing changed.

    An image that draws under (seed, epoch, index) does not depend on who loads it, or when.
    """
    generator = torch.default_generator  # torch.manual_seed would touch the GPU's stream as well
    state = generator.get_state()
    generator.manual_seed(mix(*numbers))
    try:
        yield
    finally:
        generator.set_state(state)


def check_loading(batch_size: int, num_workers: int) -> None:
    """Raises InputError when there are no images in a batch, or fewer than no workers."""
    if batch_size < 1:
        raise InputError(f"data.batch_size {batch_size} is not positive")
    if num_workers < 0:
        raise InputError(f"data.num_workers {num_workers} is negative")


def replicas(trainer: Trainer | None) -> tuple[int, int]:
    """Number of processes and the rank of this one; a single one without a trainer."""
    return (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)


def train_loader(
    trainer: Trainer | None, sampler: EpochSampler, loading: dict[str, Any]
) -> StatefulDataLoader:
    """Shuffled full batches. Raises InputError when there is not even one.

    Args:
        trainer: tells the epoch, if there is one.
        sampler: of the data set, `sampler.dataset`.
        loading: what the loader takes besides, `batch_size` among it.
    """
    if len(sampler) < loading["batch_size"]:
        raise InputError(
            f"batch_size {loading['batch_size']} is larger than the {len(sampler)} training images"
            " of a process: lower data.batch_size"
        )
    if trainer is not None:
        # Lightning tells the sampler only after the first epoch's workers have begun to load.
        sampler.set_epoch(trainer.fit_loop.epoch_progress.current.processed)
    return TrainLoader(sampler.dataset, sampler=sampler, drop_last=True, **loading)


def evaluation_loader(
    trainer: Trainer | None, images: Dataset, loading: dict[str, Any]
) -> DataLoader:
    """All images in order, divided among the processes without repeats.

    Raises InputError where a process would have none: it would not join the others' collectives.
    """
    count, rank = replicas(trainer)
    if len(images) < count:
        raise InputError(
            f"{len(images)} images to evaluate cannot be divided among {count} processes: lower"
            " trainer.devices"
        )
    sampler = None
    if count > 1:  # torch's own sampler repeats images to make the parts equal
        sampler = UnrepeatedDistributedSampler(images, count, rank, shuffle=False)
    return DataLoader(images, sampler=sampler, **loading)


def check_classes(network: nn.Module, data: LightningDataModule | None) -> None:
    """Raises InputError when their `num_classes` differ; loaders alone, without data, pass."""
    if data is not None and data.num_classes != network.num_classes:
        raise InputError(
            f"the network has {network.num_classes} classes, {type(data).__name__}"
            f" {data.num_classes}: set num_classes of model.network to {data.num_classes}"
        )
