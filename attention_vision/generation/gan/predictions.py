"""What `predict` of a GAN leaves in the run folder: images, sheets, attention."""

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from attention_vision.generation.gan.figures import (
    attention_sheet,
    grid,
    interpolate,
    sample_rows,
    shown_classes,
    to_pixel_arrays,
)
from attention_vision.training.logging import run_folder

SHEET = 64  # images of a class's sheet, 8 x 8
CLASSES = 20  # that get a sheet


class GeneratedImages(Callback):
    """Writes what the averaged generator makes, as PNG.

    samples/NUMBER_CLASS.png: the images that were asked for, one a file, for other evaluators.
    pictures/samples.png: a row per class. pictures/class_NAME.png: 64 of one class, of the first 20
    classes. pictures/interpolation.png: from one noise to another, a class a row.
    pictures/attention.png: where the generator looked from the points of the module's
    `attention_points`.

    Noise follows from the number of an image: the same files at any number of processes.
    """

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Tensor,
        batch: tuple[Tensor, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        folder = run_folder(trainer) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        indices, labels = (part.tolist() for part in batch)
        for pixels, index, label in zip(to_pixel_arrays(outputs), indices, labels, strict=True):
            name = f"_{file_name(trainer, label)}" if module.average.num_classes else ""
            Image.fromarray(pixels).save(folder / f"{index:06}{name}.png")

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        folder = run_folder(trainer) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            for name, page in pages(trainer, module).items():
                Image.fromarray(page).save(folder / f"{name}.png")


def pages(trainer: Trainer, module: LightningModule) -> dict[str, np.ndarray]:
    """Name of a picture -> (H, W, 3) uint8."""
    generator, num_classes = module.average, module.average.num_classes
    device = module.device
    found = {"samples": grid(sample_rows(module, 8), 8)}
    for label in range(min(num_classes, CLASSES)):
        labels = torch.full((SHEET,), label, device=device)
        images = module.draw(torch.arange(SHEET), labels)
        found[f"class_{file_name(trainer, label)}"] = grid(images, 8)

    labels = shown_classes(num_classes).to(device)
    rows = len(labels)
    ends = torch.stack([module.noise(torch.arange(rows) + start) for start in (0, rows)])
    found["interpolation"] = grid(interpolate(generator, ends, labels, steps=9), 9)

    titles = [str(trainer.datamodule.class_names[label]) for label in labels] if num_classes else []
    page = attention_sheet(generator, ends[0], labels, module.attention_points, titles)
    if page is not None:
        found["attention"] = page
    return found


def file_name(trainer: Trainer, label: int) -> str:
    name = str(trainer.datamodule.class_names[label])
    return "".join(letter if letter.isalnum() else "-" for letter in name)
