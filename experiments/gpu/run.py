"""Everything of this project that needs a GPU, checked and timed within a budget of minutes.

    make gpu MINUTES=9                       # one GPU; the same command goes on where it stopped
    make gpu MINUTES=1 SMOKE=1               # toy sizes, on a CPU
    python experiments/gpu/run.py --minutes 9 --out runs/gpu --wheels runs/wheels --data DATA

Parts are worked through in the order of `STAGES`: checks side by side, which time nothing that is
reported as a speed; what is timed, which has the machine for itself; trainings, side by side. Each
part leaves NAME.json in the folder as soon as it has something; finished parts are skipped when
the command is given again. A part that fails, or takes a whole process with it, is recorded with
its traceback. Nothing is installed but wheels from a folder, into a folder of the results.
"""

import argparse
import faulthandler
import json
import os
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
BENCHMARKS = ROOT / "experiments/benchmarks"
for path in (ROOT, FOLDER, BENCHMARKS, ROOT / "tests", ROOT / "tests" / "attention"):
    sys.path.insert(0, str(path))

CHECKS = ("mechanisms", "networks", "tests", "training", "fits")
TIMED = (
    "ceilings", "vit_b16", "resnet50", "se_resnet50", "detr_r50", "swin_t", "deit_s16", "sagan32",
    "strong_baseline", "overhead", "matching", "vit_b16_compiled", "se_resnet50_compiled", "small",
    "swin_t_compiled", "detr_r50_compiled", "layers", "resnet50_compiled", "deit_s16_compiled",
)  # fmt: skip
RUNS = ("channel_attention", "small_networks", "sagan")
STAGES = {CHECKS: 3, TIMED: 4, RUNS: 4}  # share of the minutes, where all have work left
GRACE = 120  # seconds that the last part of a smoke test may go on behind its budget
ALL = tuple(name for names in STAGES for name in names)
OWNERS = {
    "mechanisms": "correctness", "networks": "correctness", "tests": "training",
    "training": "training", "fits": "fits", "strong_baseline": "runs",
    **dict.fromkeys(RUNS, "runs"),
}  # fmt: skip


class Part:
    """A part at work: its settings, and the file that its result goes to."""

    def __init__(self, name: str, options: argparse.Namespace):
        from frame import environment

        self.name, self.out, self.smoke = name, options.out, options.smoke
        self.until, self.data = options.until, options.data
        self.file = self.out / f"{name}.json"
        self.start = time.time()
        self.content = environment(self.device) | {"part": name, "smoke": self.smoke}
        self.content["command"] = os.environ.get("GPU_COMMAND", shlex.join(["python", *sys.argv]))
        self.content["commit"] = options.commit or self.content["commit"]

    @property
    def device(self) -> str:
        return "cpu" if self.smoke else "cuda"

    @property
    def left(self) -> float:
        """Seconds until the budget is spent."""
        return self.until - time.time()

    def save(self, finished: bool = False, **content: object) -> None:
        """Write what there is; the file is whole at any moment."""
        from frame import write_json

        self.content |= content
        self.content |= {"finished": finished, "seconds": round(time.time() - self.start, 1)}
        write_json(self.file, self.content)


def work(names: Sequence[str], options: argparse.Namespace) -> None:
    """Do parts one after the other, in this process."""
    for name in names:
        part = Part(name, options)
        if part.left < 5:
            return
        part.save(started=True)
        print(f"{name} ...", flush=True)
        try:
            finished = import_module(OWNERS.get(name, "speed")).PARTS[name](part)
        except Exception:
            part.save(finished=True, error=traceback.format_exc())
            print(f"{name}: FAILED\n{part.content['error'][-1500:]}", flush=True)
        else:  # a part that goes on next time returns False
            part.save(finished=finished is not False)
            print(f"{name}: {part.content['seconds']} s", flush=True)


def start(names: Sequence[str], options: argparse.Namespace, until: float) -> subprocess.Popen:
    command = [sys.executable, str(FOLDER / "run.py"), "--out", str(options.out)]
    command += ["--work", ",".join(names), "--until", str(until)]
    command += ["--commit", options.commit] if options.commit else []
    command += ["--data", str(options.data)] if options.data else []
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
    """End a process and what it started."""
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


def side_by_side(names: Sequence[str], options: argparse.Namespace, until: float) -> None:
    """Run parts at the same time, each in a process of its own, until they end or it is time."""
    processes = {name: start([name], options, until) for name in names}
    while any(process.poll() is None for process in processes.values()) and time.time() < until:
        time.sleep(0.2)
    for name, process in processes.items():
        over = process.poll() is None
        end(process)
        if over:
            mark(name, options.out, "stopped: its time was over")
        elif not is_finished(name, options.out) and process.returncode:
            mark(name, options.out, "the process ended before the part did: see its log")


def one_by_one(names: Sequence[str], options: argparse.Namespace, until: float) -> None:
    """Run parts in one process, or in another one after a crash."""
    for name in names:  # what an earlier call left
        (options.out / f"{name}.json").unlink(missing_ok=True)
    while names and time.time() < until - 5:
        process = start(names, options, until)
        while process.poll() is None and time.time() < until:
            time.sleep(0.2)
        over = process.poll() is None
        end(process)
        begun = [name for name in names if (options.out / f"{name}.json").is_file()]
        if not begun:
            return
        broken = not is_finished(begun[-1], options.out)
        if broken and (over or process.returncode):
            reason = "stopped: its time was over" if over else "the process died"
            mark(begun[-1], options.out, reason)
        names = names[names.index(begun[-1]) + 1 :] if process.returncode and not over else []


def mark(name: str, out: Path, reason: str) -> None:
    """Note why a part has no end; it is repeated when the command is given again."""
    file = out / f"{name}.json"
    if file.is_file():
        content = {"interrupted": reason} | json.loads(file.read_text())  # the first reason stays
        file.write_text(json.dumps(content, indent=1) + "\n")
    else:
        print(f"{name}: {reason}")


def report(out: Path) -> int:
    """Print a line or more of every part; return 1 where something failed, else 0."""
    failed = False
    for name in ALL:
        file = out / f"{name}.json"
        if not file.is_file():
            print(f"{name:<22} not run")
            continue
        content = json.loads(file.read_text())
        failed |= bool(content.get("error") or content.get("failures"))
        state = content.get("interrupted") or ("failed" if content.get("error") else "")
        print(f"{name:<22} {content['seconds']:>6} s  {state}")
        for line in content.get("summary", []):
            print(f"    {line}")
        if content.get("error"):
            print("    " + content["error"].strip().splitlines()[-1][:300])
    return int(failed)


def install(wheels: Path, out: Path) -> None:
    """Install wheels into a folder of the results, for this process and those that it starts."""
    site = out / "site"
    files = sorted(map(str, wheels.glob("*.whl")))
    if files and not site.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*command, "--no-compile", "--target", str(site), *files], check=True)
    sys.path.insert(0, str(site))
    before = filter(None, [os.environ.get("PYTHONPATH")])
    os.environ["PYTHONPATH"] = os.pathsep.join([str(site), *before])


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks and measures on one GPU.")
    parser.add_argument("--minutes", type=float, default=9.0, help="budget of the whole command")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, on the CPU")
    parser.add_argument("--only", default=",".join(ALL), metavar="PART,PART")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="what this machine lacks")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="CIFAR-10, as torchvision lays it out or packed"
    )
    parser.add_argument("--commit", help="of the code, where git cannot tell")
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    begin = time.time()
    options.out = options.out.resolve()
    options.data = options.data and options.data.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.work:
        work(options.work.split(","), options)
        return 0
    options.only = options.only.split(",")
    if unknown := set(options.only) - {*ALL}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if options.wheels:
        install(options.wheels, options.out)
    if not options.smoke:
        import torch

        if not torch.cuda.is_available():
            parser.error("there is no CUDA device here: give --smoke for toy sizes on the CPU")
    last = begin + 60 * options.minutes
    if options.smoke:  # in this process: the imports take longer than the parts
        options.until = last
        # A part that hangs is ended, and says where it is.
        faulthandler.dump_traceback_later(last - begin + GRACE, exit=True, file=2)
        work(to_do(ALL, options), options)
        faulthandler.cancel_dump_traceback_later()
        return report(options.out)
    for stage in STAGES:
        waiting = {names: to_do(names, options) for names in list(STAGES)[[*STAGES].index(stage) :]}
        shares = sum(STAGES[names] for names, left in waiting.items() if left)
        if names := waiting[stage]:
            until = time.time() + (last - time.time()) * STAGES[stage] / shares
            (one_by_one if stage is TIMED else side_by_side)(names, options, until)
    return report(options.out)


if __name__ == "__main__":
    sys.exit(main())
