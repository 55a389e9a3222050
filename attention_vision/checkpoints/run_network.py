"""Networks of classification runs, for their use as teachers and feature extractors."""

from pathlib import Path
from typing import Any

import torch

from attention_vision.backbones import Backbone
from attention_vision.checkpoints import load_official
from attention_vision.checkpoints.load import read
from attention_vision.config.build import Node, build_nodes
from attention_vision.errors import InputError
from attention_vision.training.run_folder import best_or_last, demo_hint
from attention_vision.yaml_json import read_yaml


def trained_classifier(run: Path) -> tuple[Backbone, dict[str, Any]]:
    """Load the network of a classification run, with its best weights (else its last).

    The network alone is built, as by the run's command, without the data and the training module.
    The random state of the caller is unchanged.

    Returns:
        the network, and the run's config.

    Raises:
        InputError: the folder does not contain such a run, or a checkpoint that fits.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise InputError(
            f"{run} does not contain a run: train the classifier first{demo_hint(run)}"
        )
    config = read_yaml(file)
    if config.get("task") != "classification":
        raise InputError(
            f"{run} is not a run of classification, but of {config.get('task', 'something else')}"
        )
    nodes = {"network": Node(Backbone)}
    try:
        network = build_nodes(config.get("model") or {}, nodes)["network"]
    except InputError as error:
        raise type(error)(f"{file}: {error}") from error
    load_official(network, trained_state(run))
    return network, config


def trained_state(run: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a run's network, by their names in it.

    Raises:
        InputError: the run has no checkpoint, or its checkpoint is not one of a classifier.
    """
    file = best_or_last(run)
    if file is None:
        raise InputError(f"{run} has no checkpoint: train the classifier to its end")
    start = "network."  # a checkpoint of training has the network beside its metrics
    state = read(file).get("state_dict", {})
    state = {key.removeprefix(start): v for key, v in state.items() if key.startswith(start)}
    if not state:
        raise InputError(f"{file} is not a checkpoint of a classifier")
    return state
