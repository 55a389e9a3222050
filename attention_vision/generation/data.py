"""Base of the data of generation: loaders and sampling.

Batches of a GAN are (images (B, 3, H, W) float in -1..1, labels (B,) int64); of image-to-image work
(inputs (B, C, H, W) float, targets (B, C', H, W)).
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from attention_vision.data.loading import (
    EpochSampler,
    check_loading,
    evaluation_loader,
    replicas,
    train_loader,
)
from attention_vision.errors import InputError
from attention_vision.training.steps import run_seed

Batch = tuple[Tensor, Tensor]


class GenerationData(LightningDataModule):
    """Base of all generation data: a subclass sets what is declared here and gives `dataset`.

    Args:
        size: side of the square images, in pixels.
        batch_size: images per process and step.
        num_workers: processes that load images, 0 to load in the training process.
        seed: of order and augmentation; the run's seed where none is given.

    `num_classes` (0 without classes), `class_names` and `size` are known before `setup`.

    Raises:
        InputError: a size or number that is not positive.
    """

    class_names: Sequence[str] = ()

    def __init__(self, size: int, batch_size: int, num_workers: int, seed: int | None):
        super().__init__()
        if size < 1:
            raise InputError(f"data.size {size} is not positive")
        check_loading(batch_size, num_workers)
        self.size = size
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def dataset(self, split: str, seed: int) -> Dataset:
        """The samples of "train" or "val". Raises InputError when they are missing or wrong.

        Training asks for `dataset[epoch, index]`, evaluation for `dataset[index]`: what is random
        in a sample is drawn under `random_stream(seed, epoch, index)`.
        """
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.train_images = self.dataset("train", self.order_seed)
        if stage in ("fit", "validate", "test"):
            self.val_images = self.dataset("val", self.order_seed)

    @property
    def order_seed(self) -> int:
        return run_seed() if self.seed is None else self.seed

    def train_dataloader(self) -> StatefulDataLoader:
        """Shuffled full batches. Raises InputError when there is not even one."""
        sampler = EpochSampler(self.train_images, *replicas(self.trainer), seed=self.order_seed)
        return train_loader(self.trainer, sampler, self._loading())

    def val_dataloader(self) -> DataLoader:
        return evaluation_loader(self.trainer, self.val_images, self._loading())

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def _loading(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
        }
