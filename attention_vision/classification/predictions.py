"""The table that `predict` leaves in the run folder."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from attention_vision.data.loading import data_of
from attention_vision.training.distributed import broadcast, gather
from attention_vision.training.logging import run_folder

FILE = "predictions.csv"


class Predictions(Callback):
    """Writes predictions.csv: `file`, and the five likeliest classes with their probabilities.

    Expects from `predict_step` (paths, class numbers (B, k), probabilities (B, k)); names come from
    the data: with loaders alone nothing is written. The file lies in the run folder, beside
    metrics.csv; rows are in the order of the paths, at any number of processes.

    Each batch is on disk before the next one: a prediction that is stopped keeps its rows. Of
    several processes each writes predictions_RANK.csv, which rank zero merges in the end.
    """

    def __init__(self) -> None:
        self._header: list[str] = []

    def on_predict_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._header = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: tuple[list[str], torch.Tensor, torch.Tensor],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if (data := data_of(trainer)) is None:
            return
        names, rows = data.class_names, []
        for path, classes, probabilities in zip(*outputs, strict=True):
            likeliest = [names[number] for number in classes.tolist()]
            rows.append([path, *likeliest, *(f"{p:.6f}" for p in probabilities.tolist())])
        if not self._header:
            numbers = range(1, outputs[1].shape[1] + 1)
            self._header = ["file", *(f"class_{n}" for n in numbers)]
            self._header += [f"probability_{n}" for n in numbers]
            write(self._part(trainer), "w", [self._header])
        write(self._part(trainer), "a", rows)

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.world_size == 1:
            return
        part = self._part(trainer)
        parts = gather(read(part) if self._header else [])
        header = next((rows[0] for rows in parts if rows), None)
        if header is not None:  # on rank zero
            write(run_folder(trainer) / FILE, "w", [header, *sorted(
                row for rows in parts for row in rows[1:]
            )])  # fmt: skip
        broadcast(None)  # no part is removed before the whole is written
        part.unlink(missing_ok=True)

    def _part(self, trainer: Trainer) -> Path:
        """The file that this process writes."""
        alone = trainer.world_size == 1
        return run_folder(trainer) / (FILE if alone else f"predictions_{trainer.global_rank}.csv")


def write(file: Path, mode: str, rows: list[list[str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open(mode, newline="", encoding="utf-8", errors="surrogateescape") as opened:
        csv.writer(opened, lineterminator="\n").writerows(rows)


def read(file: Path) -> list[list[str]]:
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
        return list(csv.reader(opened))
