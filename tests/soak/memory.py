"""Trains the smallest run of each task for long: memory flat, no file, thread or process left.

    python tests/soak/memory.py --steps 20000 --only classifier

Resident memory is compared between the second quarter and the last one, each by its median: a
process may grow while it warms up. Prints a line per run; the exit code is 1 if one grew by more
than 2 % or left something behind.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import psutil
from lightning.pytorch import Callback, Trainer
from small_runs import CONFIGS, preload, start, write_config

ALLOWED = 0.02
POINTS = 400  # at which the process is measured


class Measure(Callback):
    """Writes memory, open files, threads and children of this process to a file, a line each."""

    def __init__(self, file: str, every: int):
        self.file, self.every, self.batches = Path(file), every, 0
        self.process = psutil.Process()

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.batches += 1
        if self.batches % self.every == 0:
            self.write()

    def write(self) -> None:
        row = {
            # Not that of this process alone, which grows while it writes to pages of its parent.
            "memory": self.process.memory_info().rss,
            "files": self.process.num_fds(),
            "threads": threading.active_count(),
            "children": len(self.process.children()),
        }
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")


def soak(name: str, steps: int, folder: Path) -> tuple[str, bool]:
    """Return a line on a run, and whether it is as it should be."""
    rows = folder / f"{name}.jsonl"
    callback = {
        "class_path": "memory.Measure",
        "init_args": {"file": str(rows), "every": max(1, steps // POINTS)},
    }
    config = write_config(
        folder / f"{name}.yaml", name, trainer__max_epochs=-1, trainer__max_steps=steps,
        trainer__log_every_n_steps=10, trainer__callbacks=[callback],
        trainer__check_val_every_n_epoch=max(1, steps // 200),
    )  # fmt: skip
    begun = time.monotonic()
    run = folder / name
    process = start(CONFIGS[name]["task"], ["-c", str(config), "--run", str(run)], folder / "out")
    process.join()
    if process.exitcode != 0:
        return f"{name}: exit code {process.exitcode}: {(folder / 'out').read_text()[-800:]}", False
    read = [json.loads(line) for line in rows.read_text().splitlines()]
    quarter = len(read) // 4
    parts = read[quarter : 2 * quarter], read[-quarter:]
    early, late = ({key: median(row[key] for row in part) for key in part[0]} for part in parts)
    growth = late["memory"] / early["memory"] - 1
    grown = [key for key in ("files", "threads", "children") if late[key] > early[key]]
    stray = sorted(path.name for path in run.rglob("*") if path.suffix in (".part", ".tmp"))
    line = (
        f"{name}: {steps} steps in {time.monotonic() - begun:.0f} s, memory"
        f" {early['memory'] / 2**20:.1f} -> {late['memory'] / 2**20:.1f} MiB ({growth:+.2%}),"
        f" files {early['files']:.0f} -> {late['files']:.0f}, threads {early['threads']:.0f} ->"
        f" {late['threads']:.0f}, processes {early['children']:.0f} -> {late['children']:.0f}"
        f"{', left: ' + ', '.join(stray) if stray else ''}"
    )
    return line, growth <= ALLOWED and not grown and not stray


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--only", nargs="*", default=list(CONFIGS), help="runs")
    chosen = parser.parse_args()
    preload()
    folder, good = Path(tempfile.mkdtemp()), True
    for name in chosen.only:
        line, flat = soak(name, chosen.steps, folder)
        print(line if flat else f"{line}  <- NOT FLAT", flush=True)
        good &= flat
    return 0 if good else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # configs name memory.Measure
    sys.exit(main())
