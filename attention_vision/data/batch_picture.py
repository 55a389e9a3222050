"""A picture of the first training batch, as the network sees it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from attention_vision.data.loading import data_of
from attention_vision.ranges import Count, checked
from attention_vision.training.logging import image_loggers

COLUMNS, GAP, LINE = 4, 4, 14  # of the page; pixels around a picture, and of a line of text


@checked
class BatchPicture(Callback, ABC):
    """Logs `train/batch` once, at the first step of a run: images and what is to be learned.

    It goes to every logger that has `log_image`. What a step does to its batch at random is done
    with the random numbers of that step, which it draws again afterwards. Comes after
    `SeedEveryStep`.

    Args:
        images: how many, the first ones of the batch.
    """

    def __init__(self, images: Count = 8):
        self.images = images

    @abstractmethod
    def draw(
        self, module: Any, batch: Any, names: list[str]
    ) -> tuple[Sequence[Tensor], Sequence[str]]:
        """Pictures (H, W, 3) in 0..1 with a text of up to two lines each.

        Args:
            module: the task's.
            batch: as it comes from the loader.
            names: of the classes.
        """

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        loggers = image_loggers(trainer)
        if trainer.global_step or batch_idx or not trainer.is_global_zero or not loggers:
            return
        names = [str(name) for name in getattr(data_of(trainer), "class_names", ())]
        with torch.no_grad(), torch.random.fork_rng():
            page = tiled(*self.draw(module, batch, names))
        for logger in loggers:
            logger.log_image("train/batch", [page])


def tiled(pictures: Sequence[Tensor], texts: Sequence[str], side: int = 192) -> np.ndarray:
    """Draw pictures (H, W, 3) in 0..1 in rows, each under its text, as (height, width, 3) uint8.

    Each is scaled so that its longer side is `side` pixels.
    """
    font = ImageFont.load_default(LINE - 3)
    height, width = side + 2 * LINE + GAP, side + GAP
    rows = ceil(len(pictures) / COLUMNS)
    page = Image.new("RGB", (min(len(pictures), COLUMNS) * width, rows * height), "white")
    for index, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        left, top = index % COLUMNS * width, index // COLUMNS * height
        pixels = (picture.float().cpu() * 255).round().byte().numpy()
        scale = side / max(pixels.shape[:2])
        sides = [max(1, round(length * scale)) for length in reversed(pixels.shape[:2])]
        kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        page.paste(Image.fromarray(pixels).resize(sides, kind), (left, top + 2 * LINE))
        ImageDraw.Draw(page).multiline_text((left, top), text, "black", font, spacing=1)
    return np.array(page)
