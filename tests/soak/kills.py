"""Kills runs with SIGKILL at random moments, resumes them, and compares them with whole runs.

    python tests/soak/kills.py --kills 60 --seed 0

Compared bit by bit: everything in last.ckpt and best.ckpt, callbacks' states included, and the
curves but for what the clock decides. Prints a line per run; the exit code is 1 if one differs.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from small_runs import CONFIGS, node, preload, start, write_config

EVERY_STEP = {"checkpoint_every_n_steps": 1, "trainer__max_epochs": 3}
EVERY_TWO = {"checkpoint_every_n_steps": 2, "trainer__max_epochs": 3}
WORKERS = {"data__num_workers": 2}
WARMUP = node("WarmupCosine", warmup_epochs=0.5)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "classifier": ("classifier", EVERY_TWO),
    "classifier, EMA, mixup, cutmix": (
        "classifier",
        EVERY_TWO
        | {"model__ema_decay": 0.9, "model__mixup": 0.4, "model__cutmix": 1.0}
        | {"model__schedule": WARMUP},
    ),
    "classifier, workers": ("classifier", EVERY_TWO | WORKERS),
    "classifier, accumulation": (
        "classifier", EVERY_STEP | {"trainer__accumulate_grad_batches": 2},
    ),
    "classifier, compiled": ("classifier", EVERY_TWO | {"compile": "aot_eager"}),
    "classifier, validation inside epochs": (
        "classifier", EVERY_STEP | {"trainer__val_check_interval": 3},
    ),
    "classifier, every second validation": (
        "classifier", EVERY_TWO | {"trainer__check_val_every_n_epoch": 2},
    ),
    "detr": ("detr", EVERY_TWO),
    "detr, workers, accumulation, clipping": (
        "detr",
        EVERY_STEP | WORKERS
        | {"trainer__accumulate_grad_batches": 2, "trainer__gradient_clip_val": 0.1},
    ),
    "dino": ("dino", EVERY_TWO),
    "dino, workers, accumulation, clipping": (
        "dino",
        EVERY_STEP | WORKERS
        | {"trainer__accumulate_grad_batches": 2, "trainer__gradient_clip_val": 0.1},
    ),
    "faster_rcnn": ("faster_rcnn", EVERY_TWO | {"trainer__max_epochs": 2}),
    "sagan": ("sagan", EVERY_TWO),
    "unet": ("unet", EVERY_TWO),
    "unet, EMA, workers, deferred validation": (
        "unet",
        EVERY_STEP | WORKERS
        | {"model__ema_decay": 0.9, "trainer__val_check_interval": 5},
    ),
}  # fmt: skip
CLOCK = "_per_second"  # columns that differ from run to run
# Sizes and sums of files that contain paths and what the clock decides; the config, in which a
# resume writes the preprocessing of the checkpoint where the first attempt left the default; and
# the commit, which may change in hours.
RECORDS = ("RunFiles", "MetricsSum", "config", "code")


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Yield the places at which two parts of checkpoints differ in a bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            if key in one and key in other:
                yield from differences(one[key], other[key], f"{where}/{key}")
            else:
                yield f"{where}/{key} is missing in one"
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield f"{where} has {len(one)} and {len(other)} parts"
        for number, pair in enumerate(zip(one, other, strict=False)):
            yield from differences(*pair, f"{where}/{number}")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one.nan_to_num(7), other.nan_to_num(7)):
            yield f"{where} differs"
    elif one != other and repr(one) != repr(other):  # NaN is not equal to itself
        yield f"{where}: {str(one)[:60]} and {str(other)[:60]}"


def without_folder(part: Any, folder: Path) -> Any:
    """Return a part of a checkpoint with RUN for its folder."""
    if isinstance(part, dict):
        return {
            str(key).replace(str(folder), "RUN"): without_folder(value, folder)
            for key, value in part.items()
            if key not in RECORDS
        }
    if isinstance(part, list | tuple):
        return [without_folder(one, folder) for one in part]
    return part.replace(str(folder), "RUN") if isinstance(part, str) else part


def read_run(folder: Path) -> dict[str, Any]:
    """Return the checkpoints and the curves of a run."""
    with (folder / "metrics.csv").open() as file:
        rows = [
            {key: cell for key, cell in row.items() if not key.endswith(CLOCK)}
            for row in csv.DictReader(file)
        ]
    states = {
        file.stem: without_folder(torch.load(file, weights_only=True), folder)
        for file in sorted((folder / "checkpoints").glob("*.ckpt"))
    }
    return {"metrics.csv": rows, **states}


def finish(task: str, words: list[str], output: Path, seconds: float = 600) -> None:
    process = start(task, words, output)
    process.join(seconds)
    if process.exitcode != 0:
        raise RuntimeError(f"exit code {process.exitcode}: {output.read_text()[-1500:]}")


class Kind:
    """One kind of run: the whole run, and runs that are killed."""

    def __init__(self, name: str, folder: Path):
        run, changes = KINDS[name]
        self.task, self.folder = CONFIGS[run]["task"], folder
        folder.mkdir()
        self.config = write_config(folder / "run.yaml", run, **changes)
        whole = folder / "whole"
        finish(self.task, self.words(whole), folder / "whole.txt")
        self.expected = read_run(whole)
        written = (whole / "checkpoints/last.ckpt").stat().st_mtime
        self.seconds = written - (whole / "config.yaml").stat().st_mtime

    def words(self, run: Path) -> list[str]:
        words = ["-c", str(self.config), "--run", str(run)]
        return [*words, "--ckpt_path", "last"] if any(run.glob("checkpoints/*.ckpt")) else words

    def killed(self, name: str, shares: list[float]) -> tuple[list[str], list[str]]:
        """Kill a run at these shares of the training's time, one attempt each, then finish it.

        Returns what the run had left at each kill, and how it differs from the whole run.
        """
        run, output, left = self.folder / name, self.folder / f"{name}.txt", []
        for share in shares:
            begun = (
                (run / "config.yaml").stat().st_mtime_ns if (run / "config.yaml").exists() else 0
            )
            process = start(self.task, self.words(run), output)
            while process.is_alive() and not has_begun(run, begun):
                time.sleep(0.005)
            process.join(share * self.seconds)
            if process.is_alive():
                os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            if process.exitcode == 0:
                left.append("finished before")
                break
            if process.exitcode != -signal.SIGKILL:
                return left, [f"exit code {process.exitcode}: {output.read_text()[-800:]}"]
            left.append(last_step(run))
        if left[-1] != "finished before":
            try:
                finish(self.task, self.words(run), output)
            except RuntimeError as error:
                return left, [str(error)]
        found = list(differences(read_run(run), self.expected))
        if not found:
            shutil.rmtree(run)
        return left, found


def has_begun(run: Path, before: int) -> bool:
    """Whether this attempt has written the config, behind which training begins."""
    file = run / "config.yaml"
    return file.exists() and file.stat().st_mtime_ns > before


def last_step(run: Path) -> str:
    file = run / "checkpoints/last.ckpt"
    if not file.exists():
        return "no last.ckpt"
    return f"step {torch.load(file, weights_only=True, mmap=True)['global_step']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(KINDS), help="kinds of runs")
    parser.add_argument("--folder", type=Path, default=None, help="keeps what differs")
    chosen = parser.parse_args()
    preload()
    draw, folder = random.Random(chosen.seed), chosen.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, Kind] = {}
    kills = failed = number = 0
    while kills < chosen.kills:
        name = chosen.only[number % len(chosen.only)]
        if name not in kinds:
            kinds[name] = Kind(name, folder / f"kind{number}")
        shares = [draw.random() for _ in range(draw.choice((1, 1, 2, 3)))]
        left, found = kinds[name].killed(f"run{number}", shares)
        kills += len([one for one in left if one != "finished before"])
        failed += bool(found)
        verdict = "equal" if not found else f"DIFFERS: {'; '.join(found[:6])}"
        print(
            f"{kills:3} {name}: killed at {', '.join(left) or 'its start'}: {verdict}", flush=True
        )
        number += 1
    print(f"{kills} kills in {number} runs, {failed} runs differ; what differs: {folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
