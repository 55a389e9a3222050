"""The networks that runs of classification trained, for what builds on one: teachers, scores."""

from argparse import ArgumentError
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from attention_vision.backbones import Backbone
from attention_vision.checkpoints import load_official, read
from attention_vision.errors import InputError


def trained_classifier(run: Path) -> tuple[Backbone, dict[str, Any]]:
    """The network of a run of classification with its best weights, else its last; its config.

    The network alone is built, as the run's command did, without the data and the module of
    training. The random state of the caller stays as it is.

    Raises:
        InputError: the folder holds no such run, no checkpoint, or one that does not fit.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise InputError(f"{run} holds no run: train the classifier first")
    config = yaml.safe_load(file.read_text())
    if config.get("task") != "classification":
        raise InputError(f"{run} holds no run of classification, but of {config.get('task')}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Backbone, "network")
    try:
        with torch.random.fork_rng(devices=[]):  # building draws weights that loading replaces
            parsed = parser.parse_object({"network": config["model"]["network"]})
            network = parser.instantiate(parsed).network
    except ArgumentError as error:
        raise InputError(f"{file}: {str(error).strip().splitlines()[0]}") from error
    load_official(network, trained_state(run))
    return network, config


def trained_state(run: Path) -> dict[str, torch.Tensor]:
    """The weights of a run's network, by their names in it. Raises InputError if there are none."""
    kept = [run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    file = next((file for file in kept if file.is_file()), None)
    if file is None:
        raise InputError(f"{run} holds no checkpoint: train the classifier to its end")
    start = "network."  # a checkpoint of training holds the network beside its metrics
    state = read(file).get("state_dict", {})
    state = {key.removeprefix(start): v for key, v in state.items() if key.startswith(start)}
    if not state:
        raise InputError(f"{file} is no checkpoint of a classifier")
    return state
