"""CompactResNet: a network for 32-pixel images that trains in half a PFLOP."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, gelu, max_pool2d

from attention_vision.attention import FeatureAttention
from attention_vision.backbones.backbone import (
    Backbone,
    build_pool,
    shape_error,
)
from attention_vision.backbones.memory_format import arranged
from attention_vision.errors import InputError
from attention_vision.ranges import NonNegative, NonNegativeInt, Size, checked

# Of normalized CIFAR-10: the correlations of neighboring pixels and of red, green and blue.
NEIGHBOR = 0.93
COLORS = ((1.0, 0.92, 0.79), (0.92, 1.0, 0.92), (0.79, 0.92, 1.0))


def whitening_filters(in_channels: int, size: int = 2, floor: float = 5e-4) -> Tensor:
    """Filters that make the pixels of a patch of a natural image uncorrelated, of variance 1.

    They are the eigenvectors of the patches' covariance divided by the roots of its eigenvalues, as
    in Page, "How to train your ResNet", part 8 (2019). The covariance is not measured on the data
    but modeled, so that a network is whole when it is built: pixels at (dx, dy) are correlated by
    `NEIGHBOR` ** (|dx| + |dy|), colors by `COLORS`; other numbers of channels are uncorrelated.

    Args:
        in_channels: of the images.
        size: side of the patches, in pixels.
        floor: is added to the eigenvalues.

    Returns:
        (n, in_channels, size, size), n = in_channels · size², the largest eigenvalue first.
    """
    steps = torch.arange(size, dtype=torch.float64)
    line = NEIGHBOR ** (steps[:, None] - steps).abs()
    colors = torch.eye(in_channels, dtype=torch.float64)
    if in_channels == len(COLORS):
        colors = torch.tensor(COLORS, dtype=torch.float64)
    values, vectors = torch.ones(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for part in (colors, line, line):  # not of their product, in which eigenvalues are equal
        own_values, own_vectors = torch.linalg.eigh(part)
        own_vectors = own_vectors * own_vectors[-1].sign().where(own_vectors[-1] != 0, 1.0)
        values, vectors = torch.kron(values, own_values), torch.kron(vectors, own_vectors)
    order = values.round(decimals=9).argsort(descending=True, stable=True)
    filters = (vectors / (values + floor).sqrt()).T[order]
    return filters.float().reshape(-1, in_channels, size, size)


class Whitening(nn.Conv2d):
    """Whitening filters and their negatives, which are not trained; their biases are.

    Shape: (B, in_channels, H, W) -> (B, 8 · in_channels, H - 1, W - 1)
    """

    def __init__(self, in_channels: int):
        filters = whitening_filters(in_channels)
        super().__init__(in_channels, 2 * len(filters), filters.shape[-1])
        self.weight.requires_grad_(False).copy_(torch.cat([filters, -filters]))
        nn.init.zeros_(cast(Tensor, self.bias))


class BiasNorm(nn.BatchNorm2d):
    """Batch norm without a scale, whose bias learns faster.

    The bias that is added is `gain` times the parameter: under SGD it moves as if its learning rate
    were gain² that of the others. Jordan (arXiv 2404.00498, section 3.4) multiplies the rate by 64.

    Shape: (B, C, H, W) -> (B, C, H, W)
    """

    def __init__(self, channels: int, gain: float = 8.0, momentum: float = 0.4):
        super().__init__(channels, momentum=momentum)
        self.gain = gain
        self.weight = None  # pyright: ignore[reportAttributeAccessIssue] as with affine=False

    def forward(self, input: Tensor) -> Tensor:
        assert self.bias is not None
        assert self.num_batches_tracked is not None
        if self.training:
            self.num_batches_tracked.add_(1)
        return batch_norm(
            input, self.running_mean, self.running_var, None, self.bias * self.gain,
            self.training, cast(float, self.momentum), self.eps,
        )  # fmt: skip


def identity_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution whose first outputs start as its inputs (arXiv 1706.00388)."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight[: min(inputs, outputs)])
    return layer


class CompactStage(nn.Module):
    """A convolution and a pool, which halve the map, and a residual block with attention.

    Shape: (B, inputs, H, W) -> (B, width, H // 2, W // 2)
    """

    def __init__(self, inputs: int, width: int, attention: FeatureAttention, gain: float):
        super().__init__()
        self.conv1 = identity_conv(inputs, width)
        self.norm1 = BiasNorm(width, gain)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = BiasNorm(width, gain)
        self.attention = attention(width)

    def forward(self, x: Tensor) -> Tensor:
        x = gelu(self.norm1(max_pool2d(self.conv1(x), 2)))
        return gelu(x + self.attention(self.norm2(self.conv2(x))))


class MaxPool(nn.Module):
    """The largest value of each channel over the tokens. Shape: (B, N, C) -> (B, C)."""

    def __init__(self, width: int):
        super().__init__()

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.amax(1)


class ScaledHead(nn.Linear):
    """A linear map of features that are scaled down. Shape: (B, C) -> (B, num_classes)."""

    def __init__(self, width: int, num_classes: int, scale: float):
        super().__init__(width, num_classes, bias=False)
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input * self.scale)


@checked
class CompactResNet(Backbone):
    """A compact residual network for small images, with a slot for attention in each stage.

    Shape: images (B, in_channels, H, W), H and W at least 16 -> logits (B, num_classes)

    Three stages behind whitening filters; at 32 pixels 0.118 G multiply-adds and 2.0 M parameters.
    It takes from the networks that were made to reach 94 % of CIFAR-10 in the least time (Page
    2018; Jordan, arXiv 2404.00498, and its airbench94: the whitening, convolutions that start as
    identities, fast biases, widths, the scale of the head) and has a residual block in each stage,
    so that attention has the place that it has in a ResNet: behind the last norm, before the
    residual is added. With `experiments/classification/compact_resnet_cifar10.yaml`, an attention
    module is compared in minutes of a GPU.

    Args:
        attention: the factory of the slots; `torch.nn.Identity` is none.
        num_classes: 0 leaves out the head.
        widths: channels of the stages.
        bias_gain: factor of the norms' biases, see `BiasNorm`.
        head_scale: factor of the features before the head.
        pool: factory `channels -> module` that maps (B, HW, C) -> (B, C).
        in_channels: 3 for RGB.

    Raises:
        InputError: `attention` does not map maps to maps, which is checked at construction.
    """

    def __init__(
        self,
        attention: FeatureAttention = nn.Identity,
        num_classes: NonNegativeInt = 10,
        widths: tuple[Size, Size, Size] = (64, 256, 256),
        bias_gain: NonNegative = 8.0,
        head_scale: NonNegative = 1 / 9,
        pool: Callable[[int], nn.Module] = MaxPool,
        in_channels: Size = 3,
    ):
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.stem = Whitening(in_channels)
        inputs = (self.stem.out_channels, *widths)
        self.stages = nn.ModuleList(
            CompactStage(before, width, attention, bias_gain)
            for before, width in zip(inputs[:-1], widths, strict=True)
        )
        self.channels, self.strides = widths, (2, 4, 8)
        self.pool = build_pool(self, pool, widths[-1])
        self.head = nn.Identity()
        if num_classes:
            self.head = ScaledHead(widths[-1], num_classes, head_scale)
        slot, shape = self.get_submodule("stages.0.attention"), (1, widths[0], 4, 4)
        if reason := shape_error(slot, torch.zeros(shape)):
            raise InputError(
                f"CompactResNet: attention {type(slot).__name__} does not map {shape} to itself:"
                f" {reason}"
            )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return (height - 1) // 8, (width - 1) // 8

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> one map a stage, of strides 2, 4 and 8.

        The whitening filters take a pixel from each side, and pools round down: of 32 pixels the
        maps have 15, 7 and 3.
        """
        x = gelu(self.stem(arranged(self, images)))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
