"""ResNet with a slot for attention.

Every block takes an optional padding mask and hides what is padded: DETR's batches contain images
of several sizes, and their features must not depend on the padding.
"""

from collections.abc import Callable
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

from attention_vision.attention import FeatureAttention
from attention_vision.backbones.backbone import (
    Backbone,
    MeanPool,
    build_pool,
    shape_error,
)
from attention_vision.backbones.checkpointing import checkpoint_blocks, recomputable
from attention_vision.backbones.memory_format import arranged
from attention_vision.errors import InputError
from attention_vision.ranges import Fraction, NonNegativeInt, Range, Size, checked

Norm = Callable[[int], nn.Module]


class SubsampledConv2d(nn.Conv2d):
    """A strided 1x1 convolution of the positions that it keeps.

    Shape: (B, C, H, W) -> (B, out_channels, ⌈H / stride⌉, ⌈W / stride⌉)

    With channels last, fewer than 16 of them, and several CPU threads, oneDNN 3.12 computes the
    gradient of a strided 1x1 convolution's weight outside its memory, and the process dies.
    """

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = cast(tuple[int, int], self.stride)
        return F.conv2d(input[..., ::rows, ::columns], self.weight, self.bias)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size (at stride 1), initialized as by He et al. (2015)."""
    padding = dilation * (kernel // 2)
    kind = SubsampledConv2d if kernel == 1 < stride and inputs < 16 else nn.Conv2d
    layer = kind(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def convolve(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """The norm of the convolution. A frozen one is a scale and a shift: in training, of the kernel.

    Evaluation keeps them apart, so that it equals releases to the last digits.
    """
    if not isinstance(norm, FrozenBatchNorm2d) or not norm.training:
        return norm(conv(x))
    if isinstance(conv, SubsampledConv2d):
        return norm(conv(x))
    frozen = dict(norm.named_buffers())
    scale = frozen["weight"] * (frozen["running_var"] + norm.eps).rsqrt()
    shift = frozen["bias"] - frozen["running_mean"] * scale
    kernel = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, kernel, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def shortcut(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Module:
    """The identity, or a 1x1 projection where the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return Projection(conv(inputs, outputs, 1, stride), norm(outputs))


class Projection(nn.Sequential):
    """Convolution and norm."""

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self
        return convolve(cast(nn.Conv2d, conv), norm, x)


def hide(x: Tensor, padding: Tensor | None) -> Tensor:
    """Set (B, C, H, W) to zero where padding (B, 1, H, W) is True; None changes nothing."""
    return x if padding is None else x.masked_fill(padding, 0)


def shrink(padding: Tensor | None, stride: int) -> Tensor | None:
    """Padding after a convolution or pool, whose outputs are at every stride-th input."""
    return padding if padding is None else padding[..., ::stride, ::stride]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; attention after the last norm, before the residual is added."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, dilation: int,
        norm: Norm, attention: FeatureAttention, drop: float,
    ):  # fmt: skip
        super().__init__()
        self.stride = stride
        self.conv1 = conv(inputs, width, 3, stride, dilation)
        self.norm1 = norm(width)
        self.conv2 = conv(width, width, 3, dilation=dilation)
        self.norm2 = norm(width)
        self.attention = attention(width)
        self.drop = StochasticDepth(drop, "row")
        self.shortcut = shortcut(inputs, width, stride, norm)

    @property
    def last_norm(self) -> nn.Module:
        return self.norm2

    @recomputable
    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        after = shrink(padding, self.stride)
        y = convolve(self.conv1, self.norm1, x).relu_()
        y = convolve(self.conv2, self.norm2, hide(y, after))
        y = self.attention(hide(y, after))
        return hide((self.shortcut(x) + self.drop(y)).relu_(), after)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions; the 3x3 carries the stride (as torchvision, "ResNet v1.5")."""

    expansion = 4
    stride_first = False

    def __init__(
        self, inputs: int, width: int, stride: int, dilation: int,
        norm: Norm, attention: FeatureAttention, drop: float,
    ):  # fmt: skip
        super().__init__()
        outputs = width * self.expansion
        first, second = (stride, 1) if self.stride_first else (1, stride)
        self.stride = stride
        self.conv1 = conv(inputs, width, 1, first)
        self.norm1 = norm(width)
        self.conv2 = conv(width, width, 3, second, dilation)
        self.norm2 = norm(width)
        self.conv3 = conv(width, outputs, 1)
        self.norm3 = norm(outputs)
        self.attention = attention(outputs)
        self.drop = StochasticDepth(drop, "row")
        self.shortcut = shortcut(inputs, outputs, stride, norm)

    @property
    def last_norm(self) -> nn.Module:
        return self.norm3

    @recomputable
    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        after = shrink(padding, self.stride)
        y = convolve(self.conv1, self.norm1, x).relu_()
        y = convolve(
            self.conv2, self.norm2, hide(y, after if self.stride_first else padding)
        ).relu_()
        y = convolve(self.conv3, self.norm3, y)
        y = self.attention(hide(y, after))
        return hide((self.shortcut(x) + self.drop(y)).relu_(), after)


class StrideFirstBottleneck(Bottleneck):
    """The first 1x1 carries the stride (He et al., 2015, and the Caffe models)."""

    stride_first = True


class Stem(nn.Sequential):
    """Convolution, norm, ReLU and pool."""

    def __init__(self, inputs: int, width: int, kind: Literal["imagenet", "cifar"], norm: Norm):
        super().__init__()
        kernel, stride = (7, 2) if kind == "imagenet" else (3, 1)
        self.conv = conv(inputs, width, kernel, stride)
        self.norm = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1) if kind == "imagenet" else nn.Identity()
        self.stride = 4 if kind == "imagenet" else 1

    def forward(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.relu(convolve(self.conv, self.norm, hide(images, padding)))
        # Zeros pass through the pool like the border it sees alone: nothing is below 0 after ReLU.
        x = self.pool(hide(x, shrink(padding, self.conv.stride[0])))
        return hide(x, shrink(padding, self.stride))


class Stage(nn.Sequential):
    """Blocks of one resolution, the first of which may halve it, and a slot for attention."""

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        *blocks, attention = self
        for block in cast(list[BasicBlock | Bottleneck], blocks):
            x = block(x, padding)
            padding = shrink(padding, block.stride)
        return hide(attention(x), padding)


# Blocks per stage. 18 to 152: He et al. (arXiv 1512.03385), Table 1. 8 to 110: the three stages of
# its section 4.2, for width=16 and the CIFAR stem. 10 is the smallest that has four stages.
DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    8: (BasicBlock, (1, 1, 1)),
    20: (BasicBlock, (3, 3, 3)),
    56: (BasicBlock, (9, 9, 9)),
    110: (BasicBlock, (18, 18, 18)),
}


@checked
class ResNet(Backbone):
    """ResNet (He et al., arXiv 1512.03385), with any FeatureAttention in its blocks or stages.

    Shape: images (B, in_channels, H, W) -> logits (B, num_classes)

    `ResNet(50, partial(SqueezeExcite, reduction=16))` is SE-ResNet-50 and `ResNet(50, CBAM)` is
    CBAM-ResNet-50, both with the stride where torchvision and CBAM's released code have it. Without
    attention the network is torchvision's.

    SENet's released Caffe models of ResNets have the stride in the first 1x1 (`stride_first`), and
    their 3x3 pool of stride 2 starts at the image's corner and rounds up, where ours starts one
    pixel before it: those weights would not give their accuracy here and are not known to
    `load_official`.

    Args:
        depth: 18, 34, 50, 101, 152, or 10; 8, 20, 56, 110 have three stages (CIFAR).
        attention: the factory of the slot; `torch.nn.Identity` is none.
        num_classes: 0 leaves out the head.
        attention_at: `"blocks"`, inside every block before the residual is added, or `"stages"`,
            once after the last block.
        attention_stages: the stages that have attention, from 1. `(4,)` with
            `attention_at="stages"` is attention at the end of the network.
        stem: `"imagenet"` is a 7x7 convolution and a pool, stride 4 in all; `"cifar"` is a 3x3
            convolution of stride 1.
        width: channels of the first stage (before a bottleneck's expansion); doubled in each stage.
        dilation: the last stage dilates in place of its stride ("DC5" in DETR).
        stride_first: the first convolution of a bottleneck carries the stride, not the 3x3. The
            costs in SENet's and CBAM's tables are of this network, 3.858 G multiply-adds for
            ResNet-50; torchvision's, and the one that CBAM released, needs 4.089 G. Depths of two
            convolutions a block do not change.
        norm: e.g. `torchvision.ops.FrozenBatchNorm2d` in detection.
        trainable_stages: how many are trained, counted from the end, 5 being all and 3 what DETR
            does; the first is the stem. The others get no gradient; their batch norms follow the
            data all the same, unless they are frozen ones.
        pool: factory `channels -> module` that maps (B, HW, C) -> (B, C): `MeanPool` or
            `AttentionPool`.
        stochastic_depth: rate at which the last block is dropped; linear from 0 at the first.
        zero_init_residual: start the last norm of every block at 0, so that blocks start as the
            identity (arXiv 1706.02677).
        in_channels: 3 for RGB.
        checkpointing: compute the activations of each block again in the backward pass, in place
            of keeping them: less memory, one more forward pass, the same gradients.

    Raises:
        InputError: `depth`, `attention_at` or `stem` is unknown, a stage is outside 1..4;
            `attention` does not map maps to maps, which is checked at construction.
    """

    def __init__(
        self,
        depth: int = 50,
        attention: FeatureAttention = nn.Identity,
        num_classes: NonNegativeInt = 1000,
        attention_at: Literal["blocks", "stages"] = "blocks",
        attention_stages: tuple[int, ...] = (1, 2, 3, 4),
        stem: Literal["imagenet", "cifar"] = "imagenet",
        width: Size = 64,
        dilation: bool = False,
        stride_first: bool = False,
        norm: Norm = nn.BatchNorm2d,
        trainable_stages: Annotated[int, Range(0, 5)] = 5,
        pool: Callable[[int], nn.Module] = MeanPool,
        stochastic_depth: Fraction = 0.0,
        zero_init_residual: bool = False,
        in_channels: Size = 3,
        checkpointing: bool = False,
    ):
        super().__init__()
        if depth not in DEPTHS:
            raise InputError(f"ResNet: depth {depth} is not one of {', '.join(map(str, DEPTHS))}")
        if not set(attention_stages) <= {1, 2, 3, 4}:
            raise InputError(f"ResNet: attention_stages {attention_stages} are not all in 1..4")
        if attention_at not in ("blocks", "stages"):
            raise InputError(f"ResNet: attention_at {attention_at!r} is neither blocks nor stages")
        if stem not in ("imagenet", "cifar"):
            raise InputError(f"ResNet: stem {stem!r} is neither imagenet nor cifar")
        block, blocks = DEPTHS[depth]
        if stride_first and block is Bottleneck:
            block = StrideFirstBottleneck
        self.num_classes, self.in_channels = num_classes, in_channels

        self.stem = Stem(in_channels, width, stem, norm)
        stride = self.stem.stride
        self.stages = nn.ModuleList()
        channels, strides, inputs = [], [], width
        rates = iter(torch.linspace(0, stochastic_depth, sum(blocks), device="cpu").tolist())
        for number, count in enumerate(blocks, start=1):
            here = attention if number in attention_stages else nn.Identity
            inside = here if attention_at == "blocks" else nn.Identity
            after = here if attention_at == "stages" else nn.Identity
            dilated = dilation and number == len(blocks)
            step = 1 if number == 1 or dilated else 2
            stage = Stage()
            for index in range(count):
                first = index == 0  # of a dilated stage sees undilated maps still, as torchvision's
                shape = (inputs, width, step if first else 1, 2 if dilated and not first else 1)
                stage.append(block(*shape, norm, inside, next(rates)))
                inputs = width * block.expansion
            stage.add_module("attention", after(inputs))
            self.stages.append(stage)
            stride *= step
            channels.append(inputs)
            strides.append(stride)
            width *= 2
        self.channels, self.strides = tuple(channels), tuple(strides)

        self.pool = build_pool(self, pool, inputs)
        self.head = nn.Linear(inputs, num_classes) if num_classes else nn.Identity()
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, block):
                    nn.init.zeros_(cast(Tensor, module.last_norm.weight))
        for part in [self.stem, *self.stages][: 5 - trainable_stages]:
            part.requires_grad_(False)
        self.check_attention(inside_blocks=attention_at == "blocks")
        if checkpointing:
            checkpoint_blocks(self)

    def check_attention(self, inside_blocks: bool) -> None:
        """Raise InputError when the slot's first attention does not map maps to maps."""
        slot = "0.attention" if inside_blocks else "attention"
        for number, channels in enumerate(self.channels):
            attention = self.get_submodule(f"stages.{number}.{slot}")
            if isinstance(attention, nn.Identity):
                continue
            shape = (1, channels, 4, 4)
            if reason := shape_error(attention, torch.zeros(shape)):
                raise InputError(
                    f"ResNet: attention {type(attention).__name__} does not map {shape} to itself:"
                    f" {reason}"
                )
            return

    def features(self, images: Tensor, padding_mask: Tensor | None = None) -> list[Tensor]:
        """(B, in_channels, H, W) -> one map a stage, strides 4 8 16 32 with the ImageNet stem.

        Args:
            padding_mask: (B, H, W) bool, True where padded. Padded positions are then zero before
                every convolution and pool that sees neighbours, before attention, and in the maps,
                as is the border around an image without padding. In a map of stride S, positions
                in `padding_mask[:, ::S, ::S]` are padded. Maps of an image then do not depend on
                its padding, unless attention pools over the whole map or a batch norm is in
                training.
        """
        padding = None if padding_mask is None else padding_mask[:, None]
        x = self.stem(arranged(self, images), padding)
        maps = []
        for stage, stride in zip(self.stages, (self.stem.stride, *self.strides[:-1]), strict=True):
            x = stage(x, shrink(padding, stride))
            maps.append(x)
        return maps
