"""The first training batch of image-to-image work: inputs and targets."""

from typing import Any

import torch
from torch import Tensor

from attention_vision.data.batch_picture import BatchPicture
from attention_vision.generation.data import Batch
from attention_vision.generation.image_to_image.figures import middle, to_pictures
from attention_vision.ranges import Count, checked


@checked
class PairedBatch(BatchPicture):
    """Inputs over targets; of volumes the middle slices."""

    def __init__(self, images: Count = 4):
        super().__init__(images)

    def draw(self, module: Any, batch: Batch, names: list[str]) -> tuple[Tensor, list[str]]:
        inputs, targets = (part[: self.images] for part in batch)
        spatial = inputs.ndim - 2
        pictures = [to_pictures(middle(part, spatial)) for part in (inputs, targets)]
        return torch.cat(pictures), ["input"] * len(inputs) + ["target"] * len(targets)
