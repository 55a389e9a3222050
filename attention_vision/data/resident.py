"""Images that are held in memory, on the device of their process: a batch is an index."""

from collections.abc import Callable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from attention_vision.data.augmentation import Steps
from attention_vision.data.counter import uniforms
from attention_vision.data.image_batches import to
from attention_vision.errors import InputError

GIB = 2**30
RESIDENT_GIB = 2.0  # that a split may need, by default
CHUNK = {"cpu": 2**23, "cuda": 2**26}  # bytes of floats that are augmented at once; measured
READ_AT_ONCE = 256  # images, by several threads


class Order(Protocol):
    """The samples of an epoch; `EpochSampler` is one."""

    epoch: int

    def order(self) -> list[int]: ...
    def __len__(self) -> int: ...


class ResidentLoader:
    """Batches [images (B, C, H, W) float, labels (B,) int64] on the device of the images.

    A training loader is resumable inside an epoch, as torchdata's `StatefulDataLoader` is. What an
    image draws follows from (seed, epoch, sample) alone, so that several batches are augmented at
    once, however the epoch is cut.

    Args:
        dataset: of the images, with their labels as `targets`.
        images: all of them, (n, C, H, W) uint8 on a device.
        steps: from batches of images to batches for the network.
        batch_size: images of a batch.
        sampler: order of a training, full batches alone; None to evaluate all images in order.
        seed: of what is random.
        repeats: samples of each image, numbered image · repeats + repeat.
        share: number of processes that evaluate, and the rank of this one.
    """

    batch_sampler = None  # Lightning asks for it

    def __init__(
        self,
        dataset: Any,
        images: Tensor,
        steps: Steps,
        batch_size: int,
        sampler: Order | None = None,
        seed: int = 0,
        repeats: int = 1,
        share: tuple[int, int] = (1, 0),
    ):
        self.dataset, self.images, self.steps = dataset, images, steps
        self.batch_size, self.sampler, self.seed, self.repeats = batch_size, sampler, seed, repeats
        self.share = share
        self.labels = to(torch.as_tensor(dataset.targets, dtype=torch.int64), images.device)
        self._position: dict[str, int] = {"epoch": 0, "batches": 0}
        self._resume: dict[int, int] = {}  # epoch -> batches to skip

    def __len__(self) -> int:
        if self.sampler is not None:
            return len(self.sampler) // self.batch_size
        return -(-len(self._evaluated()) // self.batch_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        # A generator: nothing below runs before the first batch is asked for.
        epoch, samples = 0, self._evaluated()
        if self.sampler is not None:
            epoch, samples = self.sampler.epoch, torch.as_tensor(self.sampler.order())
        skipped, self._resume = self._resume.get(epoch, 0), {}
        self._position = {"epoch": epoch, "batches": skipped}
        size, at_once = self.batch_size, self._batches_at_once()
        # Chunks begin at the same batches after a resume: libraries may round by their sizes.
        for first in range(skipped // at_once * at_once, len(self), at_once):
            end = min(first + at_once, len(self))
            images, labels = self.load(epoch, samples[first * size : end * size])
            batches = zip(images.split(size), labels.split(size), strict=True)
            for number, batch in enumerate(batches, first):
                if number >= skipped:
                    self._position["batches"] = number + 1
                    yield [*batch]

    def load(self, epoch: int, samples: Tensor) -> list[Tensor]:
        """The images and labels of samples (B,) int64 of an epoch, as the loader yields them."""
        numbers = uniforms(self.seed, epoch, samples, self.steps.draws)
        chosen = to(samples // self.repeats, self.images.device)
        images, labels = (part.index_select(0, chosen) for part in (self.images, self.labels))
        return [self.steps(images, numbers), labels]

    def state_dict(self) -> dict[str, int]:
        return dict(self._position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises InputError for the position of a loader that reads images one by one."""
        if state.keys() != self._position.keys():
            raise InputError(
                "the checkpoint lies inside an epoch of images that were not held in memory:"
                " resume with the data.resident_gib of the run"
            )
        self._resume = {state["epoch"]: state["batches"]}

    def _evaluated(self) -> Tensor:
        processes, rank = self.share
        return torch.arange(rank, len(self.labels), processes)

    def _batches_at_once(self) -> int:
        batch = 4 * self.batch_size * self.images[0].numel()
        return max(1, CHUNK.get(self.images.device.type, CHUNK["cuda"]) // batch)


def held_images(
    source: Any, pixels: Callable[[Any], Tensor], most_gib: float, threads: int
) -> Tensor | None:
    """Read all images of a source, (n, C, H, W) uint8 on the CPU.

    Args:
        source: has (image, label) by index, or tensors `images` (n, C, H, W) uint8.
        pixels: from an image, or a batch of tensors, to uint8.
        most_gib: that the result may need.
        threads: that read.

    Returns:
        None where the images need more, or differ in their size.
    """
    count = len(cast(Sized, source))
    first = pixels(source[0][0])
    if count * first.nbytes > most_gib * GIB:
        return None
    stored = tensors_of(source)
    held = torch.empty(count, *first.shape, dtype=torch.uint8)
    if stored is not None:
        for part, images in zip(held.split(READ_AT_ONCE), stored.split(READ_AT_ONCE), strict=True):
            part.copy_(pixels(images))
        same = stored.is_contiguous() and stored.shape == held.shape and torch.equal(stored, held)
        return stored if same else held  # one copy is enough
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, READ_AT_ONCE):
            numbers = range(start, min(start + READ_AT_ONCE, count))
            for number, image in zip(
                numbers, pool.map(lambda one: pixels(source[one][0]), numbers), strict=True
            ):
                if image.shape != first.shape:
                    return None
                held[number] = image
    return held


def tensors_of(source: Any) -> Tensor | None:
    """The images of a source of tensors, also of one that is relabeled; None of others."""
    while not hasattr(source, "images") and hasattr(source, "source"):
        source = source.source
    return getattr(source, "images", None)


def is_fixed(source: Any) -> bool:
    """Whether the class of a source says that an index always has the same image.

    A subclass says so anew: it may read them in another way.
    """
    fixed = vars(type(source)).get("fixed", False)
    return is_fixed(source.source) if fixed and hasattr(source, "source") else fixed
