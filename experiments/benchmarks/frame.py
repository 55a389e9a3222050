"""Compare a step of ours with the peers' in turns: the frame of all benchmarks.

A benchmark is a file beside this one with a function `rows`, and takes its command line from here:

    def rows(device: str, smoke: bool) -> Iterator[Row]:
        images = torch.randn(2, 3, 224, 224, device=device)
        ours, peer = partial(build_ours, images), partial(build_peer, images)
        yield Row("SE-ResNet-50", [
            Side("ours", ours, "eager"), Side("ours", partial(ours, compiled=True), "compiled"),
            Side("timm", peer, "eager"), Side("timm", partial(peer, compiled=True), "compiled"),
        ], images=2, flops=training_flops(network, images), targets={"timm": 1.25})

    if __name__ == "__main__":
        main(rows)

`build()` returns the step, a function without arguments that does the whole work once. All sides
of a row live in one process, share data, dtype and threads, and take turns, forwards and backwards
(A B, B A, ...), so that whatever else slows the machine down slows them all. A side may have
several variants, such as eager and compiled: each side's fastest one is compared. A ratio is the
peer's time divided by ours, turn by turn: the median with its quartiles; above 1 ours is faster.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from attention_vision.profiling.cost import Workload, growth, hardware, macs

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments/results"
PACKAGES = (
    "torch", "torchvision", "lightning", "torchmetrics", "timm", "transformers", "pycocotools",
    "torch-fidelity", "numpy", "scipy", "pillow", "simplejpeg", "triton",
)  # fmt: skip
DATASHEET = {  # dense bf16 FLOP/s
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H200": 989.4e12,
}


def processor_time() -> float:
    """Seconds of all threads of this process and of the child processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


CLOCKS = {"wall": time.perf_counter, "cpu": processor_time}

Step = Callable[[], object]


@dataclass(frozen=True)
class Side:
    """One contestant of a row.

    Args:
        who: "ours", or the name of the peer.
        build: returns the step; called once, before the turns begin.
        variant: how it is run, where there are several ways; the fastest one of each `who` counts.
    """

    who: str
    build: Callable[[], Step]
    variant: str = ""


@dataclass(frozen=True)
class Row:
    """Several ways to do the same work.

    Args:
        name: title in the tables.
        sides: those of the first `who` are ours.
        images: per step, for a rate; `unit` names what else is counted.
        flops: of one step; the share of the measured rate of matrix products follows from it.
        targets: the wanted ratio by peer.
        memory: whether to measure what a step allocates: torch's tensors alone are seen.
        turns: at most as many turns, where one takes long; by default those of the command.
        note: what a reader has to know.
    """

    name: str
    sides: Sequence[Side]
    images: int | None = None
    unit: str = "images"
    flops: float | None = None
    targets: Mapping[str, float] = field(default_factory=dict)
    memory: bool = True
    turns: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Conditions:
    """How rows are measured.

    Args:
        device: "cpu" or "cuda".
        clock: "wall", or "cpu": see `processor_time`, which other programs lengthen less.
        turns: number of turns of each row.
        seconds: the shortest time that a turn of one side takes.
        matrix_rate: measured FLOP/s of matrix products, see `matrix_rate`.
    """

    device: str = "cpu"
    clock: str = "wall"
    turns: int = 7
    seconds: float = 0.1
    matrix_rate: float | None = None


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(step: Step, repeats: int, conditions: Conditions) -> float:
    """Return the duration of one step, until the device has finished."""
    clock = CLOCKS[conditions.clock]
    synchronize(conditions.device)
    start = clock()
    for _ in range(repeats):
        step()
    synchronize(conditions.device)
    return (clock() - start) / repeats


def matrix_rate(conditions: Conditions, smoke: bool = False) -> float:
    """Measure the FLOP/s of a product of square matrices: float32 on a CPU, bf16 on a GPU."""
    on_gpu = conditions.device == "cuda"
    n = 128 if smoke else 8192 if on_gpu else 1024
    dtype = torch.bfloat16 if on_gpu else torch.float32
    a, b = (torch.randn(n, n, device=conditions.device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * n**3 / median(seconds_of(lambda: a @ b, 5, conditions) for _ in range(7))


def training_flops(network: nn.Module, *batch: Tensor) -> float:
    """Count the FLOPs of a training step: 2 per multiply-add, backward twice the forward pass."""
    return 6.0 * len(batch[0]) * macs(Workload.of_network("", network, *batch))


def fresh(device: str) -> None:
    """Forget compiled code and cached memory of earlier rows."""
    gc.collect()
    torch.compiler.reset()
    if device == "cuda":
        torch.cuda.empty_cache()


def measure(row: Row, conditions: Conditions) -> dict:
    """Build all sides of a row, let them take turns, and compare them; for a JSON file."""
    device = conditions.device
    fresh(device)
    steps, facts = [], []
    for side in row.sides:
        held = torch.cuda.memory_allocated() if device == "cuda" else 0
        start = time.perf_counter()
        step = side.build()
        step()  # compiles
        synchronize(device)
        found: dict = {"who": side.who, "variant": side.variant}
        found["first_seconds"] = time.perf_counter() - start
        if row.memory:
            found["memory"] = growth(step, torch.device(device))
            if device == "cuda":  # weights, gradients and states of the optimizer included
                found["peak_memory"] = torch.cuda.max_memory_allocated() - held
        steps.append(step)
        facts.append(found)
    shortest = conditions.seconds
    repeats = [max(1, round(shortest / seconds_of(step, 1, conditions))) for step in steps]
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(min(row.turns or conditions.turns, conditions.turns)):
        order = range(len(steps)) if turn % 2 == 0 else reversed(range(len(steps)))
        for number in order:
            times[number].append(seconds_of(steps[number], repeats[number], conditions))
    for step, found, taken in zip(steps, facts, times, strict=True):
        found |= {"seconds": median(taken), "turns": taken}
        if row.images:
            found["per_second"] = row.images / median(taken)
        if row.flops:
            rate = row.flops / median(taken)
            if conditions.matrix_rate:
                found["matrix_share"] = rate / conditions.matrix_rate
            if device == "cuda" and (sheet := DATASHEET.get(torch.cuda.get_device_name())):
                found["datasheet_share"] = rate / sheet
        if device == "cuda":
            found["gpu_busy"], found["kernels"] = busy(step, median(taken))
    return {
        "name": row.name, "unit": row.unit, "images": row.images, "flops": row.flops,
        "note": row.note, "sides": facts, "against": list(comparisons(row, facts)),
    }  # fmt: skip


def comparisons(row: Row, facts: Sequence[dict]) -> Iterator[dict]:
    """Compare the fastest variant of ours with the fastest one of each peer."""
    best: dict[str, dict] = {}
    for one in facts:
        if one["who"] not in best or one["seconds"] < best[one["who"]]["seconds"]:
            best[one["who"]] = one
    mine, *peers = best.values()
    for peer in peers:
        ratios = [b / a for a, b in zip(mine["turns"], peer["turns"], strict=True)]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
        found = {"peer": peer["who"], "ours": mine["variant"], "theirs": peer["variant"]}
        found |= {"ratio": median(ratios), "low": low, "high": high}
        if mine.get("memory") and peer.get("memory"):
            found["memory_ratio"] = mine["memory"] / peer["memory"]
        if peer["who"] in row.targets:
            found["target"] = row.targets[peer["who"]]
        yield found


def busy(step: Step, wall: float, steps: int = 3) -> tuple[float, list[list]]:
    """Measure the share of a step in which a kernel runs, and list the longest kernels.

    Returns:
        The share, and rows of (name, share of the busy time, launches a step), the first of them
        for all kernels together.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    events = [
        event for event in record.key_averages()
        if event.self_device_time_total > 0 and "Optimizer" not in event.key
    ]  # fmt: skip
    total = sum(event.self_device_time_total for event in events)  # microseconds
    events.sort(key=lambda event: -event.self_device_time_total)
    count = sum(event.count for event in events) // steps
    longest = [
        [event.key[:120], round(event.self_device_time_total / total, 4), event.count // steps]
        for event in events[:12]
    ]
    return total * 1e-6 / steps / wall, [["all", 1.0, count], *longest]


# Texts


def lines_of(row: dict) -> list[str]:
    """Format a measured row: a line for each side, and one for each comparison."""
    if "error" in row:
        return [f"{row['name']}: FAILED: {row['error'].strip().splitlines()[-1][:300]}"]
    lines = []
    for side in row["sides"]:
        text = f"{row['name']:<34}{title(side['who'], side['variant']):<34}"
        text += f"{1e3 * side['seconds']:>11.2f} ms"
        if "per_second" in side:
            text += f"{side['per_second']:>10,.1f} {row['unit']}/s"
        if "memory" in side:
            text += f"{side['memory'] / 2**20:>10,.1f} MiB"
        if "matrix_share" in side:
            text += f"{side['matrix_share']:>7.1%} of matrix rate"
        if "gpu_busy" in side:
            text += f"{side['gpu_busy']:>6.0%} busy, {side['kernels'][0][2]} kernels"
        lines.append(text)
    return lines + [comparison_text(row["name"], one) for one in row["against"]]


def title(who: str, variant: str) -> str:
    return f"{who}, {variant}" if variant else who


def comparison_text(name: str, one: dict) -> str:
    text = f"{name}: {title('ours', one['ours'])} is {one['ratio']:.2f} times as fast as"
    text += f" {title(one['peer'], one['theirs'])}, quartiles {one['low']:.2f}-{one['high']:.2f}"
    if "target" in one:
        met = "met" if one["ratio"] >= one["target"] else "missed"
        text += f"; target {one['target']:g} {met}"
    return text


# The file


def environment(device: str) -> dict:
    """Return hardware, versions, commit, date and command of a measurement."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device == "cuda":
        query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        more = {"driver": output_of(*query), "cuda": torch.version.cuda}
        more["cudnn"] = str(torch.backends.cudnn.version())
        versions |= {name: version for name, version in more.items() if version}
    script = Path(sys.argv[0]).resolve()
    words = [str(script.relative_to(ROOT)) if ROOT in script.parents else script.name]
    return {
        "command": [shlex.join(["python", *words, *sys.argv[1:]])],
        "commit": output_of("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "date": f"{date.today()}",
        "hardware": hardware(torch.device(device)),
        "versions": versions,
    }


def output_of(*command: str) -> str | None:
    """Return what a command prints, or None where it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def write_json(file: Path, content: dict) -> None:
    """Write a JSON file that is whole at any moment."""
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(beside, file)


def main(rows: Callable[[str, bool], Iterator[Row]]) -> None:
    """Measure the rows of a benchmark by its command line, print them, and write the file.

    `experiments/results/bench_NAME.json`, NAME that of the script; rows of an earlier file that
    `--only` leaves out stay in it, with their commit, command and date.
    """
    script = Path(sys.argv[0])
    parser = argparse.ArgumentParser(description=f"Ratios to peers: {script.stem}.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of torch")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall",
        help="cpu: processor time, for one thread on a machine that is busy",
    )  # fmt: skip
    parser.add_argument("--turns", type=int, default=7, metavar="N")
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose name matches")
    parser.add_argument("--smoke", action="store_true", help="toy sizes; writes no file")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="in place of the results'")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    plain = Conditions(options.device, options.clock, options.turns)
    rate = matrix_rate(plain, options.smoke)
    turns, shortest = (1, 0.0) if options.smoke else (options.turns, plain.seconds)
    conditions = Conditions(options.device, options.clock, turns, shortest, rate)
    folder = options.out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)  # now, not when all is measured
    file = folder / f"bench_{script.stem}.json"
    content = {
        "what": {
            "title": f"Time and memory against peers: {script.stem}",
            "experiment": f"experiments/benchmarks/{script.name}",
            "data": "random, or named in the row",
        },
        **environment(options.device),
        "conditions": {
            "device": options.device, "threads": options.threads, "clock": options.clock,
            "precision": "bf16 autocast" if options.device == "cuda" else "float32",
            "matrix_rate": rate, "load": os.getloadavg()[0],  # of one minute, before the first row
        },
        "rows": [],
    }  # fmt: skip
    kept = []
    if options.only and file.is_file():
        earlier = json.loads(file.read_text())
        of_then = {key: earlier[key] for key in ("commit", "command", "date")}
        kept = [of_then | row for row in earlier["rows"] if not chosen(row["name"], options)]
    print(f"{content['hardware']}; matrix products {rate / 1e9:,.0f} GFLOP/s")
    for row in rows(options.device, options.smoke):
        if not chosen(row.name, options):
            continue
        try:
            measured = measure(row, conditions)
        except Exception:
            measured = {"name": row.name, "error": traceback.format_exc()}
        content["rows"].append(measured)
        print("\n".join(lines_of(measured)), flush=True)
        if options.out or not options.smoke:
            write_json(file, content | {"rows": [*kept, *content["rows"]]})
    if failed := [row["name"] for row in content["rows"] if "error" in row]:
        print("\n".join(row["error"] for row in content["rows"] if "error" in row))
        sys.exit(f"failed: {', '.join(failed)}")


def chosen(name: str, options: argparse.Namespace) -> bool:
    return bool(re.search(options.only, name))
