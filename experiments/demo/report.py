"""The end of `make demo`: a table of the trained models, and a picture of where each one looks.

python experiments/demo/report.py runs/demo
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor

from attention_vision.classification import Digits
from attention_vision.classification.figures import look
from attention_vision.figures import overlay, rgb, sheet
from attention_vision.runs import load_run

MODELS = {"ViT": "vit_digits", "SE-ResNet-20": "se_resnet_digits"}


def held_out(size: int) -> tuple[Tensor, Tensor]:
    """The held-out digits as the networks see them: (n, 3, size, size) and (n,)."""
    data = Digits(image_size=size, batch_size=1000)
    data.setup("validate")
    return next(iter(data.val_dataloader()))


def accuracy(model: LightningModule, images: Tensor, labels: Tensor) -> float:
    return (model(images).argmax(1) == labels).float().mean().item()


def speed(model: LightningModule, images: Tensor, repeats: int = 5) -> float:
    """Images per second of the forward pass, the median of some runs."""
    model(images)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        model(images)
        seconds.append(time.perf_counter() - start)
    return len(images) / float(np.median(seconds))


def picture(models: dict[str, LightningModule], images: Tensor, labels: Tensor) -> np.ndarray:
    """One digit of each class, and below it where each model looks and what it reads."""
    first = [int((labels == digit).nonzero()[0]) for digit in range(10)]
    images, labels = images[first], labels[first]
    rows, titles, names = [rgb(images)], [[str(n) for n in labels.tolist()]], ["held-out digits"]
    for name, model in models.items():
        maps, kind = look(model.network, images)
        chances, classes = model(images).detach().softmax(1).max(1)
        rows.append(overlay(images, maps))
        pairs = zip(classes.tolist(), chances.tolist(), strict=True)
        titles.append([f"{digit} ({chance:.0%})" for digit, chance in pairs])
        names.append(f"{name}\n{kind}")
    return sheet(rows, titles, names)


def main(folder: Path) -> None:
    models = {name: load_run(folder / run) for name, run in MODELS.items()}
    images, labels = held_out(16)
    print(f"\n{len(images)} held-out digits, {torch.get_num_threads()} threads\n")
    print(f"{'model':<14}{'accuracy':>10}{'parameters':>12}{'images/s':>10}")
    with torch.inference_mode():
        for name, model in models.items():
            count = sum(parameter.numel() for parameter in model.parameters())
            print(
                f"{name:<14}{accuracy(model, images, labels):>10.2%}{count:>12,}"
                f"{speed(model, images):>10,.0f}"
            )
    file = folder / "where_they_look.png"
    Image.fromarray(picture(models, images, labels)).save(file)
    print(f"\nwhere each model looks: {file}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
