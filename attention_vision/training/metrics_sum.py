"""Checksum of metrics.csv in each checkpoint."""

import zlib
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from attention_vision.training.progress import say


class MetricsSum(Callback):
    """Record length and CRC-32 of metrics.csv in each checkpoint; a resume says what differs.

    The last row does not count, which may get cells after the checkpoint, nor do the columns and
    empty cells that a later row brings.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / "metrics.csv"
        self._kept: dict[str, int] = {}

    def state_dict(self) -> dict[str, int]:
        if not self.file.is_file():
            return {"rows": 0, "crc32": 0}
        rows, total = crc32(self.file)
        return {"rows": rows, "crc32": total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._kept = state_dict

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Compare before later rows are dropped, if the checkpoint is one of this folder."""
        source = Path(trainer.ckpt_path or "")
        if (
            "rows" not in self._kept
            or not trainer.is_global_zero
            or self.folder not in source.parents
        ):
            return
        rows, found = crc32(self.file, self._kept["rows"]) if self.file.is_file() else (0, 0)
        if rows < self._kept["rows"]:
            say(f"{self.file} was cut since {source.name} was written: rows are missing")
        elif found != self._kept["crc32"]:
            say(
                f"{self.file} was changed or damaged since {source.name} was written: a checksum"
                " does not fit, its earlier rows may be wrong"
            )
        self._kept = {}


def crc32(file: Path, rows: int | None = None) -> tuple[int, int]:
    """Number and CRC-32 of the first rows of a file, without the empty cells at their ends.

    Args:
        file: a CSV with a header.
        rows: at most so many; None for all but the last one.
    """
    number = total = 0
    with file.open("rb") as stream:
        lines = islice(stream, 1, None if rows is None else rows + 1)
        for line in lines if rows is not None else (one for one, _ in pairwise(lines)):
            number, total = number + 1, zlib.crc32(line.rstrip(b"\n,"), total)
    return number, total
