"""Accuracy per class and the confusion matrix of an evaluation, exact over several processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from attention_vision.data.loading import data_of
from attention_vision.training.logging import image_loggers, run_folder, writes_reports
from attention_vision.visualization.confusion import MOST_DRAWN, confusion_csv, confusion_figure
from attention_vision.visualization.drawing import pixels
from attention_vision.yaml_json import write_atomically

MOST_NAMED = 100  # classes; with more, metrics.csv would be nothing but them
MOST_COUNTED = 1000  # classes of a confusion matrix, which is 8 MB then


class ClassAccuracy(Metric):
    """Images and right answers of each class.

    Both of shape (num_classes,); processes and batches are added up.
    """

    full_state_update = False
    images: Tensor
    right: Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        zeros = torch.zeros(num_classes, dtype=torch.long)
        self.add_state("images", zeros, dist_reduce_fx="sum")
        self.add_state("right", zeros.clone(), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch. Shape: (B, num_classes), (B,)"""
        hits = (logits.argmax(1) == labels).long()
        # Not `bincount`, for whose length the host waits.
        self.images = self.images.index_add(0, labels, torch.ones_like(labels))
        self.right = self.right.index_add(0, labels, hits)

    def compute(self) -> Tensor:
        """Accuracy of each class, nan without images. Shape: (num_classes,)"""
        return self.right / self.images


def named_accuracies(accuracy: Tensor, names: Sequence[str]) -> dict[str, float]:
    """`top1_macro`, the mean over the classes that have images, and `top1_of/NAME` of each.

    Of more than 100 classes the mean alone.
    """
    values = accuracy.view(-1).tolist()  # torchmetrics gives a scalar for one class
    measured = {name: a for name, a in zip(names, values, strict=True) if a == a}
    macro = {"top1_macro": sum(measured.values()) / max(1, len(measured))}
    if len(names) > MOST_NAMED:
        return macro
    return macro | {f"top1_of/{name}": value for name, value in measured.items()}


def confusion_matrices(num_classes: int) -> nn.ModuleDict:
    """Split -> its matrix, a row per true class; none for more than 1,000 classes."""
    if not 2 <= num_classes <= MOST_COUNTED:
        return nn.ModuleDict()
    return nn.ModuleDict(
        {
            split: MulticlassConfusionMatrix(num_classes, validate_args=False)
            for split in ("val", "test")
        }
    )


class ConfusionFigures(Callback):
    """Writes RUN/confusion.csv after each validation, and draws `val/confusion` in the end.

    Rows are the true classes, columns the predicted ones, numbers are images. A test writes
    RUN/confusion_test.csv. The picture is of the last validation and of up to 100 classes, drawn
    once (a third of a second), and goes to every logger that has `log_image`.

    Expects a module with `confusions`, see `confusion_matrices`.
    """

    def __init__(self) -> None:
        self._last: tuple[np.ndarray, list[str]] | None = None

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._report(trainer, module, "val")

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._report(trainer, module, "test")

    def _report(self, trainer: Trainer, module: LightningModule, split: str) -> None:
        matrices = cast(nn.ModuleDict, module.confusions)
        if split not in matrices:
            return
        counts = cast(Metric, matrices[split]).compute()  # of all processes; all compute
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        names = class_names(trainer, len(counts))
        nowhere = getattr(trainer, "fast_dev_run", False) or run_folder(trainer) == Path.cwd()
        if writes_reports(trainer) and not nowhere:
            # Lightning's own default is the current folder, where nobody expects a file.
            name = "confusion.csv" if split == "val" else f"confusion_{split}.csv"
            write_atomically(run_folder(trainer) / name, confusion_csv(counts.cpu().numpy(), names))
        self._last = counts.cpu().numpy(), names

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._last is None or len(self._last[1]) > MOST_DRAWN:
            return
        if loggers := image_loggers(trainer):
            picture = pixels(confusion_figure(*self._last))
            for logger in loggers:
                logger.log_image("val/confusion", [picture])


def class_names(trainer: Trainer, count: int) -> list[str]:
    """Names of the classes of the trainer's data; their numbers where it has none."""
    names = getattr(data_of(trainer), "class_names", ())
    return [str(name) for name in names] or [str(number) for number in range(count)]
