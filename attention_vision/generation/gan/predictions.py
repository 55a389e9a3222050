"""Files that `predict` of a GAN writes into the run folder: images, sheets, attention."""

from collections import Counter
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch import Tensor

from attention_vision.data.loading import data_of
from attention_vision.generation.gan.figures import (
    attention_sheet,
    grid,
    interpolate,
    row_names,
    sample_rows,
    shown_classes,
    to_pixel_arrays,
)
from attention_vision.training.logging import draws_pictures, run_folder

SHEET = 64  # images of a class's sheet, 8 x 8
CLASSES = 20  # the first ones, which have a sheet


class GeneratedImages(Callback):
    """Writes images of the averaged generator, as PNG.

    samples/NUMBER_CLASS.png: `data.count` images, one per file, for other evaluators.
    pictures/samples.png: a row per class. pictures/class_NAME.png: 64 of one class, of the first 20
    classes. pictures/interpolation.png: from one noise to another, one class per row.
    pictures/attention.png: what the generator attended to from the module's `attention_points`.

    Noise follows from the index of an image: the same files at any number of processes. With
    loaders alone, which have no names of classes, nothing is written.
    """

    def on_predict_batch_end(
        self,
        trainer: Any,
        module: Any,
        outputs: Tensor,
        batch: tuple[Tensor, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if data_of(trainer) is None:
            return
        folder = run_folder(trainer) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        indices, labels = (part.tolist() for part in batch)
        for pixels, index, label in zip(to_pixel_arrays(outputs), indices, labels, strict=True):
            name = f"_{file_name(trainer, label)}" if module.average.num_classes else ""
            Image.fromarray(pixels).save(folder / f"{index:06}{name}.png")

    def on_predict_end(self, trainer: Trainer, module: Any) -> None:
        if not trainer.is_global_zero or not draws_pictures(trainer) or data_of(trainer) is None:
            return
        folder = run_folder(trainer) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            for name, picture in draw_pictures(trainer, module).items():
                Image.fromarray(picture).save(folder / f"{name}.png")


def draw_pictures(trainer: Any, module: Any) -> dict[str, np.ndarray]:
    """Name -> picture (H, W, 3) uint8, of a SAGAN.

    Args:
        trainer: its data has the names of the classes.
    """
    generator, num_classes = module.average, module.average.num_classes
    device = module.device
    names = row_names(module, trainer.datamodule.class_names)
    found = {"samples": grid(sample_rows(module, 8), 8, names)}
    for label in range(min(num_classes, CLASSES)):
        labels = torch.full((SHEET,), label, device=device)
        images = module.draw(torch.arange(SHEET), labels)
        found[f"class_{file_name(trainer, label)}"] = grid(images, 8)

    labels = shown_classes(num_classes).to(device)
    rows = len(labels)
    ends = torch.stack([module.noise(torch.arange(rows) + start) for start in (0, rows)])
    found["interpolation"] = grid(interpolate(generator, ends, labels, steps=9), 9, names)

    picture = attention_sheet(generator, ends[0], labels, module.attention_points, names)
    if picture is not None:
        found["attention"] = picture
    return found


def file_name(trainer: Any, label: int) -> str:
    """Name of a class, with a dash for each character that a file name should not have.

    With its number where another class has the same one: `a b` and `a-b`, `A` and `a`.
    """
    names = [plain_name(str(name)) for name in trainer.datamodule.class_names]
    shared = Counter(name.casefold() for name in names)
    name = names[label]
    return name if shared[name.casefold()] == 1 else f"{name}_{label}"


def plain_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)
