"""Worker process of one run of a study: trains, evaluates and writes result.json."""

import csv
import fcntl
import json
import math
import os
import shutil
import signal
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

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from attention_vision.config.trust import trusting
from attention_vision.data.loading import TaskData
from attention_vision.errors import InputError, one_line
from attention_vision.identity import code
from attention_vision.profiling.cost import hardware
from attention_vision.report.consistency import not_finite
from attention_vision.runs.command import Work, evaluate, fit, prepare
from attention_vision.runs.resume import in_words
from attention_vision.study.definition import is_of_training
from attention_vision.study.exit_code import ExitCode
from attention_vision.study.folder import (
    Run,
    config_sha256,
    finished_result,
    read_progress,
    read_result,
)
from attention_vision.training.changes import ApplyChanges
from attention_vision.training.metrics_csv import MetricsCSV
from attention_vision.training.pace import finished_share
from attention_vision.training.progress import quiet
from attention_vision.training.steps import step_number
from attention_vision.yaml_json import to_json, write_atomically

LEFT_BY_FIT = ("config.yaml", "metrics.csv", "checkpoints", "pictures", "validate.json")


class NotFinite(InputError):
    """The run has diverged: a failed run, which has no result."""


class NoMetric(InputError):
    """The run does not log the study's metric."""


def prepare_run(run: Run, verb: str, words: list[str]) -> Work:
    """Prepare the command of a run; `fit` stops early if the metric is not logged.

    Args:
        run: the run; its folder is the run folder of the command.
        verb: fit, validate or test.
        words: arguments besides the config and the folder.
    """
    words = ["-c", str(run.config), "--run", str(run.folder), *words]
    callbacks = [CheckMetric(run)] if verb == "fit" else []
    # The cell is the whole question: no flag of a `fit` by hand holds on.
    return prepare(run.task, verb, words, callbacks, hold_on=False)


class CheckMetric(Callback):
    """Stops a run at its first validation (or sanity check) if the metric is not logged."""

    def __init__(self, run: Run):
        self.run = run

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        logged = sorted(key for key in trainer.callback_metrics if key.startswith("val/"))
        if logged and self.run.metric.startswith("val/") and self.run.metric not in logged:
            raise no_metric_error(self.run, logged)


@trusting()  # a study is trained, as by fit
def train(run: Run, cost: dict[str, Any]) -> None:
    """Train a run from its last checkpoint or from the start, and write result.json.

    Args:
        run: the run.
        cost: costs of the cell that are known before training, by their keys in result.json.

    Raises:
        NoMetric: the run does not log the study's metric.
        NotFinite: the metric, or a loss, is not finite in the end.
    """
    quiet()
    if config_sha256(run) != run.sha256:
        raise InputError(f"{run.config} has another configuration by now: run the study again")
    last = run.folder / "checkpoints" / "last.ckpt"
    earlier = read_result(run)
    if earlier is not None and not_finite(earlier["metrics"], run.metric):
        put_away(last.parent)  # version 0.1 took it for a result
    if not last.is_file():  # the attempt was killed before its first checkpoint
        remove_attempt(run.folder)
    work = prepare_run(run, "fit", ["--ckpt_path", "last"] if last.is_file() else [])
    refuse_another_training(run, work)
    with tracked_progress(run, work.trainer):
        fit(work)
        final = step_number(work.trainer) - 1
        step, metrics = last_validation(run.folder)
        if step != final:  # the run did not end with a validation
            metrics = evaluated_metrics(run, "validate", ["--ckpt_path", "last"])
            epoch = max(0, work.trainer.current_epoch - 1)
            MetricsCSV(str(run.folder)).log_metrics(metrics | {"epoch": epoch}, final)
        if run.metric.startswith("test/"):
            metrics |= evaluated_metrics(run, "test", [])
    if run.metric not in metrics:
        raise no_metric_error(run, metrics)
    if key := not_finite(metrics, run.metric):
        put_away(last.parent)
        raise NotFinite(f"{key} is not finite behind step {final}: the run has diverged")
    cost = cost | {"images_per_second": images_per_second(run.folder)}
    if torch.cuda.is_initialized():
        cost["peak_memory"] = torch.cuda.max_memory_allocated()
    data = work.objects.data
    result = {
        "study": run.study,
        "cell": run.cell,
        "seed": run.seed,
        "config_sha256": run.sha256,
        "metrics": {key: finite_or_none(value) for key, value in metrics.items()},
        "seconds": read_progress(run)["seconds"],
        "cost": cost,
        "data": data.fingerprint() if isinstance(data, TaskData) else {},
        **facts(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomically(run.result, to_json(result))
    run.error.unlink(missing_ok=True)


def refuse_another_training(run: Run, work: Work) -> None:
    """Refuse a checkpoint that `fit` trained on with other arguments than the cell has.

    Raises:
        InputError: it is not a checkpoint of the cell.
    """
    callbacks: list[Callback] = work.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] set from afar
    changes = next((one.changes for one in callbacks if isinstance(one, ApplyChanges)), {})
    changes = {key: one for key, one in changes.items() if is_of_training(key)}
    for line in in_words(changes):
        work.run.close()
        what = line.removeprefix("changed on resume: ")
        raise InputError(
            f"{run.folder} was trained on outside of the study ({what} in it): move it away, then"
            f" {run} is run again"
        )


def evaluated_metrics(run: Run, verb: str, arguments: list[str]) -> dict[str, float]:
    """Run validate or test, and return its metrics."""
    evaluate(prepare_run(run, verb, arguments))
    return json.loads((run.folder / f"{verb}.json").read_text())["metrics"]


def last_validation(folder: Path) -> tuple[int, dict[str, float]]:
    """Return step and metrics of the last validation in metrics.csv; step -1 without one."""
    step, metrics = -1, {}
    for row in read_rows(folder):
        if found := {key: float(cell) for key, cell in row.items() if key.startswith("val/")}:
            step, metrics = int(row["step"]), found
    return step, metrics


def images_per_second(folder: Path) -> float | None:
    """Return the median training throughput, without the first (slow) value if there are more."""
    key = "train/images_per_second"
    rates = [float(row[key]) for row in read_rows(folder) if key in row]
    return median(rates[1:] or rates) if rates else None


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Read the rows of metrics.csv, without empty cells."""
    file = folder / "metrics.csv"
    if not file.is_file():
        return []
    with file.open(newline="") as stream:
        return [{key: cell for key, cell in row.items() if cell} for row in csv.DictReader(stream)]


def no_metric_error(run: Run, logged: Iterable[str]) -> NoMetric:
    """Build the error that suggests the most similar logged key."""
    logged = list(logged)
    near = get_close_matches(run.metric, logged, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    several = ", ".join(key for key in logged if "_of/" not in key)  # those of each class are many
    return NoMetric(f"no run logs study.metric {run.metric}: {hint}{run} logs {several}")


def finite_or_none(value: float) -> float | None:
    """Return None for NaN and infinity, which JSON cannot represent."""
    return value if math.isfinite(value) else None


def remove_attempt(folder: Path) -> None:
    """Remove the files of an attempt that cannot be resumed."""
    for name in LEFT_BY_FIT:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def put_away(checkpoints: Path) -> None:
    """Rename the checkpoints of a run that has diverged, so that the next attempt starts anew."""
    place = checkpoints.with_name("checkpoints_diverged")
    if checkpoints.is_dir():
        shutil.rmtree(place, ignore_errors=True)
        checkpoints.rename(place)


def facts() -> dict[str, Any]:
    """Return versions, hardware and commit, as study.json records them."""
    versions = dict(code())
    return {"commit": versions.pop("commit", None), "versions": versions, "hardware": hardware()}


@contextmanager
def tracked_progress(run: Run, trainer: Trainer) -> Iterator[None]:
    """Write progress.json every second inside, so that the time of a killed attempt counts."""
    ended, start = threading.Event(), time.monotonic()
    before = read_progress(run)["seconds"]

    def write() -> None:
        seconds = before + time.monotonic() - start
        progress = {"seconds": round(seconds, 3), "share": round(finished_share(trainer) or 0, 4)}
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


def run_worker(run: Run, cost: dict[str, Any], environment: dict[str, str]) -> ExitCode:
    """Train a run with its output in log.txt, unless it is finished or another worker holds it.

    Args:
        run: the run.
        cost: see `train`.
        environment: environment variables of this worker only, such as its GPU.
    """
    os.environ.update(environment)
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "lock").open("w") as lock:
        # A lock of the process, not of the file handle: its forked data loaders do not inherit it.
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return ExitCode.LOCKED
        if finished_result(run) is not None:
            return ExitCode.FINISHED
        redirect_output(run.folder / "log.txt")
        try:
            train(run, cost)
        except BaseException as error:
            traceback.print_exc()
            text = traceback.format_exc()
            if isinstance(error, InputError):
                text = f"{one_line(error)}\n"
            write_atomically(run.error, text)
            return ExitCode.NO_METRIC if isinstance(error, NoMetric) else ExitCode.FAILED
        finally:
            if "wandb" in sys.modules:
                sys.modules["wandb"].finish()  # atexit hooks do not run in a forked process
            sys.stdout.flush()
    return ExitCode.FINISHED


def redirect_output(file: Path) -> None:
    """Append the output of this process and its children to a file from now on."""
    sys.stdout.flush()
    sys.stderr.flush()
    stream = file.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
    for number in (1, 2):
        os.dup2(stream.fileno(), number)
    sys.stdout = sys.stderr = stream


def worker_process(
    run: Run, cost: dict[str, Any], environment: dict[str, str], parent: int
) -> None:
    """Entry point of a forked worker, in its own process group, which ends with its parent.

    Args:
        run: the run.
        cost: see `train`.
        environment: see `run_worker`.
        parent: process id of the runner.
    """
    end_with(parent)
    sys.exit(run_worker(run, cost, environment))


def end_with(parent: int) -> None:
    """Make this process the leader of a group, which ends with its parent, by process id."""
    os.setpgrp()  # Ctrl-C reaches the runner only, which then ends the whole group
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()
