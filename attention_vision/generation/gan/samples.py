"""Generated images as the evaluators keep them: features and logits, gathered over processes."""

from typing import NamedTuple

import torch
from torch import Tensor

from attention_vision.errors import InputError
from attention_vision.training.distributed import broadcast, gather, rank, world_size


class Gathered(NamedTuple):
    """Samples of all processes in the order of their indices."""

    labels: Tensor  # (n,), -1 without classes
    features: Tensor  # (n, C)
    logits: Tensor  # (n, K)


class Samples:
    """Features and logits of the images that a process generated, until all are gathered."""

    def __init__(self) -> None:
        self.rows: list[tuple[Tensor, ...]] = []  # indices, labels, features, logits
        self.count = 0

    def add(
        self,
        features: Tensor,
        logits: Tensor,
        labels: Tensor | None = None,
        indices: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            features: (B, C).
            logits: (B, K).
            labels: (B,) classes that were asked for, None without classes.
            indices: (B,) of the samples over all processes, which decide their order: a repeated
                one counts once. Without them the k-th image of process r of n is k * n + r, as a
                DistributedSampler deals.
        """
        count = len(features)
        if labels is None:
            labels = torch.full((count,), -1)
        if indices is None:
            indices = torch.arange(self.count, self.count + count) * world_size() + rank()
        self.count += count
        self.rows.append((indices.cpu(), labels.cpu(), features.cpu(), logits.cpu()))

    def gather(self, count: int) -> Gathered | None:
        """The first `count` samples, on rank zero; None in the other processes.

        All processes call it. Raises InputError for fewer samples.
        """
        rows = [row for rows in gather(self.rows) for row in rows]
        columns = [torch.cat(column) for column in zip(*rows, strict=True)]
        found = broadcast(len(columns[0].unique()) if columns else 0)
        if found < count:
            raise InputError(
                f"{found} generated images are fewer than the scorer's {count} samples:"
                " generate more, or lower samples"
            )
        if rank():
            return None
        order = first_occurrences(columns[0])[:count]
        return Gathered(*(column[order] for column in columns[1:]))


def first_occurrences(indices: Tensor) -> Tensor:
    """Positions of the distinct numbers among `indices`, ascending by number."""
    ordered, positions = indices.sort(stable=True)
    return positions[torch.cat((ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]))]


def to_uint8(images: Tensor) -> Tensor:
    """Round images in -1..1 to 8 bits, as in a saved image."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).byte()
