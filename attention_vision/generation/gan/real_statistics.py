"""What scores keep of the training images: statistics of their features, known by a fingerprint."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

REFERENCE_BATCH = 100


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
        """As torch-fidelity takes them: `mu` (C,) and unbiased `sigma` (C, C)."""
        mean = self.total / self.count
        covariance = (self.products - self.count * mean.outer(mean)) / (self.count - 1)
        return {"mu": mean.cpu().numpy(), "sigma": covariance.cpu().numpy()}


class Reference(NamedTuple):
    """What is kept of the training images."""

    count: int
    statistics: dict[str, np.ndarray]
    features: Tensor  # of those that stand for the manifold, (n, C)

    @classmethod
    def read(cls, file: Path) -> "Reference | None":
        """None where there is no file, or a damaged one."""
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
        except OSError as error:  # a full or read-only disk costs time, not the run
            rank_zero_warn(f"the statistics of the training images are not kept: {error}")


def to_bytes(images: Tensor) -> Tensor:
    """-1..1 -> uint8, rounded as in a saved image."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).byte()


def in_order(images: Dataset, batches: list[Tensor], num_workers: int) -> DataLoader:
    """The batches of these indices; nothing is drawn from the run's random stream."""
    rows, stream = [batch.tolist() for batch in batches], torch.Generator()
    return DataLoader(images, batch_sampler=rows, num_workers=num_workers, generator=stream)


def fingerprint(images: Dataset, num_workers: int) -> str:
    """SHA-256 of all images, as 8-bit numbers, and of their labels.

    Images whose `source` has `files` (path, label) are known by paths, sizes and times of change,
    and the pixels of the first ones: to read a million of them at every start takes too long.
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
        digest.update(to_bytes(pixels).numpy().tobytes() + labels.numpy().tobytes())
    return digest.hexdigest()
