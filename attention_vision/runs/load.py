"""From files back to objects: the module of a run folder, module and data of an experiment."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from attention_vision.config.build import build_nodes
from attention_vision.config.trust import trusting
from attention_vision.data.loading import TaskData
from attention_vision.errors import ConfigError, InputError
from attention_vision.runs.tasks import TASKS, Task
from attention_vision.training.labels import read_labels
from attention_vision.training.run_folder import best_or_last, find_checkpoint, read_state
from attention_vision.yaml_json import read_yaml


def load_run(folder: str | Path, checkpoint: str = "best", trust: bool = False) -> LightningModule:
    """Build the trained module of a run folder, on the CPU and in eval mode.

    Neither the data nor the official weights that the run began with are needed: the config has
    the number of classes, the checkpoint all weights (their moving average where the run kept one)
    and the names of the classes, which are the module's `class_names`.
    The random state of the caller stays as it is.

    Args:
        folder: the run folder.
        checkpoint: "best", "last", or the path of a checkpoint file. A run that was not validated
            yet has no best one: then the last is taken, with a warning.
        trust: whether its config may name any class, whose code then runs: your own, or of someone
            you trust. Otherwise those of SECURITY.md.

    Raises:
        InputError: the folder is a file, does not contain a run, or has no such checkpoint, or one
            that does not fit.
        ConfigError: its config names a class that is not known.
    """
    run = Path(folder)
    if run.is_file():
        above = (str(path) for path in run.parents if (path / "config.yaml").is_file())
        it = next(above, "which contains config.yaml")
        raise InputError(f"{run} is a file: give the folder of the run, {it}")
    config, task = read_run(run)
    file = best_or_last(run) if checkpoint == "best" else None
    if file is not None and file.stem == "last":
        warnings.warn(f"{run} has no best checkpoint yet: loading last", stacklevel=2)
    file = file or find_checkpoint(run, checkpoint)
    arguments = config["model"].get("init_args", {}) if task.choose_model else config["model"]
    if "weights" in arguments:
        arguments["weights"] = None
    with trusting(trust), named(run / "config.yaml"):
        module = build_nodes(config, {"model": task.nodes["model"]})["model"]
    module.load_state_dict(read_state(file, module))
    labels = read_labels(file)
    module.class_names = labels.class_names if labels else ()
    return module.eval()


def load_data(folder: str | Path, trust: bool = False) -> LightningDataModule:
    """Build the data of a run folder, with the labels that its checkpoint was trained with.

    Nothing is read from the data's own folders.

    Args:
        folder: the run folder.
        trust: as in `load_run`.

    Raises:
        InputError: the folder does not contain a run, or its data does not build.
        ConfigError: its config names a class that is not known.
    """
    config, task = read_run(Path(folder))
    with trusting(trust), named(Path(folder, "config.yaml")):
        data = build_nodes(config, {"data": task.nodes["data"]})["data"]
    file = best_or_last(Path(folder))
    if file and isinstance(data, TaskData) and (labels := read_labels(file)):
        data.use_labels(labels)
    return data


def read_run(run: Path) -> tuple[dict[str, Any], Task]:
    """Read the config of a run folder, and find its task.

    Raises:
        InputError: the folder does not contain a run.
    """
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run} does not contain a run: there is no config.yaml in it")
    config = read_yaml(run / "config.yaml")
    if not describes_task(config):
        raise InputError(
            f"{run} does not contain a run: its config.yaml has no task, model and data"
        )
    return config, TASKS[config["task"]]


@dataclass(frozen=True)
class Experiment:
    """The objects of an experiment file.

    Attributes:
        classes_known: whether the data gave its number of classes to the networks, which otherwise
            have their default.
    """

    task: Task
    module: LightningModule
    data: LightningDataModule
    classes_known: bool


def load_experiment(file: str | Path, trust: bool = False) -> Experiment:
    """Build the module and the data of an experiment file, as training begins with.

    Nothing is read from the data's folders but the names of classes, which may be missing.

    Args:
        file: the experiment.
        trust: as in `load_run`.

    Raises:
        InputError: there is no such file, or it is not an experiment, or does not build.
        ConfigError: it names a class that is not known.
    """
    path = Path(file)
    if not path.is_file():
        found = "a folder: give its config.yaml" if path.is_dir() else "there is no such file"
        raise InputError(f"{file}: {found}")
    config = read_yaml(path)
    if not describes_task(config):
        raise ConfigError(
            f"{file} is not an experiment: one has the keys data, model and task, which is"
            f" {', '.join(list(TASKS)[:-1])} or {list(TASKS)[-1]}"
        )
    task, known = TASKS[config["task"]], False
    with trusting(trust), named(path):
        with suppress(InputError):  # its folders are not here
            known = build_nodes(config, {"data": task.nodes["data"]})["data"].num_classes >= 0
        built = build_nodes(config, task.nodes, task.links if known else ())
    return Experiment(task, built["model"], built["data"], known)


@contextmanager
def named(file: Path) -> Iterator[None]:
    """Context whose errors begin with the name of the file that they are about."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{file}: {error}") from error


def describes_task(config: dict[str, Any]) -> bool:
    """Whether a config names its task, a model and data."""
    return config.get("task") in TASKS and {"model", "data"} <= config.keys()
