"""The first training batch of a GAN: real images as the discriminator sees them."""

from typing import Any

from torch import Tensor

from attention_vision.data.batch_picture import BatchPicture
from attention_vision.generation.data import Batch


class RealBatch(BatchPicture):
    """Real images after DiffAugment, with their classes."""

    def draw(self, module: Any, batch: Batch, names: list[str]) -> tuple[Tensor, list[str]]:
        images, labels = (part[: self.images] for part in batch)
        pictures = ((module.augment(images).float() + 1) / 2).clamp(0, 1).movedim(1, -1)
        return pictures, [names[label] if names else "" for label in labels.tolist()]
