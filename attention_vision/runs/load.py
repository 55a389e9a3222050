"""`load_run`: the trained module of a run folder."""

import warnings
from pathlib import Path

from lightning.pytorch import LightningModule

from attention_vision.config.build import build
from attention_vision.errors import InputError
from attention_vision.runs.tasks import TASKS
from attention_vision.training.run_folder import best_or_last, find_checkpoint, read_state
from attention_vision.yaml_json import read_yaml


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
    file = best_or_last(run) if checkpoint == "best" else None
    if file is not None and file.stem == "last":
        warnings.warn(f"{run} has no best checkpoint yet: loading last", stacklevel=2)
    file = file or find_checkpoint(run, checkpoint)
    config = read_yaml(run / "config.yaml")
    task = TASKS[config["task"]]()
    arguments = config["model"].get("init_args", {}) if task.choose_model else config["model"]
    if "weights" in arguments:
        arguments["weights"] = None
    module = build(config, {"model": task.nodes["model"]})["model"]
    module.load_state_dict(read_state(file, module))
    return module.eval()
