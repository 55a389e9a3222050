"""Statistics of the training images' features for the scores, kept under a fingerprint."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from attention_vision.generation.gan.samples import to_uint8
from attention_vision.training.distributed import gather, rank, world_size

REFERENCE_BATCH = 100
# The statistics of the training images are summed in this many parts, whatever the number of
# processes, and the parts added in one order: the last bit of a sum depends on the order.
PARTS = 8

Images = Any  # a data set of (image (3, H, W) in -1..1, label) with a length


class Moments:
    """Mean and covariance of features (n, C), summed in the features' order, in float64."""

    def __init__(self):
        self.count, self.total, self.products = 0, torch.zeros(()), torch.zeros(())

    def add(self, features: Tensor) -> None:
        features = features.double()
        self.count += len(features)
        self.total = features.sum(0) + self.total
        self.products = features.mT @ features + self.products

    def merge(self, other: "Moments") -> None:
        self.count += other.count
        self.total = other.total + self.total
        self.products = other.products + self.products

    def cpu(self) -> "Moments":
        self.total, self.products = self.total.cpu(), self.products.cpu()
        return self

    def statistics(self) -> dict[str, np.ndarray]:
        """Statistics as torch-fidelity takes them: `mu` (C,) and unbiased `sigma` (C, C)."""
        mean = self.total / self.count
        covariance = (self.products - self.count * mean.outer(mean)) / (self.count - 1)
        return {"mu": mean.cpu().numpy(), "sigma": covariance.cpu().numpy()}


class Reference(NamedTuple):
    """Statistics of the training images.

    Attributes:
        count: number of images.
        statistics: see `Moments.statistics`.
        features: (n, C) of the images that stand for the manifold.
    """

    count: int
    statistics: dict[str, np.ndarray]
    features: Tensor

    @classmethod
    def read(cls, file: Path) -> "Reference | None":
        """Read a file; None if it is missing or damaged."""
        try:
            kept = torch.load(file, weights_only=True)
            statistics = {name: kept[name].numpy() for name in ("mu", "sigma")}
            return cls(kept["count"], statistics, kept["features"])
        except Exception:  # a damaged file fails anywhere in the unpickler
            return None

    def write(self, file: Path) -> None:
        arrays = {name: torch.from_numpy(array) for name, array in self.statistics.items()}
        part = file.with_suffix(f".{os.getpid()}")  # two runs may write at once
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"count": self.count, "features": self.features, **arrays}, part)
            part.replace(file)
        except OSError as error:  # a full or read-only disk must not end the run
            rank_zero_warn(f"the statistics of the training images are not kept: {error}")


def measure_reference(
    images: Images,
    extract: Callable[[Tensor], tuple[Tensor, Tensor]],
    device: torch.device,
    manifold: int,
    num_workers: int,
) -> Reference | None:
    """Measure the training images, on rank zero; all processes call it and take their share.

    Args:
        extract: images (B, 3, H, W) in -1..1 -> features (B, C) and logits.
        device: device of the features.
        manifold: number of images whose features are kept.
    """
    kept_indices = fixed_subset(len(images), manifold)
    batches = torch.arange(len(images)).split(REFERENCE_BATCH)
    mine = [n for n in range(len(batches)) if n % PARTS % world_size() == rank()]
    parts, rows = defaultdict(Moments), []
    loaded = in_order(images, [batches[n] for n in mine], num_workers)
    for n, (pixels, _) in zip(mine, loaded, strict=True):
        features, _ = extract(pixels)
        parts[n % PARTS].add(features.to(float64_device(device)))
        wanted = torch.isin(batches[n], kept_indices)
        rows.append((batches[n][wanted], features.cpu()[wanted]))
    shares = gather(({n: part.cpu() for n, part in parts.items()}, rows))
    if rank():
        return None
    parts = {n: part for share, _ in shares for n, part in share.items()}
    whole = Moments()
    for n in sorted(parts):
        whole.merge(parts[n])
    kept = (row for _, rows in shares for row in rows)
    indices, features = (torch.cat(column) for column in zip(*kept, strict=True))
    return Reference(whole.count, whole.statistics(), features[indices.argsort()])


def fixed_subset(count: int, most: int) -> Tensor:
    """Up to `most` of `count` indices, always the same random ones, ascending."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[:most].sort().values


def float64_device(device: torch.device) -> torch.device:
    """The device to sum on in float64: Apple's GPUs have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def in_order(images: Images, batches: Sequence[Tensor], num_workers: int) -> DataLoader:
    """Loader of the batches of these indices; the run's random stream is not used."""
    rows, stream = [batch.tolist() for batch in batches], torch.Generator()
    return DataLoader(images, batch_sampler=rows, num_workers=num_workers, generator=stream)


def fingerprint(images: Images, num_workers: int) -> str:
    """SHA-256 of all images, as 8-bit numbers, and of their labels.

    If the images' `source` has `files` (path, label), it is of paths, sizes and times of change,
    and of the pixels of the first ones: reading a million of them at every start takes too long.
    """
    digest = hashlib.sha256()
    batches = torch.arange(len(images)).split(REFERENCE_BATCH)
    files = getattr(getattr(images, "source", None), "files", None)
    if files is not None:
        batches = batches[:1]
        for path, label in files:
            status = os.stat(path)
            digest.update(f"{path} {label} {status.st_size} {status.st_mtime_ns}\n".encode())
    for pixels, labels in in_order(images, batches, num_workers):
        digest.update(str(tuple(pixels.shape)).encode())
        digest.update(to_uint8(pixels).numpy().tobytes() + labels.numpy().tobytes())
    return digest.hexdigest()
