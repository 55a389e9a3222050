"""Run folders: where a run lives, which checkpoint it means, and how to load it back.

RUN/config.yaml  metrics.csv  checkpoints/{last,best}.ckpt  pictures/  {validate,test}.json
"""

import os
import warnings
from datetime import datetime
from pathlib import Path

import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from attention_vision.errors import InputError
from attention_vision.tasks import TASKS


def default_run(task: str, stem: str) -> Path:
    """runs/TASK/TIME_STEM, a folder that does not exist yet.

    Under SLURM the job's number stands in for the time: every process of the job finds the same
    folder, and so does the job when it is requeued.
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


def is_requeued() -> bool:
    """Whether this is a job of SLURM that was in the queue before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


def holds_run(run: Path) -> bool:
    """Whether training can go on there: a run that ended before its first checkpoint is none."""
    return any((run / "checkpoints").glob("*.ckpt"))


def find_checkpoint(run: Path, name: str = "best") -> Path:
    """The file behind "best", "last" or a path.

    Raises:
        InputError: there is no such file; says what there is.
    """
    file = run / "checkpoints" / f"{name}.ckpt" if name in ("best", "last") else Path(name)
    if not file.is_file():
        kept = sorted(path.stem for path in (run / "checkpoints").glob("*.ckpt"))
        holds = f"{run} holds {', '.join(kept)}" if kept else f"{run} holds no checkpoint"
        raise InputError(f"no checkpoint {file}: {holds}")
    return file


def read_state(file: Path, module: LightningModule) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, which fit `module` by name and shape; memory-mapped.

    Raises:
        InputError: no checkpoint of a run, or one of another model.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file fails anywhere in the unpickler
        raise InputError(f"{file} is damaged, or no checkpoint of this command") from error
    if "state_dict" not in checkpoint:
        raise InputError(f"{file} is no checkpoint of a run; official weights go to model.weights")
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


def load_run(folder: str | Path, checkpoint: str = "best") -> LightningModule:
    """The trained module of a run folder, on the CPU and in eval mode.

    Neither the data nor the official weights that the run began with are needed: the config holds
    the number of classes, the checkpoint all weights (their moving average where the run kept one).
    The random state of the caller stays as it is.

    Args:
        folder: the run folder.
        checkpoint: "best", "last", or the path of a checkpoint file. A run that was not validated
            yet has no best one: then the last is taken, with a warning.

    Raises:
        InputError: the folder is a file, holds no run, or has no such checkpoint, or one that does
            not fit.
    """
    run = Path(folder)
    if run.is_file():
        above = (str(path) for path in run.parents if (path / "config.yaml").is_file())
        it = next(above, "which holds config.yaml")
        raise InputError(f"{run} is a file: give the folder of the run, {it}")
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run} holds no run: there is no config.yaml in it")
    last = run / "checkpoints" / "last.ckpt"
    if checkpoint == "best" and not last.with_stem("best").is_file() and last.is_file():
        warnings.warn(f"{run} holds no best checkpoint yet: loading last", stacklevel=2)
        checkpoint = "last"
    file = find_checkpoint(run, checkpoint)
    config = yaml.safe_load((run / "config.yaml").read_text())
    task = TASKS[config["task"]]()
    arguments = config["model"].get("init_args", {}) if task.choose_model else config["model"]
    if "weights" in arguments:
        arguments["weights"] = None

    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(task.model, "model", subclass_mode=task.choose_model)
    with torch.random.fork_rng(devices=[]):  # building draws weights that loading replaces
        module = parser.instantiate(parser.parse_object({"model": config["model"]})).model
    module.load_state_dict(read_state(file, module))
    return module.eval()
