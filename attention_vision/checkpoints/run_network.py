"""The networks that runs of classification trained, for what builds on one: teachers, scores."""

from pathlib import Path
from typing import Any

import torch

from attention_vision.backbones import Backbone
from attention_vision.checkpoints import load_official
from attention_vision.checkpoints.load import read
from attention_vision.config.build import Node, build
from attention_vision.errors import InputError
from attention_vision.training.run_folder import best_or_last
from attention_vision.yaml_json import read_yaml


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
    config = read_yaml(file)
    if config.get("task") != "classification":
        raise InputError(
            f"{run} is not a run of classification, but of {config.get('task', 'something else')}"
        )
    nodes = {"network": Node(Backbone)}
    try:
        network = build(config.get("model") or {}, nodes)["network"]
    except InputError as error:
        raise type(error)(f"{file}: {error}") from error
    load_official(network, trained_state(run))
    return network, config


def trained_state(run: Path) -> dict[str, torch.Tensor]:
    """The weights of a run's network, by their names in it. Raises InputError if there are none."""
    file = best_or_last(run)
    if file is None:
        raise InputError(f"{run} holds no checkpoint: train the classifier to its end")
    start = "network."  # a checkpoint of training holds the network beside its metrics
    state = read(file).get("state_dict", {})
    state = {key.removeprefix(start): v for key, v in state.items() if key.startswith(start)}
    if not state:
        raise InputError(f"{file} is no checkpoint of a classifier")
    return state
