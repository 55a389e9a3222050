"""A small GAN of digits with everything random in it, for the tests in this folder."""

import csv
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor

from attention_vision.generation import SAGAN, DigitImages, Discriminator, Generator
from attention_vision.generation.gan.scores import Evaluator
from attention_vision.generation.gan.sources import InMemory, Source
from attention_vision.training.metrics_csv import MetricsCSV

STEPS_PER_EPOCH = 5  # of the generator: 60 digits, two batches of 6 for each


class FewDigits(DigitImages):
    def source(self) -> Source:
        whole = super().source()
        return InMemory(whole.images[:60], whole.targets[:60])


class Brightness(Evaluator):
    """Scores by the mean of the samples; remembers them all."""

    def __init__(self, samples: int = 12):
        super().__init__(samples, 1, 0, 0, None)

    def prepare(self, data: object, device: object) -> None:
        self.prepared = data

    def reset(self) -> None:
        self.images: dict[int, Tensor] = {}

    def update(self, images: Tensor, labels: Tensor, indices: Tensor) -> None:
        self.images |= dict(zip(indices.tolist(), images.clone(), strict=True))

    def compute(self) -> dict[str, float]:
        return {"score": torch.stack(list(self.images.values())).mean().item()}


def few_digits(**arguments: object) -> FewDigits:
    return FewDigits(**{"size": 16, "flip": 0.5, "batch_size": 6, "count": 20, **arguments})


def gan(num_classes: int = 10, **arguments: object) -> SAGAN:
    seed_everything(3, verbose=False)
    shape = {"size": 16, "num_classes": num_classes, "width": 8, "attention_at": (8,)}
    given = {
        "discriminator_steps": 2,
        "ema_decay": 0.9,
        "ema_start": 3,
        "augment": ("colour", "translation", "cutout"),
        "scorer": Brightness(),
    }
    generator = Generator(latent=4, **shape)
    return SAGAN(generator, Discriminator(**shape), **(given | arguments))


def train(
    folder: Path,
    checkpoint: Path | None = None,
    callbacks: list[Callback] | None = None,
    module: SAGAN | None = None,
    **trainer: object,
) -> SAGAN:
    """Trains into `folder`, from `checkpoint` on where one is given."""
    module = module or gan()
    torch.manual_seed(torch.seed())  # nothing may lean on the stream that the process began with
    Trainer(
        accelerator="cpu",
        logger=MetricsCSV(str(folder)),
        callbacks=callbacks,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 3, "enable_checkpointing": bool(callbacks), **trainer},
    ).fit(module, datamodule=few_digits(), ckpt_path=checkpoint, weights_only=True)
    return module


def curves(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what the clock decides."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.endswith("_per_second")} for row in rows]
