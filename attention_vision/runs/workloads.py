"""Networks of experiments on made-up images, for measurement."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.nn.functional import cross_entropy

from attention_vision.classification import Classifier
from attention_vision.config.build import build
from attention_vision.detection import Detector
from attention_vision.errors import ConfigError, InputError
from attention_vision.generation import SAGAN, ImageToImage
from attention_vision.profiling.cost import Work, tensors, work
from attention_vision.runs.tasks import TASKS
from attention_vision.yaml_json import read_yaml

OBJECTS = 5  # of a made-up image; COCO has 7 on average


def read_experiment(file: str) -> tuple[LightningModule, LightningDataModule, bool]:
    """The module and the data of an experiment; whether the data gave its number of classes.

    Nothing is read from the data's folders but the names of classes; where these are missing, the
    network has its own default.

    Raises:
        InputError: there is no such file, or it is no experiment, or does not build.
    """
    if not Path(file).is_file():
        raise InputError(f"{file}: there is no such file")
    config = read_yaml(Path(file))
    if config.get("task") not in TASKS or not {"model", "data"} <= config.keys():
        raise ConfigError(
            f"{file} is no experiment: one has the keys data, model and task, which is"
            f" {', '.join(list(TASKS)[:-1])} or {list(TASKS)[-1]}"
        )
    task = TASKS[config["task"]]()
    nodes = {key: task.nodes[key] for key in ("model", "data")}
    known = False
    try:
        with suppress(InputError):  # its folders are not here
            known = build(config, {"data": nodes["data"]})["data"].num_classes >= 0
        module, data = build(config, nodes, task.links if known else ()).values()
    except InputError as error:
        raise type(error)(f"{file}: {error}") from error
    return module, data, known


def image_size(data: LightningDataModule) -> tuple[int, ...]:
    """What networks are fed in training; of photographs with objects, 4 : 3 as most of COCO."""
    if hasattr(data, "patch"):
        return tuple(data.patch)
    if hasattr(data, "image_size") or hasattr(data, "size"):
        return (getattr(data, "image_size", None) or data.size,) * 2
    short = data.recipe.evaluation
    return short, short * 4 // 3


def experiment_works(
    name: str, module: LightningModule, size: Sequence[int], batch_size: int
) -> list[Work]:
    """The networks of a module on made-up images: two of a GAN, each by itself, or one.

    Raises:
        InputError: images of `size` do not fit.
    """
    device = next(module.parameters()).device

    def images(channels: int = 3) -> Tensor:
        return torch.randn(batch_size, channels, *size, device=device)

    def labels(num_classes: int) -> Tensor:
        return torch.randint(max(1, num_classes), (batch_size,), device=device)

    match module:
        case Classifier(network=network):
            batch, classes = images(), labels(network.num_classes)

            def loss() -> Tensor:  # of both heads where there are two
                return sum(cross_entropy(logits, classes) for logits in tensors(module(batch)))

            return [Work(name, network, lambda: module(batch), loss, (batch,))]
        case Detector(network=network):
            batch, targets = images(), [objects(device) for _ in range(batch_size)]
            padding = torch.zeros(batch_size, *size, dtype=torch.bool, device=device)
            return [
                Work(
                    name, network, lambda: network(batch, padding),
                    lambda: module.losses((batch, padding, targets))["total"], (batch,),
                )
            ]  # fmt: skip
        case ImageToImage(network=network):
            if len(size) != network.dimensions:
                raise InputError(
                    f"{name}: images of {len(size)} sides for a network of {network.dimensions}"
                    " dimensions; give as many to --image_size"
                )
            batch = images(network.in_channels)

            def loss() -> Tensor:
                output = network(batch)
                segments = network.num_classes > 0
                target = output[:, 0].detach().long() * 0 if segments else torch.zeros_like(output)
                return module.objective.loss(output, target)

            return [Work(name, network, lambda: network(batch), loss, (batch,))]
        case SAGAN(generator=generator, discriminator=discriminator):
            if set(size) != {generator.size}:
                raise InputError(
                    f"{name}: its networks are built for images of {generator.size} pixels, for"
                    " --image_size nothing else"
                )
            z = torch.randn(batch_size, generator.latent, device=device)
            classes = labels(generator.num_classes)
            return [
                work(f"{name}, generator", generator, z, classes),
                work(f"{name}, discriminator", discriminator, images(), classes),
            ]
    raise InputError(f"{name}: {type(module).__name__} is none of the models that profile knows")


def objects(device: torch.device) -> dict[str, Tensor]:
    """Targets of one image: boxes of a fifth of its sides, at random places."""
    centres = 0.1 + 0.8 * torch.rand(OBJECTS, 2, device=device)
    return {
        "boxes": torch.cat((centres, torch.full_like(centres, 0.2)), 1),
        "labels": torch.zeros(OBJECTS, dtype=torch.int64, device=device),
        "iscrowd": torch.zeros(OBJECTS, dtype=torch.int64, device=device),
    }
