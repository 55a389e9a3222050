"""Everything of this project that needs a GPU, checked and timed within a budget of minutes.

    python experiments/gpu/run.py --minutes 8 --out runs/gpu             # one GPU
    python experiments/gpu/run.py --minutes 8 --out runs/gpu             # again: goes on
    python experiments/gpu/run.py --minutes 9 --out runs/gpu_smoke --smoke   # toy sizes, on a CPU

Parts are worked through in the order of `CHECKS` and `TIMED`. Each one leaves NAME.json in the
folder as soon as it has something; finished parts are skipped when the command is given again. The
checks run side by side and time nothing that is reported as a speed; what is timed has the machine
for itself. A part that fails, or takes a whole process with it, is recorded with its traceback.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
for path in (ROOT, FOLDER, ROOT / "tests", ROOT / "tests" / "attention"):
    sys.path.insert(0, str(path))

PACKAGES = (
    "torch", "torchvision", "lightning", "torchmetrics", "triton", "timm", "transformers",
    "pycocotools", "numpy",
)  # fmt: skip

CHECKS = ("mechanisms", "networks", "training", "fits")  # each in a process of its own
TIMED = (
    "ceilings", "vit_b16", "resnet50", "se_resnet50", "detr_r50", "swin_t", "deit_s16", "sagan32",
    "matching", "vit_b16_compiled", "se_resnet50_compiled", "small", "swin_t_compiled",
    "detr_r50_compiled", "layers", "resnet50_compiled", "deit_s16_compiled",
)  # fmt: skip
OWNERS = {
    "mechanisms": "correctness", "networks": "correctness", "training": "training", "fits": "fits",
}  # fmt: skip
CHECKS_SHARE = 0.45  # of the minutes, at most, while parts that are timed wait


class Part:
    """A part at work: its settings, and the file that its result goes to."""

    def __init__(self, name: str, out: Path, smoke: bool, until: float, commit: str | None):
        self.name, self.out, self.smoke, self.until = name, out, smoke, until
        self.file = out / f"{name}.json"
        self.start = time.time()
        self.content = environment(commit) | {"part": name, "smoke": smoke}

    @property
    def device(self) -> str:
        return "cpu" if self.smoke else "cuda"

    @property
    def left(self) -> float:
        """Seconds until the budget is spent."""
        return self.until - time.time()

    def save(self, finished: bool = False, **content: object) -> None:
        """Writes what there is; the file is whole at any moment."""
        self.content |= content
        self.content |= {"finished": finished, "seconds": round(time.time() - self.start, 1)}
        beside = self.file.with_suffix(".part")
        beside.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(beside, self.file)


def environment(commit: str | None) -> dict[str, object]:
    """Hardware, versions, commit and command, as every result states them."""
    import torch

    from attention_vision.profiling.cost import hardware

    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    found = output_of("git", "-C", str(ROOT), "rev-parse", "HEAD")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        versions["driver"] = output_of(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
        versions["cudnn"] = torch.backends.cudnn.version()
    return {
        "command": os.environ.get("GPU_COMMAND", shlex.join(["python", *sys.argv])),
        "commit": commit or found,
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(device),
        "versions": versions,
    }


def output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def work(names: Sequence[str], options: argparse.Namespace) -> None:
    """Does parts one after the other, in this process."""
    for name in names:
        part = Part(name, options.out, options.smoke, options.until, options.commit)
        if part.left < 5:
            return
        part.save(started=True)
        print(f"{name} ...", flush=True)
        try:
            import_module(OWNERS.get(name, "speed")).PARTS[name](part)
        except Exception:
            part.save(finished=True, error=traceback.format_exc())
            print(f"{name}: FAILED\n{part.content['error'][-1500:]}", flush=True)
        else:
            part.save(finished=True)
            print(f"{name}: {part.content['seconds']} s", flush=True)


def start(names: Sequence[str], options: argparse.Namespace, until: float) -> subprocess.Popen:
    command = [sys.executable, str(FOLDER / "run.py"), "--out", str(options.out)]
    command += ["--work", ",".join(names), "--until", str(until)]
    command += ["--smoke"] * options.smoke
    command += ["--commit", options.commit] if options.commit else []
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = "8" if names[0] in ("networks", *TIMED) else "2"
    own = {
        "PYTHONPATH": os.pathsep.join(paths),
        "GPU_COMMAND": shlex.join(["python", *sys.argv]),
        "PYTHONUNBUFFERED": "1",
    }
    log = (options.out / f"{names[0]}.log").open("a")
    return subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        env={"OMP_NUM_THREADS": threads} | os.environ | own,
    )  # fmt: skip


def end(process: subprocess.Popen) -> None:
    """Ends a process and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_finished(name: str, out: Path) -> bool:
    """Whether it came to its end, be it a failure."""
    file = out / f"{name}.json"
    return file.is_file() and json.loads(file.read_text())["finished"]


def to_do(names: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Parts that are wanted and were not done yet; those that failed are tried again."""
    wanted = [name for name in names if name in options.only]
    for name in list(wanted):
        if is_finished(name, options.out):
            content = json.loads((options.out / f"{name}.json").read_text())
            if not content.get("error"):
                wanted.remove(name)
    return wanted


def check(options: argparse.Namespace) -> None:
    """Runs the checks side by side until all are done or their share of the time is over."""
    names = to_do(CHECKS, options)
    timed = any(name in options.only for name in TIMED)
    seconds = (options.until - time.time()) * (CHECKS_SHARE if timed else 1)
    until = time.time() + seconds
    processes = {}
    for name in names:
        if options.smoke:  # one after the other: a laptop has few cores
            process = start([name], options, until)
            process.wait()
        else:
            processes[name] = start([name], options, until)
    while any(process.poll() is None for process in processes.values()) and time.time() < until:
        time.sleep(0.2)
    for name, process in processes.items():
        if process.poll() is None:
            mark(name, options.out, "stopped: its time was over")
        end(process)
    for name in names:
        if not is_finished(name, options.out):
            mark(name, options.out, "the process ended before the part did: see its log")


def measure(options: argparse.Namespace) -> None:
    """Runs what is timed in one process, or in another one after a crash."""
    names = to_do(TIMED, options)
    for name in names:  # what an earlier call left
        (options.out / f"{name}.json").unlink(missing_ok=True)
    while names and time.time() < options.until - 10:
        process = start(names, options, options.until)
        while process.poll() is None and time.time() < options.until:
            time.sleep(0.2)
        over = process.poll() is None
        end(process)
        begun = [name for name in names if (options.out / f"{name}.json").is_file()]
        broken = [name for name in begun if not is_finished(name, options.out)]
        for name in broken:
            mark(name, options.out, "stopped: the time was over" if over else "the process died")
        if over or not begun:
            return
        names = names[names.index(begun[-1]) + 1 :] if broken else []


def mark(name: str, out: Path, reason: str) -> None:
    """Notes why a part has no end; it is repeated when the command is given again."""
    file = out / f"{name}.json"
    if file.is_file():
        content = {"interrupted": reason} | json.loads(file.read_text())  # the first reason stays
        file.write_text(json.dumps(content, indent=1) + "\n")
    else:
        print(f"{name}: {reason}")


def report(out: Path) -> None:
    """The table: a line or more of every part."""
    for name in (*CHECKS, *TIMED):
        file = out / f"{name}.json"
        if not file.is_file():
            print(f"{name:<22} not run")
            continue
        content = json.loads(file.read_text())
        state = content.get("interrupted") or ("failed" if content.get("error") else "")
        print(f"{name:<22} {content['seconds']:>6} s  {state}")
        for line in content.get("summary", []):
            print(f"    {line}")
        if content.get("error"):
            print("    " + content["error"].strip().splitlines()[-1][:300])


def main() -> None:
    parser = argparse.ArgumentParser(description="Checks and measures on one GPU.")
    parser.add_argument("--minutes", type=float, default=9.0, help="budget of the whole command")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, on the CPU")
    parser.add_argument("--only", default=",".join((*CHECKS, *TIMED)), metavar="PART,PART")
    parser.add_argument("--commit", help="of the code, where git cannot tell")
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.work:
        work(options.work.split(","), options)
        return
    options.until = time.time() + 60 * options.minutes
    options.only = options.only.split(",")
    if unknown := set(options.only) - {*CHECKS, *TIMED}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if not options.smoke:
        import torch

        if not torch.cuda.is_available():
            parser.error("there is no CUDA device here: give --smoke for toy sizes on the CPU")
    check(options)
    measure(options)
    report(options.out)


if __name__ == "__main__":
    main()
