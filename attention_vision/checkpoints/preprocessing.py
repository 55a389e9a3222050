"""Preprocessing that weights were trained with, as their release or run states it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import floor
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule

from attention_vision.checkpoints.hub import HUB_FILES, TORCHVISION, hub_file, is_name
from attention_vision.checkpoints.hub import torchvision_weights as weights_of_torchvision
from attention_vision.config.build import Node, build_nodes
from attention_vision.errors import InputError
from attention_vision.ranges import Finite, Positive, Share, checked
from attention_vision.yaml_json import read_yaml

Interpolation = Literal["bilinear", "bicubic"]
Channels = tuple[float, float, float]
PILLOW_CODES: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
CHECKPOINT_FOLDERS = ("checkpoints", "nonfinite")  # of a run
# Files that state the preprocessing: of timm, and of Hugging Face's transformers.
CONFIG_FILES = ("preprocessor_config.json", "config.json")


@checked
@dataclass(frozen=True)
class Preprocessing:
    """Normalization, resizing filter and crop of images.

    What is not given comes from the weights where their release states it, else from the data set
    and its recipe.

    Attributes:
        mean: of each channel of the images in 0..1.
        std: standard deviation of each channel.
        interpolation: the filter that Pillow resizes images with. Where none is given, torch's
            bilinear filter, which is within 1 of 255 of Pillow's.
        crop: side of the evaluation crop as a share of the resized short side; "squash" resizes
            both sides to the image size, without a crop.

    Raises:
        InputError: a number that is out of its range.
    """

    mean: tuple[Finite, Finite, Finite] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    interpolation: Interpolation | None = None
    crop: Share | Literal["squash"] | None = None

    def __post_init__(self):
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if numbers is not None and not all(0 <= number <= 1 for number in numbers):
                raise InputError(
                    f"data.preprocessing.{name} {list(numbers)}: of images in 0..1, divide by 255"
                )

    def completed_by(self, other: "Preprocessing") -> "Preprocessing":
        """This preprocessing, with what it leaves open taken from another."""
        return replace(self, **{name: getattr(other, name) for name in self.missing()})

    def missing(self) -> list[str]:
        return [one.name for one in fields(self) if getattr(self, one.name) is None]

    def given(self) -> dict[str, Any]:
        """Name -> value of what is given; channels as lists, as a config file has them."""
        pairs = ((one.name, getattr(self, one.name)) for one in fields(self))
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in pairs
            if value is not None
        }

    def options(self, *names: str) -> dict[str, Any]:
        """Those of the named that are given, as keyword arguments."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {readable(value)}" for name, value in self.given().items())


def readable(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{number:.4g}" for number in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Release:
    """What is known of weights besides their values.

    Attributes:
        preprocessing: of the images, without the crop.
        crops: image size in pixels -> crop of the evaluation; empty where it is not known.
        architecture: timm's name of the network, such as `tf_efficientnet_b0`, or "".
    """

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    crops: Mapping[int, float | Literal["squash"]] = field(default_factory=dict)
    architecture: str = ""


# EfficientNet-Lite as Google released it, in files of efficientnet_lite_pytorch and timm. Evaluated
# on the center of images whose short side is 32 pixels longer.
LITE_FILE = re.compile(r"efficientnet-lite\d|tf_efficientnet_lite\d")
LITE = Release(
    Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic"),
    {size: size / (size + 32) for size in (224, 240, 260, 280, 300)},
    "tf_efficientnet_lite",
)


def find_release(source: str | Path) -> Release | None:
    """Look up how weights were trained.

    Known are torchvision's weights by name; models of the hub, by the config.json of timm or the
    preprocessor_config.json of transformers, also beside a downloaded file; EfficientNet-Lite by
    the name of its file; and this package's run folders, by their config.yaml.

    Returns:
        None where nothing is known.
    """
    path = Path(source)
    if not path.exists() and is_name(str(source)):
        if str(source).startswith(TORCHVISION):
            return release_of_torchvision(str(source).removeprefix(TORCHVISION))
        files = [hub_file(str(source), name) for name in CONFIG_FILES]
        return release_of_files([file for file in files if file is not None])
    if run := run_of(path):
        return release_of_run(run)
    if path.is_dir() or path.name in HUB_FILES:
        folder = path if path.is_dir() else path.parent
        return release_of_files([folder / name for name in CONFIG_FILES])
    return LITE if LITE_FILE.match(path.name) else None


def run_of(path: Path) -> Path | None:
    """The run folder that a path is, or that its checkpoint lies in, by the name of its folder.

    A config.yaml beside a folder of downloaded weights says nothing about them.
    """
    folders = (path, *(path.parents[1:2] if path.parent.name in CHECKPOINT_FOLDERS else ()))
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), None)


def data_of_run(run: Path, config: dict[str, Any]) -> LightningDataModule:
    """Build the data of a run to query its image size and normalization; nothing is read.

    Raises:
        InputError: the data does not build.
    """
    try:
        return build_nodes(config, {"data": Node(LightningDataModule)})["data"]
    except InputError as error:
        raise type(error)(f"{run / 'config.yaml'}: {error}") from error


def release_of_run(run: Path) -> Release | None:
    """The preprocessing of a run's own data; see `find_release`."""
    try:
        config = read_yaml(run / "config.yaml")
        data: Any = data_of_run(run, config)
    except InputError:
        return None  # the data is not here, or its class
    mean, std = getattr(data, "mean", None), getattr(data, "std", None)
    if mean is None or std is None:
        return None
    own = getattr(data, "preprocessing", Preprocessing())
    known = Preprocessing(channels(mean), channels(std), own.interpolation)
    return Release(known, {data.image_size: own.crop} if own.crop else {})


def release_of_torchvision(name: str) -> Release | None:
    try:
        transform: Any = weights_of_torchvision(name).transforms()
        size, resized = transform.crop_size[0], transform.resize_size[0]
        known = Preprocessing(
            channels(transform.mean), channels(transform.std), transform.interpolation.value
        )
    except (InputError, AttributeError):  # no such weights; those of detectors have no mean
        return None
    return Release(known, {size: size / resized})


def release_of_files(files: list[Path]) -> Release | None:
    """The first of `CONFIG_FILES` that states a preprocessing."""
    for file in files:
        try:
            config = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        found = release_of_timm(config) if "architecture" in config else of_transformers(config)
        if found is not None:
            return found
    return None


def release_of_timm(config: dict[str, Any]) -> Release:
    """Read timm's config.json; older ones have the keys of `pretrained_cfg` at their top."""
    stated = config.get("pretrained_cfg") or config
    known = Preprocessing(
        channels(stated.get("mean")), channels(stated.get("std")), filter_of(stated)
    )
    crops = {}
    sizes = (("input_size", "crop_pct"), ("test_input_size", "test_crop_pct"))
    for size, share in sizes:
        share = stated.get(share) or stated.get("crop_pct")
        if stated.get(size) and share:
            side = stated[size][-1]
            squash = stated.get("crop_mode") == "squash" and share == 1
            # timm rounds the resized side down
            crops[side] = "squash" if squash else side / floor(side / share)
    return Release(known, crops, config["architecture"])


def of_transformers(config: dict[str, Any]) -> Release | None:
    """Read a preprocessor_config.json. Returns None where it normalizes no images to 0..1."""
    rescale = config.get("rescale_factor", 1 / 255)
    if "image_mean" not in config or abs(rescale * 255 - 1) > 0.01:
        return None
    normalizes = config.get("do_normalize", True)
    known = Preprocessing(
        channels(config["image_mean"]) if normalizes else (0.0, 0.0, 0.0),
        channels(config["image_std"]) if normalizes else (1.0, 1.0, 1.0),
        PILLOW_CODES.get(config.get("resample", 2)),
    )
    resized, cut = side_of(config.get("size")), side_of(config.get("crop_size"))
    if resized is None:
        return Release(known)
    if not config.get("do_center_crop", False) or cut is None:
        return Release(known, {resized: "squash"})
    return Release(known, {cut: cut / resized})


def side_of(size: Any) -> int | None:
    """The side of a square, which transformers writes as a number or by name."""
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    return size if isinstance(size, int) else None


def filter_of(stated: Mapping[str, Any]) -> Interpolation | None:
    name = stated.get("interpolation")
    return name if name in PILLOW_CODES.values() else None


def channels(numbers: Any) -> Channels | None:
    """Three numbers as a tuple; None of anything else."""
    if not isinstance(numbers, list | tuple) or len(numbers) != 3:
        return None
    first, second, third = (float(number) for number in numbers)
    return first, second, third
