"""EfficientNet with a slot for attention in every block."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from math import ceil, sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models.efficientnet import MBConvConfig
from torchvision.ops import StochasticDepth

from attention_vision.attention import FeatureAttention, SqueezeExcite
from attention_vision.backbones.backbone import (
    Backbone,
    MeanPool,
    build_pool,
    shape_error,
)
from attention_vision.backbones.checkpointing import checkpoint_blocks, recomputable
from attention_vision.backbones.memory_format import arranged
from attention_vision.errors import InputError
from attention_vision.ranges import Fraction, NonNegativeInt, Size, checked

# Expansion, kernel, stride, channels in, channels out, blocks: of B0 (arXiv 1905.11946, Table 1).
STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
# Factors of B0's width and depth, and dropout, of the other variants, as released.
VARIANTS = {
    "b0": (1.0, 1.0, 0.2),
    "b1": (1.0, 1.1, 0.2),
    "b2": (1.1, 1.2, 0.3),
    "b3": (1.2, 1.4, 0.3),
    "b4": (1.4, 1.8, 0.4),
}
# Those of EfficientNet-Lite, efficientnet_lite_builder.py in the release (tensorflow/tpu).
LITE_VARIANTS = {
    "lite0": (1.0, 1.0, 0.2),
    "lite1": (1.0, 1.1, 0.2),
    "lite2": (1.1, 1.2, 0.3),
    "lite3": (1.2, 1.4, 0.3),
    "lite4": (1.4, 1.8, 0.3),
}
LITE_STEM, LITE_LAST = 32, 1280  # channels, of every width

Padding = Literal["symmetric", "same"]
SAME_EPS = 1e-3  # of TensorFlow's norms, with a momentum that torch counts as 0.01


class SameConv2d(nn.Conv2d):
    """Convolution with the padding that TensorFlow calls SAME.

    Shape: (B, C, H, W) -> (B, out_channels, ⌈H / stride⌉, ⌈W / stride⌉)

    As much is padded as the last window needs; an odd number has its larger half at the bottom and
    right, so that an even map is padded there alone where the stride is 2 and the kernel 3.
    """

    def forward(self, input: Tensor) -> Tensor:
        height, width = (
            max((ceil(size / stride) - 1) * stride + kernel - size, 0)
            for size, stride, kernel in zip(
                input.shape[2:], self.stride, self.kernel_size, strict=True
            )
        )
        sides = (width // 2, width - width // 2, height // 2, height - height // 2)
        return super().forward(pad(input, sides))


def convolution(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    *,
    norm: Callable[[int], nn.Module],
    activation: Callable[[], nn.Module] | None,
    padding: Padding,
) -> nn.Sequential:
    """Build a convolution without bias, its norm and its activation."""
    layers: list[nn.Module] = []
    if padding == "same" and stride > 1:  # of stride 1 both pad alike
        layers.append(SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False))
    else:
        around = (kernel - 1) // 2
        layers.append(nn.Conv2d(inputs, outputs, kernel, stride, around, groups=groups, bias=False))
    layers.append(norm(outputs))
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


def released_squeeze_excite(
    channels: int, hidden: int, activation: Callable[[], nn.Module]
) -> SqueezeExcite:
    """Build SE with the hidden width that EfficientNet's block passes."""
    return SqueezeExcite(channels, channels // hidden, activation)


class Block(nn.Module):
    """Inverted residual block of expand, depthwise, attention and project.

    Shape: (B, inputs, H, W) -> (B, outputs, ⌈H / stride⌉, ⌈W / stride⌉)

    The first stage, whose factor is 1, has no `expand`.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        expansion: factor from the inputs to the channels of the depthwise convolution.
        kernel: side of the depthwise convolution.
        stride: of the depthwise convolution.
        stochastic_depth: rate at which its branch is dropped.
        attention: factory from the expanded channels, a quarter of the inputs, and the activation.
        conv: as `convolution`, its norm and padding given.
        activation: after the first two convolutions, and of the attention as released.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        kernel: int,
        stride: int,
        stochastic_depth: float,
        attention: Callable[..., nn.Module],
        conv: Callable[..., nn.Sequential],
        activation: Callable[[], nn.Module],
    ):
        super().__init__()
        wide = inputs * expansion
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion != 1:
            parts["expand"] = conv(inputs, wide, 1, activation=activation)
        parts["depthwise"] = conv(wide, wide, kernel, stride, wide, activation=activation)
        parts["attention"] = attention(wide, max(1, inputs // 4), activation=activation)
        parts["project"] = conv(wide, outputs, 1, activation=None)
        self.block = nn.Sequential(parts)
        self.stochastic_depth = StochasticDepth(stochastic_depth, "row")
        self.is_residual = stride == 1 and inputs == outputs

    @recomputable
    def forward(self, x: Tensor) -> Tensor:
        branch = self.block(x)
        return self.stochastic_depth(branch) + x if self.is_residual else branch


@checked
class EfficientNet(Backbone):
    """EfficientNet (Tan and Le, arXiv 1905.11946), with any FeatureAttention in SE's place.

    Shape: images (B, in_channels, H, W) -> logits (B, num_classes)

    The network is torchvision's and timm's `efficientnet_b0` to `_b4`. The paper evaluates them at
    224, 240, 260, 300 and 380 pixels. `lite0` to `lite4` are EfficientNet-Lite: ReLU6, no SE, and a
    stem, a last convolution and first and last stages that do not grow; their release evaluates
    them at 224, 240, 260, 280 and 300 pixels.

    The weights that Google released (timm's `tf_efficientnet_*`, and those of efficientnet_pytorch)
    have the same shapes and belong to another function, `padding="same"`.

    `features` gives the last map of each resolution; the last of them has passed the final 1x1
    convolution.

    Args:
        variant: b0 to b4, or lite0 to lite4.
        num_classes: 0 leaves out the head.
        attention: the factory of the slot after every depthwise convolution, given the expanded
            channels; `torch.nn.Identity` is none, as in Lite. Else, where nothing is given, SE as
            released, with the network's activation
            and a hidden width of a quarter of the channels at the block's *input*: a reduction of
            4 in the first stage and of 24 in the others, which no factory can tell apart by its
            channels.
        stochastic_depth: rate r at which blocks are dropped, i r / n at block i of n, from 0.
        dropout: before the head; the variant's own where none is given, 0.2 to 0.4.
        norm: factory `channels -> module`. Where none is given, `BatchNorm2d`, with padding "same"
            as TensorFlow's: eps 1e-3 and momentum 0.01.
        pool: factory `channels -> module` that maps (B, HW, C) -> (B, C).
        in_channels: 3 for RGB.
        activation: factory; SiLU where none is given, and ReLU6 in Lite.
        padding: "symmetric" as of torchvision and timm's own weights, or "same" as TensorFlow pads
            convolutions of stride 2 (`SameConv2d`), for weights that were trained with it.
        checkpointing: compute the activations of each block again in the backward pass, in place
            of keeping them: less memory, one more forward pass, the same gradients.

    Raises:
        InputError: `variant` or `padding` is unknown; `attention` does not map maps to maps, which
            is checked at construction.
    """

    def __init__(
        self,
        variant: str = "b0",
        num_classes: NonNegativeInt = 1000,
        attention: FeatureAttention | None = None,
        stochastic_depth: Fraction = 0.2,
        dropout: Fraction | None = None,
        norm: Callable[[int], nn.Module] | None = None,
        pool: Callable[[int], nn.Module] = MeanPool,
        in_channels: Size = 3,
        activation: Callable[[], nn.Module] | None = None,
        padding: Padding = "symmetric",
        checkpointing: bool = False,
    ):
        super().__init__()
        released = VARIANTS | LITE_VARIANTS
        if variant not in released:
            raise InputError(
                f"EfficientNet: variant {variant!r} is not one of {', '.join(released)}"
            )
        if padding not in ("symmetric", "same"):
            raise InputError(f"EfficientNet: padding {padding!r} is neither symmetric nor same")
        lite = variant in LITE_VARIANTS
        if norm is None:
            same = partial(nn.BatchNorm2d, eps=SAME_EPS, momentum=0.01)
            norm = same if padding == "same" else nn.BatchNorm2d
        if activation is None:
            activation = partial(nn.ReLU6 if lite else nn.SiLU)
        make_attention = slot(attention, lite)
        conv = partial(convolution, norm=norm, padding=padding)
        stages, released_dropout = stages_of(variant)
        self.variant, self.padding = variant, padding
        self.num_classes, self.in_channels = num_classes, in_channels

        inputs, stride = LITE_STEM if lite else stages[0].input_channels, 2
        self.stem = conv(in_channels, inputs, 3, stride, activation=activation)
        self.stages = nn.ModuleList()
        total, index = sum(stage.num_layers for stage in stages), 0
        ends: dict[int, int] = {}  # stride -> number of the last stage that has it
        for number, stage in enumerate(stages):
            blocks = []
            for step in (stage.stride, *[1] * (stage.num_layers - 1)):
                rate = stochastic_depth * index / total
                blocks.append(
                    Block(
                        inputs, stage.out_channels, int(stage.expand_ratio), stage.kernel, step,
                        rate, make_attention, conv, activation,
                    )
                )  # fmt: skip
                inputs, index = stage.out_channels, index + 1
            self.stages.append(nn.Sequential(*blocks))
            stride *= stage.stride
            ends[stride] = number
        outputs = LITE_LAST if lite else 4 * inputs
        self.last = conv(inputs, outputs, 1, activation=activation)
        *finer, coarsest = (stride for stride in ends if stride >= 4)
        self.strides = (*finer, coarsest)
        self.channels = (*(stages[ends[stride]].out_channels for stride in finer), outputs)
        self.ends = frozenset(ends[stride] for stride in finer)

        self.pool = build_pool(self, pool, outputs)
        self.dropout = nn.Dropout(released_dropout if dropout is None else dropout)
        self.head = nn.Linear(outputs, num_classes) if num_classes else nn.Identity()
        self.initialize(own_attention=attention is None)
        self.check_attention()
        if checkpointing:
            checkpoint_blocks(self)

    def initialize(self, own_attention: bool) -> None:
        """Initialize convolutions normally, by the fan-out of a group, as released.

        Torchvision counts all outputs of a depthwise convolution as its fan-out, and so initializes
        it smaller. An attention given as `attention` keeps its own initialization.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and (own_attention or ".attention." not in f"{name}."):
                fan_out = module.weight[:, 0].numel() / module.groups
                nn.init.normal_(module.weight, std=sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.head, nn.Linear):
            bound = 1 / sqrt(self.num_classes)
            nn.init.uniform_(self.head.weight, -bound, bound)
            nn.init.zeros_(self.head.bias)

    def check_attention(self) -> None:
        """Raise InputError when the first block's attention does not map maps to maps."""
        attention = self.get_submodule("stages.0.0.block.attention")
        channels = self.get_parameter("stages.0.0.block.depthwise.0.weight").shape[0]
        shape = (1, channels, 4, 4)
        if reason := shape_error(attention, torch.zeros(shape)):
            raise InputError(
                f"EfficientNet: attention {type(attention).__name__} does not map {shape} to"
                f" itself: {reason}"
            )

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> maps of strides 4, 8, 16, 32; sizes are rounded up."""
        x = self.stem(arranged(self, images))
        maps = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in self.ends:
                maps.append(x)
        return [*maps, self.last(x)]

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> logits (B, num_classes)."""
        return self.head(self.dropout(self.pool(self.tokens(images))))


def stages_of(variant: str) -> tuple[list[MBConvConfig], float]:
    """The stages of a variant in its width and depth, and its dropout."""
    lite = variant in LITE_VARIANTS
    width, depth, dropout = (VARIANTS | LITE_VARIANTS)[variant]
    fixed = (0, len(STAGES) - 1) if lite else ()
    stages = [
        MBConvConfig(*stage, width_mult=width, depth_mult=1.0 if number in fixed else depth)
        for number, stage in enumerate(STAGES)
    ]
    return stages, dropout


def slot(attention: FeatureAttention | None, lite: bool) -> Callable[..., nn.Module]:
    """Factory of a block's attention from its expanded channels, hidden width and activation."""
    if attention is not None:
        return lambda channels, hidden, activation: attention(channels)
    if lite:
        return lambda channels, hidden, activation: nn.Identity()
    return released_squeeze_excite
