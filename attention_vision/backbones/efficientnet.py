"""EfficientNet with a slot for attention in every block."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from math import sqrt

import torch
from torch import Tensor, nn
from torchvision.models.efficientnet import MBConv, MBConvConfig
from torchvision.ops import Conv2dNormActivation

from attention_vision.attention import FeatureAttention, SqueezeExcite
from attention_vision.backbones.backbone import Backbone, MeanPool, shape_error
from attention_vision.errors import InputError

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
# What the others multiply B0's width and depth with, and their dropout: as released.
VARIANTS = {
    "b0": (1.0, 1.0, 0.2),
    "b1": (1.0, 1.1, 0.2),
    "b2": (1.1, 1.2, 0.3),
    "b3": (1.2, 1.4, 0.3),
    "b4": (1.4, 1.8, 0.4),
}


def released_squeeze_excite(
    channels: int, hidden: int, activation: Callable[[], nn.Module]
) -> SqueezeExcite:
    """SE as in EfficientNet, of a hidden width that the block knows."""
    return SqueezeExcite(channels, channels // hidden, activation)


class Block(MBConv):
    """Torchvision's inverted residual block with names: expand, depthwise, attention, project.

    In the first stage, which does not expand, there is no `expand`.

    Args:
        config: its channels, kernel and stride.
        stochastic_depth: rate at which its branch is dropped.
        norm: factory of the norms.
        attention: gets the expanded channels, a quarter of the channels at the block's input, and
            the activation.
    """

    def __init__(
        self,
        config: MBConvConfig,
        stochastic_depth: float,
        norm: Callable[[int], nn.Module],
        attention: Callable[..., nn.Module],
    ):
        super().__init__(config, stochastic_depth, norm, attention)
        names = ("expand", "depthwise", "attention", "project")[-len(self.block) :]
        self.block = nn.Sequential(OrderedDict(zip(names, self.block, strict=True)))


class EfficientNet(Backbone):
    """EfficientNet (Tan and Le, arXiv 1905.11946), with any FeatureAttention in SE's place.

    Shape: images (B, in_channels, H, W) -> logits (B, num_classes)

    The network is torchvision's and timm's `efficientnet_b0` to `_b4`. The paper evaluates them at
    224, 240, 260, 300 and 380 pixels. The weights that Google released (timm's `tf_efficientnet_*`)
    have the same names and shapes and belong to another function: their convolutions of stride 2
    pad at the right and bottom alone, and the `eps` of their norms is 1e-3.

    `features` gives the last map of each resolution; the last of them has passed the final 1x1
    convolution.

    Args:
        variant: b0, b1, b2, b3 or b4.
        num_classes: 0 leaves out the head.
        attention: the factory of the slot after every depthwise convolution, given the expanded
            channels; `torch.nn.Identity` is none. Where nothing is given, SE as released, with SiLU
            and a hidden width of a quarter of the channels at the block's *input*: a reduction of
            4 in the first stage and of 24 in the others, which no factory can tell apart by its
            channels.
        stochastic_depth: rate r at which blocks are dropped, i r / n at block i of n, from 0.
        dropout: before the head; the variant's own where none is given, 0.2 to 0.4.
        norm: factory `channels -> module`.
        pool: factory `channels -> module` that maps (B, HW, C) -> (B, C).
        in_channels: 3 for RGB.

    Raises:
        InputError: an unknown variant; `attention` does not map maps to maps, which one built
            layer is asked at construction.
    """

    def __init__(
        self,
        variant: str = "b0",
        num_classes: int = 1000,
        attention: FeatureAttention | None = None,
        stochastic_depth: float = 0.2,
        dropout: float | None = None,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        pool: Callable[[int], nn.Module] = MeanPool,
        in_channels: int = 3,
    ):
        super().__init__()
        if variant not in VARIANTS:
            raise InputError(f"EfficientNet: variant {variant!r} is none of {', '.join(VARIANTS)}")
        width, depth, released_dropout = VARIANTS[variant]
        stages = [MBConvConfig(*stage, width_mult=width, depth_mult=depth) for stage in STAGES]
        conv = partial(Conv2dNormActivation, norm_layer=norm, activation_layer=nn.SiLU)
        self.num_classes = num_classes

        inputs, stride = stages[0].input_channels, 2
        self.stem = conv(in_channels, inputs, 3, stride)
        self.stages = nn.ModuleList()
        total, index = sum(stage.num_layers for stage in stages), 0
        ends: dict[int, int] = {}  # stride -> number of the last stage that has it
        for number, stage in enumerate(stages):
            blocks = []
            for step in (stage.stride, *[1] * (stage.num_layers - 1)):
                config = MBConvConfig(
                    stage.expand_ratio, stage.kernel, step, inputs, stage.out_channels, 1
                )
                rate = stochastic_depth * index / total
                blocks.append(Block(config, rate, norm, slot(attention)))
                inputs, index = stage.out_channels, index + 1
            self.stages.append(nn.Sequential(*blocks))
            stride *= stage.stride
            ends[stride] = number
        self.last = conv(inputs, 4 * inputs, 1)
        *finer, coarsest = (stride for stride in ends if stride >= 4)
        self.strides = (*finer, coarsest)
        self.channels = (*(stages[ends[stride]].out_channels for stride in finer), 4 * inputs)
        self.ends = frozenset(ends[stride] for stride in finer)

        self.pool = pool(4 * inputs)
        self.dropout = nn.Dropout(released_dropout if dropout is None else dropout)
        self.head = nn.Linear(4 * inputs, num_classes) if num_classes else nn.Identity()
        self.initialise(own_attention=attention is None)
        self.check_attention()

    def initialise(self, own_attention: bool) -> None:
        """As released: normal convolutions by their fan-out, a depthwise one's being a group's.

        Torchvision takes all of a depthwise convolution's outputs for its fan-out, and so starts it
        smaller. Attention that was put in keeps its own start.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and (own_attention or ".attention." not in f"{name}."):
                fan_out = module.weight[:, 0].numel() / module.groups
                nn.init.normal_(module.weight, std=sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.num_classes:
            nn.init.uniform_(self.head.weight, *(s / sqrt(self.num_classes) for s in (-1, 1)))
            nn.init.zeros_(self.head.bias)

    def check_attention(self) -> None:
        """Raises InputError when the first block's attention does not map maps to maps."""
        block = self.stages[0][0].block
        shape = (1, block.depthwise.out_channels, 4, 4)
        if reason := shape_error(block.attention, torch.zeros(shape)):
            raise InputError(
                f"EfficientNet: attention {type(block.attention).__name__} does not map {shape} to"
                f" itself: {reason}"
            )

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> maps of strides 4, 8, 16, 32; sizes are rounded up."""
        x = self.stem(images)
        maps = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in self.ends:
                maps.append(x)
        return [*maps, self.last(x)]

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> logits (B, num_classes)."""
        return self.head(self.dropout(self.pool(self.tokens(images))))


def slot(attention: FeatureAttention | None) -> Callable[..., nn.Module]:
    """What builds a block's attention from its expanded channels, hidden width and activation."""
    if attention is None:
        return released_squeeze_excite
    return lambda channels, hidden, activation: attention(channels)
