"""Checksum of metrics.csv in each checkpoint."""

import zlib
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from attention_vision.training.progress import say


class MetricsSum(Callback):
    """Record length and CRC-32 of metrics.csv in each checkpoint; a resume says what differs.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / "metrics.csv"
        self._kept: dict[str, int] = {}

    def state_dict(self) -> dict[str, int]:
        if not self.file.is_file():
            return {"bytes": 0, "crc32": 0}
        return {"bytes": self.file.stat().st_size, "crc32": crc32(self.file)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._kept = state_dict

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Compare before later rows are dropped, if the checkpoint is one of this folder."""
        source = Path(trainer.ckpt_path or "")
        if not self._kept or not trainer.is_global_zero or self.folder not in source.parents:
            return
        size = self.file.stat().st_size if self.file.is_file() else 0
        if size < self._kept["bytes"]:
            say(f"{self.file} was cut since {source.name} was written: rows are missing")
        elif crc32(self.file, self._kept["bytes"]) != self._kept["crc32"]:
            say(
                f"{self.file} was changed or damaged since {source.name} was written: a checksum"
                " does not fit, its earlier rows may be wrong"
            )
        self._kept = {}


def crc32(file: Path, size: int = -1) -> int:
    """CRC-32 of the first bytes of a file, of all by default."""
    with file.open("rb") as stream:
        return zlib.crc32(stream.read(size))
