"""What a run read: a table at its start, RUN/data.json, and the lists of what was left out."""

import csv
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from attention_vision.data.findings import Findings
from attention_vision.data.loading import TaskData, data_of
from attention_vision.report.text_table import aligned
from attention_vision.training.logging import run_folder
from attention_vision.training.progress import say
from attention_vision.yaml_json import write_atomically

SUMMARY, DIVISION, SKIPPED = DATA_FILES = ("data.json", "split.json", "skipped.csv")


@dataclass
class DataSummary:
    """What data a run read.

    Attributes:
        data: name of the data class.
        splits: by split, its facts, see `TaskData.facts`.
        augmentation: what changes the training images, a line each.
        left_out: by split and kind, the number of files left out.
        broken: image that does not decode -> reason.
        repaired: lines that count what was repaired.
        warnings: lines on what looks wrong.
    """

    data: str
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    augmentation: list[str] = field(default_factory=list)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    repaired: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def summarize(data: TaskData, splits: tuple[str, ...] = ("train", "val")) -> DataSummary:
    """The summary of the splits that were opened, which `setup` did."""
    summary = DataSummary(type(data).__name__, augmentation=data.augmentation())
    for split in splits:
        summary.splits[split] = data.facts(split)
        findings = data.findings.get(split, Findings())
        if findings.left_out:
            summary.left_out[split] = {k: len(paths) for k, paths in findings.left_out.items()}
        summary.broken |= findings.broken
        summary.repaired += findings.repaired
        summary.warnings += findings.warnings
    return summary


def table(summary: DataSummary) -> str:
    """The summary as text, a line per fact."""
    rows = []
    for split, facts in summary.splits.items():
        rows += [(f"data: {split}", name, in_words(value)) for name, value in facts.items()]
    for split, kinds in summary.left_out.items():
        rows += [(f"data: {split}", f"left out: {kind}", str(n)) for kind, n in kinds.items()]
    rows += [("data", "does not decode, left out", file) for file in list(summary.broken)[:5]]
    rows += [("data", "repaired", line) for line in summary.repaired]
    rows += [("data", "augmentation", line) for line in summary.augmentation]
    rows += [("data", "WARNING", line) for line in summary.warnings]
    return aligned(rows)


def in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {in_words(one)}" for key, one in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


class ReportData(Callback):
    """Prints the summary at the start of fit; writes data.json, split.json and skipped.csv.

    data.json is the `DataSummary`; split.json has the names of the samples of each split that
    `data.split` divides; skipped.csv (file, reason) the images that do not decode, of a prediction
    too.
    """

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        data = data_of(trainer)
        if not isinstance(data, TaskData) or not trainer.is_global_zero:
            return
        summary = summarize(data)
        say(table(summary))
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue] set from afar
            return
        folder = run_folder(trainer)
        write_atomically(folder / SUMMARY, json.dumps(asdict(summary), indent=2) + "\n")
        if data.division:
            write_atomically(folder / DIVISION, json.dumps(data.division, indent=2) + "\n")
        write_skipped(folder, summary.broken)

    def on_predict_start(self, trainer: Trainer, module: LightningModule) -> None:
        data = data_of(trainer)
        if isinstance(data, TaskData) and trainer.is_global_zero:
            broken = data.findings.get("predict", Findings()).broken
            write_skipped(run_folder(trainer), broken)


def write_skipped(folder: Path, broken: dict[str, str]) -> None:
    """RUN/skipped.csv, where there is something to list."""
    if not broken:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / SKIPPED).open("w", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerows([("file", "reason"), *broken.items()])
    say(f"{len(broken)} images do not decode and are left out: {folder / SKIPPED}")
