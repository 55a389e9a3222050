"""Base of the data of generation.

Batches of a GAN are (images (B, 3, H, W) float in -1..1, labels (B,) int64); of image-to-image work
(inputs (B, C, H, W) float, targets (B, C', H, W)).
"""

from torch import Tensor

from attention_vision.data.loading import OnBadImage, TaskData
from attention_vision.data.splits import SplitShares
from attention_vision.ranges import Count, Seed, Size, Workers, checked

Batch = tuple[Tensor, Tensor]


@checked
class GenerationData(TaskData):
    """Base of all generation data: a subclass sets `class_names` and defines `dataset`.

    Args:
        size: side of the square images, in pixels; known before `setup`.
        batch_size, num_workers, seed, images, split, on_bad_image: see `TaskData`.

    Raises:
        InputError: a size or number that is not positive.
    """

    def __init__(
        self,
        size: Size,
        batch_size: Count,
        num_workers: Workers,
        seed: Seed | None,
        images: str | None = None,
        split: SplitShares | None = None,
        on_bad_image: OnBadImage = "stop",
    ):
        super().__init__(batch_size, num_workers, seed, images, split, on_bad_image)
        self.size = size
