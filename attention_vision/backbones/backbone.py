"""Base of all backbones, global average pooling, and the check of attention slots."""

from collections.abc import Callable, Mapping
from copy import copy
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from attention_vision.backbones.layer_groups import layers_by_depth
from attention_vision.errors import InputError


class Backbone(nn.Module):
    """Base of networks that compute feature maps and classify images by pooling the last map.

    `network:` and `backbone:` in a configuration file accept its subclasses, which set

    * `in_channels`: of the images, where they are not RGB;
    * `num_classes`: number of logits, 0 for none (then `forward` returns the pooled features);
    * `channels`: channels of each map that `features` returns;
    * `strides`: pixels of the image per pixel of each of these maps;
    * `num_prefix_tokens`: tokens before those of the last map, 1 with a class token;
    * `pool`: maps tokens (B, N, C) -> (B, C);
    * `head`: maps (B, C) -> (B, num_classes).
    """

    in_channels: int = 3
    num_classes: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    num_prefix_tokens: int = 0
    pool: nn.Module
    head: nn.Module

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps, fine to coarse: (B, 3, H, W) -> (B, C_i, H / S_i, W / S_i)."""
        raise NotImplementedError

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last map of images of this size."""
        stride = self.strides[-1]
        return -(-height // stride), -(-width // stride)

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_prefix_tokens + N, C): the last map row by row, for the pool."""
        # Not flatten(2).mT: of a single image its gradient has strides that torch 2.15's batch norm
        # misreads on the CPU, and what stands before the norm gets a wrong gradient.
        return self.features(images)[-1].permute(0, 2, 3, 1).flatten(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (B, 3, H, W) -> (B, num_classes)."""
        return self.head(self.pool(self.tokens(images)))

    def without_head(self) -> Self:
        """A backbone for its maps alone, sharing all other parameters with this one.

        Parameters that no loss reaches must not be there: data-parallel training waits for their
        gradient. So the head goes, and with it a pool that has weights of its own; a pool that adds
        a class token stays, since the token takes part in the attention before it. This backbone
        still classifies.
        """
        bare = copy(self)
        tables = {name: table for name, table in vars(self).items() if isinstance(table, dict)}
        vars(bare).update({name: table.copy() for name, table in tables.items()})
        bare.num_classes, bare.head = 0, nn.Identity()
        if not bare.num_prefix_tokens:
            bare.pool = MeanPool(bare.channels[-1])
        return bare

    def layers(self) -> list[list[str]]:
        """Names of the parameters, layer by layer from the stem to the head: `layers_by_depth`."""
        return layers_by_depth(self, class_token=bool(self.num_prefix_tokens))


class MeanPool(nn.Module):
    """Global average pooling, the mean over tokens. Shape: (B, N, C) -> (B, C)."""

    def __init__(self, width: int):
        super().__init__()

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)


def build_pool(network: Backbone, pool: Callable[[int], nn.Module], width: int) -> nn.Module:
    """Build the pool of a backbone. Raises InputError if it does not map (B, N, C) to (B, C)."""
    module = pool(width)
    if hasattr(module, "num_prefix_tokens"):  # a class token, which is one of the tokens
        return module
    if reason := shape_error(module, torch.zeros(2, 4, width), shape=(2, width)):
        raise InputError(
            f"{type(network).__name__}: pool {type(module).__name__} does not map tokens"
            f" (2, 4, {width}) to (2, {width}): {reason}"
        )
    return module


def shape_error(
    attention: nn.Module,
    x: Tensor,
    named: Mapping[str, Any] = MappingProxyType({}),
    shape: tuple[int, ...] | None = None,
) -> str | None:
    """Reason why a mechanism does not map `x` to its shape, or to another; None if it does.

    Neither the random state nor the module's own state (running means, mode) is changed.

    Args:
        attention: the mechanism.
        x: its input.
        named: keyword arguments of its forward, such as a bias of the attention logits.
        shape: of the output; None for that of `x`.
    """
    modes = {module: module.training for module in attention.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            attention.eval()
            y = attention(x, **named)
    except Exception as error:  # a mechanism in the wrong slot may raise anything
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    finally:
        for module, training in modes.items():
            module.training = training
    return None if y.shape == (shape or x.shape) else f"it gives {tuple(y.shape)}"
