"""Data for image-to-image work: the base of restoration and segmentation.

Batches are (inputs (B, C, H, W) float, targets): images (B, 3, H, W) in 0..1 for restoration, class
numbers (B, H, W) int64 for segmentation; volumes have one axis more. In predict they are (inputs,
paths, sizes of the results).
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import truediv
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from attention_vision.data.image_files import image_size
from attention_vision.data.loading import OnBadImage
from attention_vision.data.samples import evenly_spaced
from attention_vision.data.splits import SplitShares
from attention_vision.errors import InputError
from attention_vision.generation.data import GenerationData
from attention_vision.ranges import Count, Seed, Size, Workers, checked

HEADERS = 20_000  # images whose size is looked at before training; some seconds' worth
EVALUATION = 0  # seed of what is random in evaluation: the run's does not move it


@checked
class ImageToImageData(GenerationData):
    """Base of all image-to-image data: a subclass defines `dataset` and `inputs`.

    Args:
        size: side of the training patches, in pixels.
        batch_size: patches per process and step.
        seed: of order, patches and degradation in training; the run's seed where none is given.
        num_workers, images, split, on_bad_image: see `TaskData`.
    """

    channels = 3  # of an input
    evaluation_batch: int | None = None  # images per evaluation batch where not `batch_size`

    def __init__(
        self,
        size: Size,
        batch_size: Count,
        num_workers: Workers,
        seed: Seed | None,
        images: str | None,
        split: SplitShares | None = None,
        on_bad_image: OnBadImage = "stop",
    ):
        super().__init__(size, batch_size, num_workers, seed, images, split, on_bad_image)

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


def cut(whole: Sequence[int], part: Sequence[int], name: str) -> tuple[slice, ...]:
    """A patch of an image at random, by torch's stream.

    Raises:
        InputError: the image is smaller than the patch.
    """
    if is_smaller(whole, part):
        raise too_small({name: whole}, 1, part)
    starts = [
        int(torch.randint(length - wanted + 1, ()))
        for length, wanted in zip(whole, part, strict=True)
    ]
    return tuple(slice(start, start + wanted) for start, wanted in zip(starts, part, strict=True))


def is_smaller(whole: Sequence[int], part: Sequence[int]) -> bool:
    return any(length < wanted for length, wanted in zip(whole, part, strict=True))


def too_small(
    sizes: Mapping[str, Sequence[int]], count: int, part: Sequence[int], use: str = "the patches"
) -> InputError:
    """One line on images that are smaller than a patch, by the name of the smallest.

    Args:
        sizes: image -> its size, of those that are too small.
        count: images that were looked at.
        part: size of the patch.
        use: what needs that size.
    """
    name, size = min(sizes.items(), key=lambda one: min(map(truediv, one[1], part)))
    others = f", like {len(sizes) - 1} more of {count} images" if len(sizes) > 1 else ""
    key = "data.patch" if len(part) == 3 else "data.size"
    lower = f"lower {key} or " if use == "the patches" else ""
    return InputError(
        f"{name} is {by(size)}, smaller than {use} of {by(part)}{others}: {lower}remove"
        f" {'them' if others else 'it'}"
    )


def check_sizes(
    files: Sequence[str],
    size: Callable[[str], tuple[int, ...] | None],
    part: Sequence[int],
    use: str = "the patches",
) -> None:
    """Look at the sizes of images, before an epoch comes to them.

    Args:
        files: of the images; of more than `HEADERS` every second, third and so on.
        size: reads (height, width) or (depth, height, width) from a header, None where it cannot.
        part: size of the patch.
        use: what needs that size.

    Raises:
        InputError: images are smaller than that; it names the first and counts them.
    """
    some = evenly_spaced(files, HEADERS)
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(some, pool.map(size, some), strict=True))
    small = {file: whole for file, whole in found.items() if whole and is_smaller(whole, part)}
    if small:
        raise too_small(small, len(some), part, use)


def upright_size(path: str) -> tuple[int, int] | None:
    """(height, width) of an image, upright, from its header; None if it does not open."""
    size = image_size(path)
    return size and (size[1], size[0])


def by(size: Sequence[int]) -> str:
    """A size in words: 960x999."""
    return "x".join(str(length) for length in size)
