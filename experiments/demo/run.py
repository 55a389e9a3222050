"""The demo: classify digits, find them in scenes, draw new ones; tables and pictures at the end.

python experiments/demo/run.py runs/demo

Fits that do not wait for each other run side by side, one for each core and with one thread, and
what they print is prefixed with their names. If one fails, or at Ctrl-C, all end.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Thread

import report
from tabulate import tabulate

CONFIGS = Path(__file__).parent
LAST = 15  # lines of a failed job that are shown again


@dataclass(frozen=True)
class Job:
    """A command of the demo.

    Attributes:
        name: prefix of each line that it prints.
        what: it does, in a few words.
        seconds: it takes about, on one slow core.
        words: the command.
        after: names of the jobs whose results it needs.
    """

    name: str
    what: str
    seconds: int
    words: Sequence[str]
    after: tuple[str, ...] = ()


class JobError(Exception):
    """A job has failed; the message contains its last lines."""


def demo(folder: Path) -> list[Job]:
    """Commands of the demo; of those that could start, the first one does."""
    classifier = folder / "se_resnet_digits"
    configs = [CONFIGS / f"{run}.yaml" for run in report.RUNS]
    costs = ["--threads", 1, "--batch_size", 64, "--csv", folder / report.COSTS, *configs]

    def command(*words: object) -> list[str]:
        return [sys.executable, "-m", "attention_vision", *map(str, words)]

    def fit(task: str, run: str, *words: object) -> list[str]:
        return command(task, "fit", "-c", CONFIGS / f"{run}.yaml", "--run", folder / run, *words)

    return [
        Job(
            "se_resnet_digits", "train SE-ResNet-8 to classify digits", 55,
            fit("classification", "se_resnet_digits"),
        ),
        Job(
            "vit_digits", "train ViT to classify digits", 65,
            fit("classification", "vit_digits"),
        ),
        Job(
            "detr_digits", "train DETR to find digits in scenes, from the SE-ResNet's weights",
            170,
            fit("detection", "detr_digits", "--model.backbone_weights", classifier),
            ("se_resnet_digits",),
        ),
        Job(
            "deformable_detr_digits", "train Deformable DETR on the scenes, as many seconds",
            170,
            fit("detection", "deformable_detr_digits", "--model.backbone_weights", classifier),
            ("se_resnet_digits",),
        ),
        Job(
            "costs", "measure size and speed of the networks", 10,
            command("profile", *costs),
            ("vit_digits",),
        ),
        Job(
            "sagan_digits", "train SAGAN to draw digits, which the SE-ResNet judges",
            100,
            fit("generation", "sagan_digits", "--model.scorer.run", classifier),
            ("se_resnet_digits",),
        ),
        Job(
            "attention", "draw where SAGAN's generator looked", 10,
            command("explain", folder / "sagan_digits", "--count", 10),
            ("sagan_digits",),
        ),
    ]  # fmt: skip


def run(
    jobs: Sequence[Job], cores: int, finished: Callable[[str], object] = lambda name: None
) -> None:
    """Run all jobs, one on each core; call `finished` with the name of each that has ended.

    Raises:
        JobError: a job has failed; the others were stopped.
    """
    width = max(len(job.name) for job in jobs)
    ended: Queue[tuple[Job, int, deque[str]]] = Queue()
    waiting, done = list(jobs), set[str]()
    processes: dict[str, subprocess.Popen[str]] = {}

    def follow(job: Job, process: subprocess.Popen[str]) -> None:
        last: deque[str] = deque(maxlen=LAST)
        for text in process.stdout or ():
            last.append(text)
            print(f"{job.name:<{width}} | {text}", end="", flush=True)
        ended.put((job, process.wait(), last))

    try:
        while waiting or processes:
            ready = [job for job in waiting if done.issuperset(job.after)]
            for job in ready[: cores - len(processes)]:
                waiting.remove(job)
                processes[job.name] = process = subprocess.Popen(
                    job.words,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                )
                Thread(target=follow, args=(job, process), daemon=True).start()
            job, code, last = ended.get()
            del processes[job.name]
            if code:
                raise JobError(f"{job.name} failed, exit code {code}:\n{''.join(last)}")
            done.add(job.name)
            finished(job.name)
    finally:
        stop(processes.values())


def stop(processes: Iterable[subprocess.Popen[str]]) -> None:
    """End processes, those that do not listen after five seconds by force."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()


def plan(jobs: Sequence[Job], cores: int) -> str:
    """Table of the jobs with their times, and how long all of them take."""
    rows = [(job.name, job.what, f"{job.seconds} s") for job in jobs]
    how = "side by side" if cores > 1 else "one after the other"
    head = f"{len(jobs)} commands, {how}, about {duration(jobs, cores) / 60:.1f} minutes in all:"
    return f"{head}\n\n{tabulate(rows, tablefmt='plain')}\n"


def duration(jobs: Sequence[Job], cores: int) -> float:
    """Seconds until the last job ends, as `run` starts them."""
    ends: dict[str, float] = {}
    waiting, now, running = list(jobs), 0.0, dict[str, float]()
    while waiting or running:
        ready = [job for job in waiting if ends.keys() >= set(job.after)]
        for job in ready[: cores - len(running)]:
            waiting.remove(job)
            running[job.name] = now + job.seconds
        first = min(running, key=running.__getitem__)
        now = ends[first] = running.pop(first)
    return now


def main(folder: Path) -> int:
    """Run the demo and return its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of `finally`, as Ctrl-C
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start, jobs = time.monotonic(), demo(folder)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(plan(jobs, cores or 1), flush=True)
    done: list[str] = []
    pictures: list[Path] = []

    def finished(name: str) -> None:
        done.append(name)
        seconds = time.monotonic() - start
        print(f"{name} finished, {seconds:.0f} s after the start", flush=True)
        for file in report.write(folder, done):
            if file not in pictures:
                pictures.append(file)
                print(f"a picture: {file}", flush=True)

    try:
        run(jobs, cores or 1, finished)
    except JobError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    print(f"\n{report.text(folder, done)}\nall of it on one page: {folder / report.PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
