"""A detector whose detections are known, for the tests of predictions.

python corners.py FOLDER predicts FOLDER/images in 2 processes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from attention_vision.detection.data import DigitScenes
from attention_vision.detection.predictions import DetectionResults
from attention_vision.training.metrics_csv import MetricsCSV


class Corners(LightningModule):
    """Finds one box in the middle of each image, and a better one in its corner."""

    score = 0.9

    def predict_step(self, batch: tuple, batch_idx: int) -> list[dict[str, Tensor]]:
        found = []
        for target in batch[2]:
            height, width = target["orig_size"].tolist()
            middle = [width / 4, height / 3, width / 2, height / 2]
            found.append(
                {
                    "boxes": torch.tensor([middle, [0.0, 0.0, width / 2, height / 2]]),
                    "scores": torch.tensor([0.1, self.score]),
                    "labels": torch.tensor([9, 2]),
                }
            )
        return found


def predict(
    folder: Path,
    run: str,
    results: DetectionResults,
    callbacks: Sequence[Callback] = (),
    **trainer: object,
) -> DigitScenes:
    """Leaves in FOLDER/RUN what is predicted for FOLDER/images."""
    data = DigitScenes(batch_size=2, images=str(folder / "images"))
    Trainer(
        accelerator="cpu",
        logger=MetricsCSV(str(folder / run)),
        callbacks=[results, *callbacks],
        enable_progress_bar=False,
        **trainer,
    ).predict(Corners(), data, return_predictions=False)
    return data


if __name__ == "__main__":
    predict(Path(sys.argv[1]), "two", DetectionResults(), devices=2, strategy="ddp")
