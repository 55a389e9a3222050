"""A picture of the first training batch, as the network sees it."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from attention_vision.data.loading import data_of
from attention_vision.training.logging import image_loggers


class BatchPicture(Callback, ABC):
    """Logs `train/batch` once, at the first step of a run: images and what is to be learned.

    It goes to every logger that has `log_image`. What a step does to its batch at random is done
    with the random numbers of that step, which it draws again afterwards. Comes after
    `SeedEveryStep`.

    Args:
        images: how many, the first ones of the batch.
    """

    def __init__(self, images: int = 8):
        self.images = images

    @abstractmethod
    def draw(self, module: Any, batch: Any, names: list[str]) -> np.ndarray:
        """The picture (H, W, 3) uint8 of a batch; `names` are those of the classes."""

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        loggers = image_loggers(trainer)
        if trainer.global_step or batch_idx or not trainer.is_global_zero or not loggers:
            return
        names = [str(name) for name in getattr(data_of(trainer), "class_names", ())]
        with torch.no_grad(), torch.random.fork_rng():
            page = self.draw(module, batch, names)
        for logger in loggers:
            logger.log_image("train/batch", [page])
