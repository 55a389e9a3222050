"""The first training batch of a GAN: real images as the discriminator sees them."""

from typing import Any

import numpy as np

from attention_vision.data.batch_picture import BatchPicture
from attention_vision.generation.data import Batch
from attention_vision.visualization.drawing import sheet


class RealBatch(BatchPicture):
    """Real images after DiffAugment, with their classes."""

    def draw(self, module: Any, batch: Batch, names: list[str]) -> np.ndarray:
        images, labels = (part[: self.images] for part in batch)
        pictures = ((module.augment(images).float() + 1) / 2).clamp(0, 1).movedim(1, -1).cpu()
        titles = [names[label] for label in labels.tolist()] if names else []
        return sheet([pictures], [titles], ["training"])
