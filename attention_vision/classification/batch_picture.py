"""The first training batch of a classifier, after MixUp or CutMix."""

from typing import Any

import numpy as np
from torch import Tensor

from attention_vision.data.batch_picture import BatchPicture
from attention_vision.visualization.drawing import rgb, sheet

COLUMNS, INCHES, LETTERS = 4, 2.0, 24  # of a line above an image


class LabeledBatch(BatchPicture):
    """Images (each scaled to its own range) with their classes; shares of mixed ones."""

    def draw(self, module: Any, batch: Any, names: list[str]) -> np.ndarray:
        images, targets = (part[: self.images] for part in module.mixed(*batch))
        titles = [title(target, names) for target in targets]
        parts = [slice(first, first + COLUMNS) for first in range(0, len(titles), COLUMNS)]
        rows = [rgb(images[part]) for part in parts]
        return sheet(rows, [titles[part] for part in parts], [""] * len(rows), INCHES)


def title(target: Tensor, names: list[str]) -> str:
    """The class of a label; of shares (num_classes,), the two largest in a line each."""
    shares = {int(target): 1.0} if target.ndim == 0 else dict(enumerate(target.tolist()))
    largest = sorted(shares.items(), key=lambda pair: -pair[1])[:2]
    return "\n".join(
        ("" if share == 1 else f"{share:.1f} ") + (names[label] if names else str(label))[:LETTERS]
        for label, share in largest
        if share >= 0.05
    )
