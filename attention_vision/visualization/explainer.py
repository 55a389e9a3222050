"""The contract between the command `explain` and the tasks."""

from typing import Any, NamedTuple, Protocol

import numpy as np
from lightning.pytorch import LightningDataModule

from attention_vision.visualization.layers import Layer


class DrawOptions(NamedTuple):
    """The maps that are drawn.

    Attributes:
        heads: draw each head by itself besides their mean.
        point: (x, y) in 0..1 of the image, the query of self-attention; None for the usual one.
    """

    heads: bool = False
    point: tuple[float, float] | None = None


class ExplainedImage(NamedTuple):
    """One image: a picture (H, W, 3) uint8, arrays for an .npz, and a line about it."""

    picture: np.ndarray
    arrays: dict[str, np.ndarray]
    line: str


class Explainer(Protocol):
    """Draws what a trained module of one task attends to; samples are those of the task's data."""

    def samples(self, data: LightningDataModule, images: str | None, count: int) -> dict[str, Any]:
        """Title -> sample, `count` at most, of a folder of images or of the data's validation set.

        Raises:
            InputError: there are no images, or the module does not take any.
        """
        ...

    def layers(self, sample: Any) -> dict[str, Layer]:
        """Name -> every layer that `explain` knows, from a trial with one sample."""
        ...

    def default_layers(self, layers: dict[str, Layer]) -> list[str]:
        """Names of the layers that are shown if none are named."""
        ...

    def explain(self, sample: Any, names: list[str]) -> ExplainedImage:
        """Draws a sample and what the named layers did with it."""
        ...
