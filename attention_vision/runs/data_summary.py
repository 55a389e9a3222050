"""What a run read: a table at its start, RUN/data.json, and the lists of what was left out."""

import csv
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from attention_vision.data.duplicates import shared_images
from attention_vision.data.findings import Findings
from attention_vision.data.image_files import image_size, largest_values
from attention_vision.data.labels import shown
from attention_vision.data.loading import TaskData, data_of
from attention_vision.data.resident import GIB, ResidentLoader
from attention_vision.data.samples import evenly_spaced
from attention_vision.identity import code, code_difference
from attention_vision.report.text_table import aligned
from attention_vision.training.logging import run_folder
from attention_vision.training.optim import horizon
from attention_vision.training.progress import say
from attention_vision.training.steps import step_number
from attention_vision.yaml_json import write_atomically

SUMMARY, DIVISION, SKIPPED = DATA_FILES = ("data.json", "split.json", "skipped.csv")
HEADERS, DECODED = 256, 16  # images of a split whose header is read, and that are decoded
SHOWN = 12  # classes in the table; data.json has them all
DOMINANT = 0.9  # share of one class, from which it is a warning
FEW_STEPS, TIMED_STEPS = 200, 20


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
        fingerprint: identity of the data, see `TaskData.fingerprint`.
        steps: optimizer steps of the whole run, once it is known.
        seconds_per_step: of the first steps of this process, without validation.
    """

    data: str
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    augmentation: list[str] = field(default_factory=list)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    repaired: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    fingerprint: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    seconds_per_step: float | None = None


def summarize(data: TaskData, splits: tuple[str, ...] = ("train", "val")) -> DataSummary:
    """The summary of the splits that were opened, which `setup` did."""
    summary = DataSummary(
        type(data).__name__, augmentation=data.augmentation(), fingerprint=data.fingerprint()
    )
    for split in splits:
        summary.splits[split] = data.facts(split) | sizes_of(data.paths_of(split))
        findings = data.findings.get(split, Findings())
        if findings.left_out:
            summary.left_out[split] = {k: len(paths) for k, paths in findings.left_out.items()}
        summary.broken |= findings.broken
        summary.repaired += findings.repaired
        summary.warnings += findings.warnings
    files = {split: data.paths_of(split) for split in splits}
    sizes = {split: data.sizes(split)[: len(paths)] for split, paths in files.items()}
    summary.warnings += [
        *warn_of_shared_images(files, sizes),
        *warn_of_classes(summary.splits.get("train", {}).get("classes", {})),
        *warn_of_sizes(files.get("train", []), getattr(data, "image_size", 0)),
    ]
    # One file may hold several splits, and says the same of each.
    summary.repaired = list(dict.fromkeys(summary.repaired))
    summary.warnings = list(dict.fromkeys(summary.warnings))
    return summary


def sizes_of(files: Sequence[str]) -> dict[str, str]:
    """Sizes of images, read from the headers of up to `HEADERS` of them, as one fact."""
    sizes = [size for file in evenly_spaced(files, HEADERS) if (size := image_size(file))]
    if not sizes:
        return {}
    least, largest = min(sizes, key=math.prod), max(sizes, key=math.prod)
    if least == largest:
        return {"image size": by(*least)}
    middle = by(*(round(median(lengths)) for lengths in zip(*sizes, strict=True)))
    looked_at = "" if len(sizes) == len(files) else f" ({len(sizes)} looked at)"
    return {"image size": f"{by(*least)} to {by(*largest)}, median {middle}{looked_at}"}


def by(width: int, height: int) -> str:
    return f"{width}x{height}"


def warn_of_shared_images(
    files: Mapping[str, Sequence[str]], sizes: Mapping[str, Iterable[int]]
) -> list[str]:
    pairs = shared_images(files, sizes)
    if not pairs:
        return []
    one, other = pairs[0]
    return [
        f"{len(pairs)} images are in two splits, such as {one} and {other}: what was trained on"
        " cannot be validated on"
    ]


def warn_of_classes(counts: Mapping[str, int]) -> list[str]:
    total = sum(counts.values())
    if len(counts) < 2 or not total:
        return []
    name, most = max(counts.items(), key=lambda pair: pair[1])
    lines = []
    if most >= DOMINANT * total:
        lines.append(
            f"{most / total:.0%} of the training images are {name}: always to answer that is as"
            " accurate; look at the accuracy of each class"
        )
    if empty := [name for name, count in counts.items() if not count]:
        lines.append(f"no training image is {shown(empty)}")
    return lines


def warn_of_sizes(files: Sequence[str], shown_at: int) -> list[str]:
    """Images far smaller than the network sees them, and gray ones of different depths."""
    some = evenly_spaced(files, HEADERS)
    lines, short = [], [min(size) for file in some if (size := image_size(file))]
    if short and shown_at and 2 * (side := int(median(short))) <= shown_at:
        small = "" if side > 64 else " and data.recipe.class_path CIFARAugmentation"
        lines.append(
            f"half of the images are at most {side} pixels wide or high, and are enlarged to"
            f" {shown_at}: try data.image_size {side}{small}"
        )
    whites = largest_values(evenly_spaced(files, DECODED))
    if len(whites) > 1:
        values = " and ".join(f"{white:g}" for white in sorted(whites))
        lines.append(
            f"gray images of more than 8 bits differ in their range: {values} become white; scale"
            " them alike if they are of one kind"
        )
    return lines


def table(summary: DataSummary) -> str:
    """The summary as text: a column per split, then a line per remark."""
    splits = list(summary.splits)
    facts = {split: dict(flattened(summary.splits[split])) for split in splits}
    for split, kinds in summary.left_out.items():
        facts[split] |= {f"left out: {kind}": count for kind, count in kinds.items()}
    names = dict.fromkeys(name for split in splits for name in facts[split])
    rows = [["data", *splits]]
    for name in names:
        values = [facts[split].get(name, "") for split in splits]
        if any(values) or ":" in name:  # a class without an image is worth a row
            rows.append([name, *map(in_words, values)])
    lines = [f"does not decode, left out: {file}" for file in list(summary.broken)[:5]]
    lines += [f"repaired: {line}" for line in summary.repaired]
    lines += [f"augmentation: {line}" for line in summary.augmentation]
    lines += [f"WARNING: {line}" for line in summary.warnings]
    return "\n".join([aligned(rows, range(1, len(splits) + 1)), *(f"data: {x}" for x in lines)])


def flattened(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of facts; of a fact with several parts, of each of the first ones."""
    for name, value in facts.items():
        if not isinstance(value, Mapping):
            yield name, value
            continue
        yield from ((f"{name}: {part}", count) for part, count in list(value.items())[:SHOWN])
        if len(value) > SHOWN:
            yield f"{name}: more", len(value) - SHOWN


def in_words(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


class ReportData(Callback):
    """Prints the summary at the start of fit; writes data.json, split.json and skipped.csv.

    data.json is the `DataSummary`, which W&B gets as `data_summary` of the run's config; split.json
    has the names of the samples of each split that `data.split` divides; skipped.csv (file, reason)
    the images that do not decode, of a prediction too. After the first steps a line says how long
    the run will take.
    """

    def __init__(self) -> None:
        self._summary: DataSummary | None = None
        self._began, self._timed = 0.0, 0

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        data = data_of(trainer)
        if not isinstance(data, TaskData) or not trainer.is_global_zero:
            return
        self._summary = summarize(data)
        self._summary.augmentation += batch_augmentation(module)
        say(table(self._summary))
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue] set from afar
            return
        folder = run_folder(trainer)
        self._write(trainer, self._summary)
        if data.division:
            write_atomically(folder / DIVISION, json.dumps(data.division, indent=2) + "\n")
        write_skipped(folder, self._summary.broken)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._summary is not None and isinstance(trainer.train_dataloader, ResidentLoader):
            images = trainer.train_dataloader.images
            gib = images.nbytes / GIB
            say(
                f"data: {len(images):,} training images in memory, {gib:.2g} GiB on {images.device}"
            )
        if self._summary is None or (trainer.max_steps == -1 and trainer.max_epochs in (None, -1)):
            return
        steps, _ = horizon(trainer)
        self._summary.steps = steps
        say(f"data: {steps:,} steps of {trainer.num_training_batches:,} an epoch")
        if steps < FEW_STEPS:
            line = (
                f"{steps} steps in all are few to learn from: raise trainer.max_epochs or lower"
                " data.batch_size"
            )
            self._summary.warnings.append(line)
            say(f"data: WARNING: {line}")
        self._write(trainer, self._summary)

    def on_train_batch_end(self, trainer: Trainer, *step: Any) -> None:
        if self._summary is None or self._timed > TIMED_STEPS:
            return
        self._timed += 1
        if self._timed == 1:  # the first one is slow
            self._began = time.monotonic()
        elif self._timed > TIMED_STEPS:
            seconds = (time.monotonic() - self._began) / TIMED_STEPS
            self._summary.seconds_per_step = round(seconds, 4)
            self._write(trainer, self._summary)
            if self._summary.steps:
                left = seconds * (self._summary.steps - step_number(trainer))
                say(f"about {in_time(left)} to train, at {seconds:.2g} s a step; validation extra")

    def _write(self, trainer: Trainer, summary: DataSummary) -> None:
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue] set from afar
            return
        facts = {key: value for key, value in asdict(summary).items() if value is not None}
        write_atomically(run_folder(trainer) / SUMMARY, json.dumps(facts, indent=2) + "\n")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams({"data_summary": facts})

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["code"] = code()

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        changed = code_difference(code(), checkpoint.get("code", {}))
        if changed and trainer.is_global_zero:
            say(f"code: {changed} as where the checkpoint was written")

    def on_predict_start(self, trainer: Trainer, module: LightningModule) -> None:
        data = data_of(trainer)
        if isinstance(data, TaskData) and trainer.is_global_zero:
            broken = data.findings.get("predict", Findings()).broken
            write_skipped(run_folder(trainer), broken)


def batch_augmentation(module: Any) -> list[str]:
    """What changes whole batches in training: MixUp and CutMix, DiffAugment."""
    described = getattr(module, "batch_augmentation", None)
    return described() if described else []


def in_time(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.2g} {name}"
    return f"{seconds:.0f} s"


def write_skipped(folder: Path, broken: dict[str, str]) -> None:
    """RUN/skipped.csv, where there is something to list."""
    if not broken:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / SKIPPED).open(
        "w", newline="", encoding="utf-8", errors="surrogateescape"
    ) as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerows([("file", "reason"), *broken.items()])
    say(f"{len(broken)} images do not decode and are left out: {folder / SKIPPED}")
