"""Comparison of config.yaml and metrics.csv with what they were when a checkpoint was written."""

import zlib
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from attention_vision.training.progress import say
from attention_vision.training.run_folder import read_checkpoint
from attention_vision.yaml_json import write_atomically

EARLIER = "config.earlier.yaml"


class RunFiles(Callback):
    """Record the text of config.yaml and the checksum of metrics.csv in each checkpoint.

    A resumed run says what does not fit: a config that was edited is used as it is, and so would be
    a damaged one that is still YAML. The recorded one is written to `config.earlier.yaml` then.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def state_dict(self) -> dict[str, Any]:
        config, metrics = self.folder / "config.yaml", self.folder / "metrics.csv"
        return {
            "config": config.read_text() if config.is_file() else None,
            "bytes": metrics.stat().st_size if metrics.is_file() else 0,
            "crc32": crc32(metrics) if metrics.is_file() else 0,
        }

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Compare, before this run writes its config."""
        file = trainer.ckpt_path and Path(trainer.ckpt_path)
        if stage != "fit" or not file or file.parent.parent.resolve() != self.folder.resolve():
            return
        if trainer.is_global_zero:
            for line in self.differences(file):
                say(line)

    def differences(self, checkpoint: Path) -> list[str]:
        """One line per file that is not what it was; empty for a checkpoint of an older version."""
        kept = read_checkpoint(checkpoint).get("callbacks", {}).get(self.state_key)
        if not kept:
            return []
        lines = []
        config, metrics = self.folder / "config.yaml", self.folder / "metrics.csv"
        if config.is_file() and kept["config"] and config.read_text() != kept["config"]:
            write_atomically(self.folder / EARLIER, kept["config"])
            changes = changed_keys(kept["config"], config.read_text())
            lines.append(
                f"{config} was edited or damaged since {checkpoint.name} was written"
                f" ({changes}); the earlier one is {self.folder / EARLIER}"
            )
        if not metrics.is_file() or metrics.stat().st_size < kept["bytes"]:
            lines.append(f"{metrics} was cut since {checkpoint.name} was written: rows are missing")
        elif crc32(metrics, kept["bytes"]) != kept["crc32"]:
            lines.append(
                f"{metrics} was changed or damaged since {checkpoint.name} was written: a checksum"
                " does not fit, its earlier rows may be wrong"
            )
        return lines


def crc32(file: Path, size: int = -1) -> int:
    """CRC-32 of the first bytes of a file, of all by default."""
    with file.open("rb") as stream:
        return zlib.crc32(stream.read(size))


def changed_keys(before: str, after: str) -> str:
    """The dotted keys in which two configs differ, five at most."""
    old, new = (flat(yaml.safe_load(text)) for text in (before, after))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    shown = [f"{key} {old.get(key, 'absent')} -> {new.get(key, 'absent')}" for key in keys[:5]]
    return ", ".join([*shown, *([f"{len(keys) - 5} more"] if len(keys) > 5 else [])]) or "comments"


def flat(content: Any, key: str = "") -> dict[str, Any]:
    """A nested mapping as {dotted key: value}."""
    if not isinstance(content, dict) or not content:
        return {key: content}
    parts = {}
    for name, value in content.items():
        parts |= flat(value, f"{key}.{name}" if key else str(name))
    return parts
