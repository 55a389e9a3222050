"""Layout of a run folder, and its checkpoints by name.

RUN/config.yaml  metrics.csv  checkpoints/{last,previous,best}.ckpt  pictures/
RUN/{validate,test}.json; previous.ckpt is the last.ckpt before the last one
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attention_vision.errors import InputError
from attention_vision.training.checkpoint_io import check_sums


def default_run(task: str, stem: str) -> Path:
    """runs/TASK/TIME_STEM, a folder that does not exist yet.

    Under SLURM the job's number replaces the time: every process of the job finds the same folder,
    and so does the job when it is requeued.
    """
    parent = Path("runs") / task
    if job := os.environ.get("SLURM_JOB_ID"):
        return parent / f"slurm{job}_{stem}"
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{stem}"
    run, copies = parent / name, 1
    while run.exists():
        copies += 1
        run = parent / f"{name}-{copies}"
    return run


def new_run(task: str, stem: str) -> Path:
    """Make the folder of `default_run`: of commands that start together, each has its own."""
    for _ in range(1000):
        run = default_run(task, stem)
        with suppress(FileExistsError):  # another command was first
            make(run, exist_ok="SLURM_JOB_ID" in os.environ)
            return run
    raise InputError(f"{run} cannot be made: give --run RUN")  # runs is a link to nowhere


def make(run: Path, exist_ok: bool) -> None:
    """Make a run folder, again where a start that failed has just removed its parent."""
    for _ in range(100):
        with suppress(FileNotFoundError):
            return run.mkdir(parents=True, exist_ok=exist_ok)
    run.mkdir(parents=True, exist_ok=exist_ok)


def missing_parents(run: Path | None, task: str) -> list[Path]:
    """The folders above a run that its start will make, the innermost first; None: a new run."""
    return [one for one in (run or Path("runs", task, "new")).parents if not one.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders in which nothing lies, the innermost first, up to the first that is in use."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def is_requeued() -> bool:
    """Whether this is a SLURM job that was requeued."""
    return os.environ.get("SLURM_RESTART_COUNT", "0").strip() not in ("", "0")


def holds_run(run: Path) -> bool:
    """Whether the folder contains a run to resume: one that has saved a checkpoint."""
    return any((run / "checkpoints").glob("*.ckpt"))


def demo_hint(path: Path) -> str:
    """For a message about a run of the demo that is not there: the command that trains it."""
    return "; `make demo` trains those in runs/demo" if path.parts[:2] == ("runs", "demo") else ""


def best_or_last(run: Path) -> Path | None:
    """The best checkpoint of a run, else the last one, else None."""
    kept = (run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    return next((file for file in kept if file.is_file()), None)


def find_checkpoint(run: Path, name: str = "best") -> Path:
    """The file behind "best", "last" or a path.

    Raises:
        InputError: there is no such file; the message lists the checkpoints that there are.
    """
    file = run / "checkpoints" / f"{name}.ckpt" if name in ("best", "last") else Path(name)
    if not file.is_file():
        kept = sorted(path.stem for path in (run / "checkpoints").glob("*.ckpt"))
        found = f"{run} has {', '.join(kept)}" if kept else f"{run} has none, train it anew by fit"
        raise InputError(f"no checkpoint {file}: {found}")
    return file


def resumable_checkpoint(run: Path, name: str) -> Path:
    """The file that training resumes from; the latest other one for a last.ckpt that is not there.

    A run whose first validation comes before its first save of last.ckpt has best.ckpt alone.

    Raises:
        InputError: there is no such file.
    """
    folder = run / "checkpoints"
    if name != "last" or (folder / "last.ckpt").is_file():
        return find_checkpoint(run, name)
    return latest(folder) or find_checkpoint(run, name)


def latest(folder: Path) -> Path | None:
    """The whole checkpoint of most steps beside last.ckpt; None without one."""
    steps = {}
    for other in (folder / name for name in ("previous.ckpt", "best.ckpt")):
        with suppress(InputError, KeyError):
            steps[other] = read_checkpoint(other)["global_step"]
    return max(steps, key=lambda one: steps[one]) if steps else None


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint, memory-mapped. Raises InputError for a damaged or other file."""
    check_sums(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file fails anywhere in the unpickler
        raise InputError(f"{file} is damaged, or not a checkpoint of this command") from error


def whole_checkpoint(file: Path) -> tuple[Path, list[str]]:
    """The checkpoint, or the latest whole one beside it in the place of a damaged last.ckpt.

    Returns:
        the file, and a line on what is lost, if anything is.

    Raises:
        InputError: the file is damaged, and there is no other for it.
    """
    try:
        read_checkpoint(file)
    except InputError as error:
        if file.name != "last.ckpt":
            raise
        other = latest(file.parent)
        if other is None:
            raise InputError(f"{error}; {file.parent} has no other to resume from") from error
        step = read_checkpoint(other)["global_step"]
        line = f"{error}: resuming from {other.name} of step {step}, later ones are repeated"
        return other, [line]
    return file, []


def read_state(file: Path, module: nn.Module) -> dict[str, torch.Tensor]:
    """Read the weights of a checkpoint, memory-mapped; they fit `module` by name and shape.

    Raises:
        InputError: the file is damaged, not a checkpoint of a run, or one of another model.
    """
    checkpoint = read_checkpoint(file)
    if "state_dict" not in checkpoint:
        raise InputError(
            f"{file} is not a checkpoint of a run; official weights go to model.weights"
        )
    state = checkpoint["state_dict"]
    there = {name: tuple(tensor.shape) for name, tensor in state.items()}
    here = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if wrong := sorted(name for name, _ in there.items() ^ here.items()):
        name = wrong[0]
        raise InputError(
            f"{file} is of another model: {name} is {there.get(name, 'missing')} there, "
            f"{here.get(name, 'missing')} here"
        )
    return state
