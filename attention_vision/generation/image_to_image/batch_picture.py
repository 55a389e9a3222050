"""The first training batch of image-to-image work: inputs and targets."""

from typing import Any

import numpy as np

from attention_vision.data.batch_picture import BatchPicture
from attention_vision.generation.data import Batch
from attention_vision.generation.image_to_image.figures import middle, to_pictures
from attention_vision.visualization.drawing import sheet


class PairedBatch(BatchPicture):
    """Inputs over targets; of volumes the middle slices."""

    def draw(self, module: Any, batch: Batch, names: list[str]) -> np.ndarray:
        inputs, targets = (part[: self.images] for part in batch)
        spatial = inputs.ndim - 2
        rows = [to_pictures(middle(part, spatial)) for part in (inputs, targets)]
        return sheet(rows, [[], []], ["input", "target"])
