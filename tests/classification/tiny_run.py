"""A small training with everything random in it, for the tests in this folder."""

import csv
import os
import signal
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from attention_vision.backbones import ViT
from attention_vision.classification import AttentionPenalty, CIFARAugmentation, Classifier, Digits
from attention_vision.training.metrics_csv import MetricsCSV
from attention_vision.training.optim import WarmupCosine
from attention_vision.training.resume import StepCheckpoint

STEPS_PER_EPOCH, EPOCHS, BATCH = 5, 3, 51  # of 260 digits, repeated, an epoch has 256


class Kill(Callback):
    """Ends the process as `kill -9` does, after its step was logged and saved."""

    def __init__(self, step: int):
        self.step = step

    def on_before_zero_grad(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def classifier() -> Classifier:
    seed_everything(3, verbose=False)
    return Classifier(
        ViT(16, 8, width=16, depth=2, heads=2, num_classes=10, dropout=0.1, stochastic_depth=0.2),
        partial(torch.optim.AdamW, lr=2e-3),
        partial(WarmupCosine, warmup_epochs=0.7),
        label_smoothing=0.1,
        mixup=0.4,
        cutmix=1.0,
        ema_decay=0.9,
        mix_epochs=2,
        penalty=AttentionPenalty("row_entropy", -0.1, ["blocks.1"]),
    )


def digits(num_workers: int = 0) -> Digits:
    """Read by so many workers; held in memory without workers."""
    recipe = CIFARAugmentation(padding=1, flip=0.0, rotation=10.0, randaugment=1, erasing=0.3)
    return Digits(
        recipe, 16, BATCH, num_workers, repeats=3, per_class=26,
        resident_gib=0.0 if num_workers else 1.0,
    )  # fmt: skip


def train(
    folder: Path,
    num_workers: int,
    checkpoint: Path | None = None,
    callbacks: list[Callback] | None = None,
    module: Classifier | None = None,
    **trainer: object,
) -> Classifier:
    """Trains into `folder`, from `checkpoint` on where one is given."""
    module = module or classifier()
    torch.manual_seed(torch.seed())  # nothing may lean on the stream that the process began with
    Trainer(
        accelerator="cpu",
        logger=MetricsCSV(str(folder)),
        callbacks=callbacks,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": EPOCHS, "enable_checkpointing": bool(callbacks), **trainer},
    ).fit(module, datamodule=digits(num_workers), ckpt_path=checkpoint, weights_only=True)
    return module


def curves(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what the clock decides."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.endswith("_per_second")} for row in rows]


def train_until_killed(folder: Path, num_workers: int, checkpoint: Path | None, step: int) -> None:
    """Trains with last.ckpt after every second step; alive at the end, it leaves final.pt."""
    every_two = StepCheckpoint(
        folder / "checkpoints",
        "last",
        every_n_train_steps=2,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    module = train(folder, num_workers, checkpoint, [Kill(step), every_two])
    torch.save(module.state_dict(), folder / "final.pt")
