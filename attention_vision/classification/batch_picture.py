"""The first training batch of a classifier, after MixUp or CutMix."""

from typing import Any

from torch import Tensor

from attention_vision.data.batch_picture import BatchPicture
from attention_vision.visualization.drawing import rgb

LETTERS = 28  # of a line of text


class LabeledBatch(BatchPicture):
    """Images (each scaled to its own range) with their classes; shares of mixed ones."""

    def draw(self, module: Any, batch: Any, names: list[str]) -> tuple[Tensor, list[str]]:
        images, targets = (part[: self.images] for part in module.mixed(*batch))
        return rgb(images), [title(target, names) for target in targets]


def title(target: Tensor, names: list[str]) -> str:
    """The class of a label; of shares (num_classes,), the two largest in a line each."""
    shares = {int(target): 1.0} if target.ndim == 0 else dict(enumerate(target.tolist()))
    largest = sorted(shares.items(), key=lambda pair: -pair[1])[:2]
    return "\n".join(
        ("" if share == 1 else f"{share:.1f} ") + (names[label] if names else str(label))[:LETTERS]
        for label, share in largest
        if share >= 0.05
    )
