"""What `attention-vision profile` measures: the networks of experiments, and each mechanism."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from inspect import Parameter, signature
from pathlib import Path

import torch
from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attention_vision import attention
from attention_vision.classification import Classifier
from attention_vision.config_errors import ConfigError, explain
from attention_vision.config_parser import ArgumentParser, input_error, read_config
from attention_vision.cost import Work, tensors, work
from attention_vision.detection import Detector
from attention_vision.errors import InputError
from attention_vision.generation import SAGAN, ImageToImage
from attention_vision.tasks import TASKS, Task

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
    config = read_config(Path(file))
    if config.get("task") not in TASKS or not {"model", "data"} <= config.keys():
        raise ConfigError(
            f"{file} is no experiment: one has the keys data, model and task, which is"
            f" {', '.join(list(TASKS)[:-1])} or {list(TASKS)[-1]}"
        )
    task = TASKS[config["task"]]()
    nodes = {key: config[key] for key in ("data", "model")}
    known = False
    try:
        with suppress(InputError):  # its folders are not here
            known = build(task, {"data": nodes["data"]}, linked=False)["data"].num_classes >= 0
        module, data = build(task, nodes, linked=known).values()
    except InputError as error:
        raise type(error)(f"{file}: {error}") from error
    return module, data, known


def build(
    task: Task, config: dict, linked: bool
) -> dict[str, LightningModule | LightningDataModule]:
    """What the keys `model` and `data` of an experiment describe, as `Command` builds them."""
    parser = ArgumentParser(exit_on_error=False)
    classes = {"model": task.model, "data": task.data}
    chosen = {"model": task.choose_model, "data": True}
    for key in config:
        parser.add_lightning_class_args(classes[key], key, subclass_mode=chosen[key])
    if linked:
        model = "model.init_args" if task.choose_model else "model"
        for network in task.networks:
            key = f"{model}.{network}.init_args.num_classes"
            parser.link_arguments("data.num_classes", key, apply_on="instantiate")
    try:
        built = parser.instantiate(parser.parse_object(config))
    except ArgumentError as error:
        raise ConfigError(explain(error, parser, classes)) from error
    except (TypeError, ValueError) as error:  # what a constructor refuses
        raise input_error(error) or InputError(" ".join(str(error).split())) from error
    return {key: built[key] for key in ("model", "data") if key in config}


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


def mechanisms() -> dict[str, type[nn.Module]]:
    """Every mechanism of the attention package by its name; positions are none."""
    return {
        name: kind
        for name, kind in vars(attention).items()
        if name in attention.__all__
        and isinstance(kind, type)
        and issubclass(kind, nn.Module)
        and not kind.__module__.endswith("positions")
    }


def contract(kind: type[nn.Module]) -> str:
    """`feature`, `token`, `pool` or `cross`, by what its constructor must be given."""
    required = [
        parameter.name
        for parameter in signature(kind).parameters.values()
        if parameter.default is Parameter.empty
    ]
    contracts = {("channels",): "feature", ("width", "heads"): "token", ("width",): "pool"}
    return contracts.get(tuple(required), "cross")


def place(item: tuple[str, type[nn.Module]]) -> int:
    """Of a mechanism in a table, by contract."""
    return ("feature", "token", "pool", "cross").index(contract(item[1]))


def mechanism_works(
    sizes: Sequence[tuple[int, int, int]], batch_size: int, device: torch.device
) -> Iterator[Work]:
    """Every mechanism at each (C, H, W), with its defaults; heads have 64 channels, or C if fewer.

    Inputs ask for their gradient, as inside a network. `CrossAttention2d` looks at a map of the
    same shape, `AttentionGate` is steered by one of 2 C channels and half the side.
    """
    for channels, height, width in sizes:
        shape = (batch_size, channels, height, width)
        for name, kind in sorted(mechanisms().items(), key=place):
            x = torch.randn(shape, device=device, requires_grad=True)
            tokens = x.detach().flatten(2).mT.contiguous().requires_grad_()
            match contract(kind), name:
                case "feature", _:
                    yield work(name, kind(channels).to(device), x)
                case "token", _:
                    module = kind(channels, max(1, channels // 64)).to(device)
                    on_grid = "grid" in signature(kind.forward).parameters
                    yield work(name, OnGrid(module, (height, width)) if on_grid else module, tokens)
                case "pool", _:
                    yield work(name, kind(channels).to(device), tokens)
                case _, "CrossAttention2d":
                    yield work(name, kind(channels, channels).to(device), x, torch.randn_like(x))
                case _, "AttentionGate":
                    coarse = torch.randn(batch_size, 2 * channels, -(-height // 2), -(-width // 2))
                    yield work(name, kind(channels, 2 * channels).to(device), x, coarse.to(device))
                case _:
                    raise NotImplementedError(f"mechanism_works: say what {name} is fed")


class OnGrid(nn.Module):
    """A mechanism for tokens of a map that need not be square."""

    def __init__(self, attention: nn.Module, grid: tuple[int, int]):
        super().__init__()
        self.attention, self.grid = attention, grid

    def forward(self, tokens: Tensor) -> Tensor:
        return self.attention(tokens, grid=self.grid)
