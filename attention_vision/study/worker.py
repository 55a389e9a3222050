"""What happens to one run of a study, in a process of its own: it trains, measures, writes."""

import csv
import fcntl
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from statistics import median
from typing import Any

import lightning
import torch
import torchvision
from lightning.pytorch import Callback, LightningModule, Trainer

from attention_vision import __version__
from attention_vision.errors import InputError, one_line
from attention_vision.profiling.cost import hardware
from attention_vision.runs.command import VERBS, Work, fit, prepare
from attention_vision.study.folder import Run, read_progress
from attention_vision.training.metrics_csv import MetricsCSV
from attention_vision.training.optim import horizon
from attention_vision.training.progress import quiet
from attention_vision.training.steps import step_number
from attention_vision.yaml_json import to_json, write_atomically

DONE, FAILED, NO_METRIC, ELSEWHERE = 0, 1, 3, 4  # exit codes of a worker


LEFT_BY_FIT = ("config.yaml", "metrics.csv", "checkpoints", "pictures", "validate.json")


class NoMetric(InputError):
    """The study's metric is none of the keys that a run logs."""


def prepare_run(run: Run, verb: str, words: list[str]) -> Work:
    """The command for a run of a study; training ends at once if it does not log the metric.

    Args:
        run: whose folder is trained in.
        verb: fit, validate or test.
        words: besides the config and the folder.
    """
    words = ["-c", str(run.config), "--run", str(run.folder), *words]
    return prepare(run.task, verb, words, [CheckMetric(run)] if verb == "fit" else [])


class CheckMetric(Callback):
    """Ends a run at its first validation, the sanity check included, if the metric is not there."""

    def __init__(self, run: Run):
        self.run = run

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        logged = sorted(key for key in trainer.callback_metrics if key.startswith("val/"))
        if logged and self.run.metric.startswith("val/") and self.run.metric not in logged:
            raise no_metric(self.run, logged)


def train(run: Run, cost: dict[str, int | None]) -> None:
    """Trains a run from its last checkpoint on, or from the start, and writes result.json.

    Args:
        cost: what is known of the cell, by result.json's names.

    Raises:
        NoMetric: the run does not log the study's metric.
    """
    quiet()
    last = run.folder / "checkpoints" / "last.ckpt"
    if not last.is_file():  # an attempt that was killed before its first checkpoint
        clear(run.folder)
    work = prepare_run(run, "fit", ["--ckpt_path", "last"] if last.is_file() else [])
    with keeping_time(run, work.trainer):
        fit(work)
        final = step_number(work.trainer) - 1
        step, metrics = last_validation(run.folder)
        if step != final:  # the run did not end with a validation
            metrics = measured(run, "validate", ["--ckpt_path", "last"])
            epoch = max(0, work.trainer.current_epoch - 1)
            MetricsCSV(str(run.folder)).log_metrics(metrics | {"epoch": epoch}, final)
        if run.metric.startswith("test/"):
            metrics |= measured(run, "test", [])
    if run.metric not in metrics:
        raise no_metric(run, metrics)
    cost = cost | {"images_per_second": images_per_second(run.folder)}
    if torch.cuda.is_initialized():
        cost["peak_memory"] = torch.cuda.max_memory_allocated()
    result = {
        "study": run.study,
        "cell": run.cell,
        "seed": run.seed,
        "config_sha256": run.sha256,
        "metrics": {key: finite(value) for key, value in metrics.items()},
        "seconds": read_progress(run)["seconds"],
        "cost": cost,
        "versions": versions(),
        "hardware": hardware(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomically(run.result, to_json(result))
    run.error.unlink(missing_ok=True)


def measured(run: Run, verb: str, arguments: list[str]) -> dict[str, float]:
    """The metrics that validate or test leave."""
    VERBS[verb](prepare_run(run, verb, arguments))
    return json.loads((run.folder / f"{verb}.json").read_text())["metrics"]


def last_validation(folder: Path) -> tuple[int, dict[str, float]]:
    """Step and metrics of the last row of metrics.csv that holds a validation; -1 without one."""
    step, metrics = -1, {}
    for row in rows(folder):
        if found := {key: float(cell) for key, cell in row.items() if key.startswith("val/")}:
            step, metrics = int(row["step"]), found
    return step, metrics


def images_per_second(folder: Path) -> float | None:
    """In training: the median of what was logged, without the first, slow one if there are more."""
    key = "train/images_per_second"
    rates = [float(row[key]) for row in rows(folder) if key in row]
    return median(rates[1:] or rates) if rates else None


def rows(folder: Path) -> list[dict[str, str]]:
    """Of metrics.csv, without empty cells."""
    file = folder / "metrics.csv"
    if not file.is_file():
        return []
    with file.open(newline="") as stream:
        return [{key: cell for key, cell in row.items() if cell} for row in csv.DictReader(stream)]


def no_metric(run: Run, logged: Iterable[str]) -> NoMetric:
    near = get_close_matches(run.metric, list(logged), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return NoMetric(
        f"study.metric {run.metric} is logged by no run: {hint}{run} logs {', '.join(logged)}"
    )


def finite(value: float) -> float | None:
    """JSON has no word for what is no number."""
    return value if math.isfinite(value) else None


def clear(folder: Path) -> None:
    """Removes what an attempt left that cannot go on."""
    for name in LEFT_BY_FIT:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    return {
        "attention_vision": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "lightning": lightning.__version__,
    }


def facts() -> dict[str, Any]:
    """Where and with what a study is run."""
    return {"versions": versions(), "hardware": hardware(), "commit": commit()}


def commit() -> str | None:
    """Of the repository that holds this package; None where there is none."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() or None


@contextmanager
def keeping_time(run: Run, trainer: Trainer) -> Iterator[None]:
    """Writes progress.json every second, so that also a killed attempt counts."""
    ended, start = threading.Event(), time.monotonic()
    before = read_progress(run)["seconds"]

    def write() -> None:
        seconds = before + time.monotonic() - start
        progress = {"seconds": round(seconds, 3), "share": share(trainer)}
        write_atomically(run.progress, json.dumps(progress))

    def keep() -> None:
        while not ended.wait(1):
            write()

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write()


def share(trainer: Trainer) -> float:
    """Of the run that is done; 0 where its length is not known (yet)."""
    try:
        total, _ = horizon(trainer)
        return min(1.0, round(step_number(trainer) / total, 4))
    except (InputError, OverflowError, ValueError, ZeroDivisionError):
        return 0.0


def main(run: Run, cost: dict[str, int | None], environment: dict[str, str]) -> int:
    """A worker's whole life; returns its exit code. Its output goes to log.txt.

    Args:
        cost: see `train`.
        environment: variables of this worker alone, such as its GPU.
    """
    os.environ.update(environment)
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "lock").open("w") as lock:
        # A lock of the process, not of the file's handle: loaders that it forks do not hold it.
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return ELSEWHERE
        if run.result.is_file():
            return DONE
        to_log(run.folder / "log.txt")
        try:
            train(run, cost)
        except BaseException as error:
            traceback.print_exc()
            text = traceback.format_exc()
            if isinstance(error, InputError):
                text = f"{one_line(error)}\n"
            write_atomically(run.error, text)
            return NO_METRIC if isinstance(error, NoMetric) else FAILED
        finally:
            if "wandb" in sys.modules:
                sys.modules["wandb"].finish()  # a forked process ends without the hooks of exit
            sys.stdout.flush()
    return DONE


def to_log(file: Path) -> None:
    """From here on, what this process and its children print is appended to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    stream = file.open("a", buffering=1)
    for number in (1, 2):
        os.dup2(stream.fileno(), number)
    sys.stdout = sys.stderr = stream


def forked(run: Run, cost: dict[str, int | None], environment: dict[str, str], parent: int) -> None:
    """The process that `runner` forks: `main` in a group of its own, which dies with its parent."""
    os.setpgrp()  # Ctrl-C is for the runner, which then ends the whole group
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()
    sys.exit(main(run, cost, environment))
