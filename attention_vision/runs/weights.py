"""Weights that a command names: whether they are meant, their labels and their preprocessing."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule

from attention_vision import __version__
from attention_vision.checkpoints.load import read
from attention_vision.checkpoints.preprocessing import Preprocessing, Release, find_release
from attention_vision.config.parser import ArgumentParser
from attention_vision.runs.resume import differences as changed_arguments
from attention_vision.runs.resume import record_of, shown
from attention_vision.runs.run_config import plain_config
from attention_vision.yaml_json import read_yaml

# Arguments of a network that may differ from the weights' run: no part of its function, or said by
# what loads the weights.
FREE = (
    "num_classes", "image_size", "dropout", "stochastic_depth", "norm", "trainable_stages",
    "zero_init_residual", "checkpointing",
)  # fmt: skip
FLAGS = ("weights", "model.weights", "model.init_args.weights")


def arguments_of(node: Namespace | Mapping[str, Any]) -> Any:
    """The arguments of a class in a config, by name."""
    return node.get("init_args") or node


def named_weights(config: Namespace | Mapping[str, Any], key: str = "weights") -> str | None:
    """The value of `model.weights`, of whichever model."""
    return arguments_of(config["model"]).get(key)


def weights_by_flag(flags: Iterable[Mapping[str, Any]]) -> bool:
    """Whether one of the flags, {dotted key: value} each, names weights."""
    return any(flag.get(key, "null") != "null" for flag in flags for key in FLAGS)


def measures_weights(config: Namespace, by_flag: bool, run: Path) -> bool:
    """Whether a command measures the weights it names, not the checkpoint of its run.

    Those that a run was fine-tuned from stay in its config.yaml, and are not meant.
    """
    weights = named_weights(config)
    if weights is None or by_flag:
        return weights is not None
    own = run / "config.yaml"
    return own.is_file() and named_weights(read_yaml(own)) != weights


def unread_weights(config: Namespace, run: Path, checkpoint: Path | None) -> list[str]:
    """A line for weights that are new in a command which starts from a checkpoint instead."""
    own = run / "config.yaml"
    if checkpoint is None or not own.is_file():
        return []
    before, keys = read_yaml(own), ("weights", "backbone_weights")
    given = {key: named_weights(config, key) for key in keys}
    return [
        f"model.{key}: {value} is not read, {checkpoint} has all weights"
        for key, value in given.items()
        if value is not None and value != named_weights(before, key)
    ]


def other_function(parser: ArgumentParser, config: Namespace) -> list[str]:
    """A line where a run's weights are taken into a network that computes another function.

    Shapes do not show the number of heads, the kind of positions, or the dilation.
    """
    key = "weights" if named_weights(config) else "backbone_weights"
    source = named_weights(config, key)
    record = record_of(read(source)) if source and Path(source).exists() else {}
    if "config" not in record:
        return []
    theirs, ours = (
        arguments_of(one["model"]).get("network")
        for one in (record["config"], plain_config(parser, config))
    )
    name, free = "model.network", FREE
    if key == "backbone_weights":  # detectors dilate what was trained without, see "DC5"
        name, ours = f"{name}.backbone", arguments_of(ours).get("backbone")
        free = (*FREE, "dilation")
    same_version = record.get("version") == __version__
    changes = changed_arguments({name: theirs}, {name: ours}, same_version)
    if name in changes:  # weights of another class do not load at all
        return []
    changed = [
        f"{argument} {shown(one.old)} -> {shown(one.new)}"
        for argument, one in changes.items()
        if argument.rpartition(".")[2] not in free
    ]
    if not changed:
        return []
    return [f"WARNING: {source} was trained in another network than this: {', '.join(changed)}"]


def settle_preprocessing(
    config: Namespace, module: LightningModule, data: Any, checkpoint: Path | None
) -> list[str]:
    """Prepare images as for the weights that a run starts from, in the data and in the config.

    What the user has set stays. The config says then what was done, so that the run's folder needs
    the weights no more. Of a checkpoint, it is what its run did.

    Returns:
        lines on what was changed, differs or is not known.
    """
    source = checkpoint or getattr(module, "weights", None)
    source = source or getattr(module, "backbone_weights", None)
    if source is None or not hasattr(data, "mean"):
        return []
    release, own = find_release(source), getattr(data, "preprocessing", None)
    if own is None or "preprocessing" not in signature(type(data)).parameters:
        return [] if release is None else differences(source, data, release.preprocessing)
    before = in_force(data)
    if release is None:
        unsure = own.mean is None or own.std is None
        line = (
            f"data.preprocessing: {source} does not say what images it was trained on; these have"
            f" {before}: set it if theirs had others"
        )
        return [line] if unsure and checkpoint is None else []
    known = with_crop(release, data)
    data.use_preprocessing(own.completed_by(known))
    arguments = config.data.get("init_args") or config.data
    for name, value in vars(data.preprocessing).items():
        arguments.preprocessing[name] = value
    lines = differences(source, data, known)
    if in_force(data) != before:
        lines.append(f"data.preprocessing: as {source} was trained on: {in_force(data)}")
    if release.crops and data.image_size not in release.crops:
        sizes = " or ".join(map(str, release.crops))
        lines.append(
            f"data.image_size: {source} is for images of {sizes} pixels, not {data.image_size}"
        )
    return lines


def with_crop(release: Release, data: Any) -> Preprocessing:
    """The release's preprocessing, with its crop if the recipe has only its default one."""
    recipe = getattr(data, "recipe", None)
    crop = getattr(recipe, "centre", None)
    is_default = crop is not None and crop == getattr(type(recipe), "centre", None)
    return replace(
        release.preprocessing, crop=release.crops.get(data.image_size) if is_default else None
    )


def in_force(data: Any) -> Preprocessing:
    """What is done to images, whatever it comes from."""
    given = getattr(data, "preprocessing", Preprocessing())
    return replace(given, mean=tuple(data.mean), std=tuple(data.std))


def differences(source: str | Path, data: Any, known: Preprocessing) -> list[str]:
    """A line if images are normalized, resized or cut in another way than for the weights."""
    theirs, ours = known.given(), in_force(data).given()
    other = {name for name in theirs.keys() & ours.keys() if theirs[name] != ours[name]}
    if not other:
        return []
    theirs, ours = (
        Preprocessing(**{name: getattr(one, name) for name in other})
        for one in (known, in_force(data))
    )
    how = "leave it out to do the same"
    if not hasattr(data, "preprocessing"):
        how = f"{type(data).__name__} has it fixed, take weights of the same"
    return [
        f"data.preprocessing: {source} was trained on images of {theirs}; these have {ours}: {how}"
    ]
