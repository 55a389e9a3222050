"""The table that `predict` leaves in the run folder."""

import csv
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from attention_vision.data.loading import data_of
from attention_vision.training.distributed import gather
from attention_vision.training.logging import run_folder


class Predictions(Callback):
    """Writes predictions.csv: `file`, and the five likeliest classes with their probabilities.

    Expects from `predict_step` (paths, class numbers (B, k), probabilities (B, k)); names come from
    the data. The file lies in the run folder, beside metrics.csv; rows are in the order of the
    paths, at any number of processes.
    """

    def __init__(self) -> None:
        self._rows: list[list[Any]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: tuple[list[str], torch.Tensor, torch.Tensor],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        names = data_of(trainer).class_names
        for path, classes, probabilities in zip(*outputs, strict=True):
            likeliest = [names[number] for number in classes.tolist()]
            self._rows.append([path, *likeliest, *(f"{p:.6f}" for p in probabilities.tolist())])

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        rows = sorted(row for part in gather(self._rows) for row in part)
        self._rows = []
        if rows:
            count = (len(rows[0]) - 1) // 2
            numbers = range(1, count + 1)
            file = run_folder(trainer) / "predictions.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("w", newline="") as opened:
                writer = csv.writer(opened, lineterminator="\n")
                writer.writerow(
                    [
                        "file",
                        *(f"class_{n}" for n in numbers),
                        *(f"probability_{n}" for n in numbers),
                    ]
                )
                writer.writerows(rows)
