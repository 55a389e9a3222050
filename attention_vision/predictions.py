"""What the predictions of all tasks share: where they are written, and by which process."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from attention_vision.metrics_csv import MetricsCSV


def run_folder(trainer: Trainer) -> Path:
    """The folder of metrics.csv; the trainer's `default_root_dir` where nothing is logged."""
    folders = [logger.save_dir for logger in trainer.loggers if isinstance(logger, MetricsCSV)]
    return Path(*folders[:1] or [trainer.default_root_dir])


def gathered(trainer: Trainer, rows: list[Any]) -> list[Any]:
    """The rows of all processes on rank zero, none on the others; all of them call it."""
    if trainer.world_size == 1:
        return rows
    parts = [None] * trainer.world_size if trainer.is_global_zero else None
    torch.distributed.gather_object(rows, parts)
    return [row for part in parts or () for row in part]
