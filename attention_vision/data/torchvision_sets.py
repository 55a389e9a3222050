"""Torchvision's small data sets on disk, for the data of all tasks."""

from typing import Any

import torch
import torchvision
from torch import Tensor

from attention_vision.errors import InputError

CIFAR10_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

InMemoryClass = type[torchvision.datasets.CIFAR10] | type[torchvision.datasets.MNIST]


def load_torchvision_dataset(
    dataset: InMemoryClass,
    root: str,
    split: str,
    download: bool = False,
) -> tuple[Tensor, list[int]]:
    """Images (n, 1 or 3, H, W) uint8 and labels; the data set's test images are "val" here.

    Args:
        dataset: a class of torchvision that keeps its images in memory, as CIFAR10.
        split: "train" or "val".
        root: folder of the data, as torchvision lays it out.
        download: fetch the data into `root` first.

    Raises InputError where the data is missing or cannot be read.
    """
    try:
        opened: Any = dataset(root, train=split == "train", download=download)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        advice = "" if download else "; set data.root to it, or download: true"
        raise InputError(
            f"{dataset.__name__}: no readable data in {root}{advice} ({reason})"
        ) from None
    images = torch.as_tensor(opened.data)  # (n, H, W, 3) or (n, H, W)
    images = images[:, None] if images.ndim == 3 else images.movedim(-1, 1)
    return images, torch.as_tensor(opened.targets).tolist()
