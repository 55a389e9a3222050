"""Data for image-to-image work: the base of restoration and segmentation.

Batches are (inputs (B, C, H, W) float, targets): images (B, 3, H, W) in 0..1 for restoration, class
numbers (B, H, W) int64 for segmentation; volumes have one axis more. In predict they are (inputs,
paths, sizes of the results).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from attention_vision.errors import InputError
from attention_vision.generation.data import GenerationData

EVALUATION = 0  # seed of what is random in evaluation: the run's does not move it


class ImageToImageData(GenerationData):
    """Base of all image-to-image data: a subclass defines `dataset` and `inputs`.

    Args:
        size: side of the training patches, in pixels.
        batch_size: patches per process and step.
        seed: of order, patches and degradation in training; the run's seed where none is given.
        num_workers, images: see `TaskData`.
    """

    channels = 3  # of an input
    evaluation_batch: int | None = None  # images per evaluation batch where not `batch_size`

    def __init__(
        self, size: int, batch_size: int, num_workers: int, seed: int | None, images: str | None
    ):
        super().__init__(size, batch_size, num_workers, seed, images)

    def inputs(self, folder: str) -> Dataset:
        """(input, path, size of the result) of all files below a folder, with their `files`."""
        raise NotImplementedError

    def _evaluation_loading(self) -> dict[str, Any]:
        loading = self._loading()
        if self.evaluation_batch:
            loading["batch_size"] = self.evaluation_batch
        return loading

    def predict_dataloader(self) -> DataLoader:
        # Files differ in size: one at a time.
        loading = self._loading() | {"batch_size": 1, "collate_fn": one_file}
        return DataLoader(self.predict_images, **loading)


def one_file(samples: list[tuple[Tensor, str, Any]]) -> tuple[Tensor, list[str], list[Any]]:
    inputs, paths, sizes = zip(*samples, strict=True)
    return torch.stack(inputs), list(paths), list(sizes)


def cut(whole: Sequence[int], part: Sequence[int]) -> tuple[slice, ...]:
    """A patch of an image at random, by torch's stream. Raises InputError when it is too large."""
    if any(length < wanted for length, wanted in zip(whole, part, strict=True)):
        raise InputError(
            f"a training image is {by(whole)}, smaller than the patches of {by(part)}: lower"
            " data.size or remove it"
        )
    starts = [
        int(torch.randint(length - wanted + 1, ()))
        for length, wanted in zip(whole, part, strict=True)
    ]
    return tuple(slice(start, start + wanted) for start, wanted in zip(starts, part, strict=True))


def by(size: Sequence[int]) -> str:
    """A size in words: 960x999."""
    return "x".join(str(length) for length in size)
