"""The first training batch of a classifier, after MixUp or CutMix."""

from typing import Any

import numpy as np
from torch import Tensor

from attention_vision.visualization.batch_picture import BatchPicture
from attention_vision.visualization.drawing import rgb, sheet


class LabeledBatch(BatchPicture):
    """Images (each scaled to its own range) with their classes; shares of mixed ones."""

    def draw(self, module: Any, batch: Any, names: list[str]) -> np.ndarray:
        images, targets = module.mixed(*batch)
        titles = [title(target, names) for target in targets[: self.images]]
        return sheet([rgb(images[: self.images])], [titles], ["training"])


def title(target: Tensor, names: list[str]) -> str:
    """The class of a label, or the classes of a row of shares (num_classes,)."""
    if target.ndim == 0:
        return names[int(target)] if names else str(int(target))
    shares = sorted(enumerate(target.tolist()), key=lambda pair: -pair[1])[:2]
    return " ".join(
        f"{share:.1f} {names[label] if names else label}" for label, share in shares if share
    )
