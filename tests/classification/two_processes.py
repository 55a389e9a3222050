"""Run by test_classifier_ddp.py: trains, resumes in mid-epoch and evaluates in 2 processes.

python two_processes.py FOLDER
"""

import json
import sys
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tiny_run import classifier, digits, train

from attention_vision.training.metrics_csv import MetricsCSV


def evaluate(folder: Path, checkpoint: Path, images: Path, **trainer: object) -> dict[str, float]:
    """Validates and predicts in uneven parts: 355 images are 4 and 3 batches of 59 per process."""
    data = digits()
    data.batch_size, data.images = 59, str(images)
    evaluation = Trainer(
        accelerator="cpu",
        logger=MetricsCSV(str(folder)),
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    )
    module = classifier()
    (metrics,) = evaluation.validate(module, data, ckpt_path=checkpoint, weights_only=True)
    evaluation.predict(module, data, ckpt_path=checkpoint, weights_only=True)
    return metrics


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    steps = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    two = {"devices": 2, "strategy": "ddp"}
    train(folder / "whole", 0, None, [steps], max_epochs=2, **two)
    train(folder / "resumed", 0, folder / "step=3.ckpt", max_epochs=2, **two)
    metrics = evaluate(folder / "two", folder / "step=4.ckpt", folder / "images", **two)
    if rank_zero_only.rank == 0:
        (folder / "two" / "metrics.json").write_text(json.dumps(metrics))
