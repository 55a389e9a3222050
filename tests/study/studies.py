"""A study that takes seconds, and the command in a separate process with its imports done.

The processes come from multiprocessing's fork server: they start fresh, as from a shell, and can be
killed.
"""

import csv
import fcntl
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

BASE = """
task: classification
threads: 1
checkpoint_every_n_steps: 1
trainer:
  limit_train_batches: 3
  limit_val_batches: 1
  num_sanity_val_steps: 0
  accelerator: cpu
  log_every_n_steps: 1
data: {class_path: Digits, init_args: {image_size: 8, batch_size: 32}}
model:
  mixup: 0.2
  network:
    class_path: ResNet
    init_args: {depth: 8, width: 2, stem: cifar}
"""
STUDY = """
study:
  question: Does it survive?
  metric: val/top1
  baseline: none
  expect: [se > none]
  seeds: [0, 1]
  budget: {steps: 7}   # in the middle of the third epoch
base: base.yaml
axes:
  attention:
    none: {model.network.init_args.attention: torch.nn.Identity}
    se: {model.network.init_args.attention: {class_path: SqueezeExcite, init_args: {reduction: 1}}}
"""
ONE_SEED = ("seeds: [0, 1]", "seeds: [0]")


def write_study(folder: Path, *changes: tuple[str, str]) -> Path:
    """Write a study file and its base, with parts of the text replaced."""
    (folder / "base.yaml").write_text(BASE)
    text = STUDY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


def command(*words: object, output: Path, environment: dict[str, str] | None = None) -> BaseProcess:
    """Start `attention-vision study WORDS`; its output goes to the file `output`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["attention_vision.study.worker", "attention_vision.classification", "sklearn.datasets"]
    )
    arguments = [str(word) for word in words], str(output), environment or {}
    process = context.Process(target=call, args=arguments)
    process.start()
    return process


def call(arguments: list[str], output: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    stream = Path(output).open("w", buffering=1)  # noqa: SIM115 (for the rest of the process)
    sys.stdout = sys.stderr = stream
    for number in (1, 2):
        os.dup2(stream.fileno(), number)

    from attention_vision.__main__ import main

    sys.exit(main(["study", *arguments]))


def run(*words: object, output: Path) -> tuple[int, str]:
    """Run `attention-vision study run WORDS`; return its exit code and output."""
    process = command("run", *words, output=output)
    process.join()
    return process.exitcode, output.read_text()


def kill_when(process: BaseProcess, moment: Callable[[], bool], seconds: float = 120) -> None:
    """Send SIGKILL as soon as `moment()` is true, and wait for the end of the process."""
    end = time.monotonic() + seconds
    while not moment():
        assert process.is_alive(), "the process ended before the moment"
        assert time.monotonic() < end, "the moment did not come in time"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def workers_left(folder: Path) -> list[Path]:
    """Return the locks that are still held after some seconds."""
    end = time.monotonic() + 10
    while held := [lock for lock in folder.glob("cells/*/*/lock") if not free(lock)]:
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    return held


def free(lock: Path) -> bool:
    with lock.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def outcome(folder: Path) -> dict[str, tuple[dict, list]]:
    """Return metrics and curves by run, without those that depend on time."""
    outcomes = {}
    for run in sorted(folder.glob("cells/*/*")):
        with (run / "metrics.csv").open() as file:
            rows = [
                {key: cell for key, cell in row.items() if not key.endswith("_per_second")}
                for row in csv.DictReader(file)
            ]
        result = json.loads((run / "result.json").read_text())
        outcomes[f"{run.parent.name} {run.name}"] = result["metrics"], rows
    return outcomes


def attempts(folder: Path) -> dict[str, tuple[int, int]]:
    """Return by run: the number of starts, and how many of them resumed a checkpoint."""
    logs = {run: (run / "log.txt").read_text() for run in sorted(folder.glob("cells/*/*"))}
    return {
        f"{run.parent.name} {run.name}": (
            log.count("\nparameters: "),  # printed by fit, but not by the last validation
            log.count("Restored all states from the checkpoint"),
        )
        for run, log in logs.items()
    }
