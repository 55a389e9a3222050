"""What a training costs now against an older version: A B A B in one call, as a ratio.

    git worktree add /tmp/before COMMIT
    python tests/soak/cost.py /tmp/before --rounds 4 --steps 300

Each version trains the same small runs in processes of its own. The time of a round is that between
its first and last epoch, by the clock of the CPU, which other processes disturb least.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from lightning.pytorch import Callback, Trainer
from small_runs import CONFIGS, preload, start, write_config

HERE = Path(__file__).parents[2]
WARM = 20  # steps before the clock starts


class Clock(Callback):
    """Writes the seconds of CPU of the steps behind the first ones."""

    def __init__(self, file: str):
        self.file, self.steps = Path(file), 0

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.steps += 1
        if self.steps == WARM:
            self.begun = time.process_time()

    def on_train_end(self, trainer: Trainer, *_: object) -> None:
        self.file.write_text(str((time.process_time() - self.begun) / (self.steps - WARM)))


def one_round(names: list[str], steps: int) -> None:
    """Train each run once with the package of this process; print its seconds per step."""
    preload()
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "seconds")
            clock = {"class_path": "cost.Clock", "init_args": {"file": str(file)}}
            config = write_config(
                Path(folder, "run.yaml"), name, trainer__max_epochs=-1, trainer__max_steps=steps,
                trainer__callbacks=[clock], trainer__log_every_n_steps=10,
                trainer__limit_val_batches=0,
            )  # fmt: skip
            words = ["-c", str(config), "--run", str(Path(folder, "run"))]
            process = start(CONFIGS[name]["task"], words, Path(folder, "out"))
            process.join()
            if process.exitcode:
                sys.exit(Path(folder, "out").read_text()[-1000:])
            print(name, file.read_text(), flush=True)


def measured(package: Path, names: list[str], steps: int) -> dict[str, float]:
    """Return seconds per step by run, of the package in this folder."""
    command = [sys.executable, "-P", __file__, "--of", *names, "--steps", str(steps)]
    path = os.pathsep.join([str(package), str(Path(__file__).parent)])
    answer = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    if answer.returncode:
        sys.exit(f"{package}: {answer.stderr[-1500:]}")
    lines = [line.split() for line in answer.stdout.splitlines()]
    return {name: float(seconds) for name, seconds in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", nargs="?", type=Path, help="a worktree of the older version")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", nargs="*", default=["classifier", "detr", "sagan"])
    parser.add_argument("--of", nargs="*", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.of:
        one_round(chosen.of, chosen.steps)
        return
    ratios: dict[str, list[float]] = {name: [] for name in chosen.only}
    for _ in range(chosen.rounds):
        before = measured(chosen.before, chosen.only, chosen.steps)
        now = measured(HERE, chosen.only, chosen.steps)
        for name in chosen.only:
            ratios[name].append(now[name] / before[name])
            print(f"{name}: {1e3 * before[name]:.2f} -> {1e3 * now[name]:.2f} ms", flush=True)
    for name, found in ratios.items():
        print(f"{name}: {median(found):.3f} times as long, {min(found):.3f} to {max(found):.3f}")


if __name__ == "__main__":
    main()
