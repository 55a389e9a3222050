"""Attention U-Net for images and volumes (arXiv 1804.03999); without gates it is the U-Net.

Layout of the release, ozan-oktay/Attention-Gated-Networks: two 3x3 convolutions with batch norms
per level, maxima of 2x2 downwards, linear interpolation upwards, a 1x1 convolution as head.

Parameters of the 3-D network of width 16, one channel in and four classes out, as in the release:

| network | parameters | paper, Table 1 |
|---|---|---|
| U-Net, `attention=nn.Identity` | 5,887,028 | 5.88 M |
| with `deep_supervision`, unet_CT_dsv_3D | 5,888,004 | |
| one `AttentionGate` of hidden = channels per level | 6,124,695 | |
| `MultiGate` | 6,406,042 | 6.40 M |
| with `deep_supervision` | 6,407,018 | 6.40 M |
| and `gating=GatingSignal`: unet_CT_multi_att_dsv_3D | 6,473,322 | |

The paper draws one gate per level; its count is that of two, without the gating signal's layer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_vision.attention import AttentionGate, FeatureAttention
from attention_vision.backbones.memory_format import arranged
from attention_vision.errors import InputError
from attention_vision.ranges import Count, NonNegativeInt, Range, Size, checked

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {2: F.max_pool2d, 3: F.max_pool3d}
INTERPOLATION = {2: "bilinear", 3: "trilinear"}

SkipGate = Callable[[int, int], nn.Module]


@checked
class MultiGate(nn.Module):
    """Several attention gates on one skip connection, merged: the release's MultiAttentionBlock.

    Shape: x (B, C, H, W), gating (B, G, H', W') -> (B, C, H, W); one more axis with `dims=3`

    Args:
        channels: C.
        gating_channels: G.
        gates: how many.
        hidden: width inside each gate; C when not given, as released.
        dims: 2 for images, 3 for volumes.
    """

    def __init__(
        self,
        channels: Size,
        gating_channels: Size,
        gates: Count = 2,
        hidden: Size | None = None,
        dims: int = 2,
    ):
        super().__init__()
        self.gates = nn.ModuleList(
            AttentionGate(channels, gating_channels, hidden or channels, dims) for _ in range(gates)
        )
        self.merge = nn.Sequential(
            CONV[dims](gates * channels, channels, 1), NORM[dims](channels), nn.ReLU()
        )

    def forward(self, x: Tensor, gating: Tensor) -> Tensor:
        return self.merge(torch.cat([gate(x, gating) for gate in self.gates], 1))


class SkipAttention(nn.Module):
    """FeatureAttention on a skip connection, which ignores the gating signal.

    Shape: x (B, C, H, W), gating, which is ignored -> (B, C, H, W)
    """

    def __init__(self, channels: int, gating_channels: int, attention: FeatureAttention):
        super().__init__()
        self.attention = attention(channels)

    def forward(self, x: Tensor, gating: Tensor) -> Tensor:
        return self.attention(x)


class GatingSignal(nn.Sequential):
    """The layer between the lowest map and its gate, as in the release.

    Shape: (B, C, H, W) -> (B, C, H, W); one more axis with `dims=3`
    """

    def __init__(self, channels: int, dims: int = 2):
        super().__init__(CONV[dims](channels, channels, 1), NORM[dims](channels), nn.ReLU())


@checked
class AttentionUNet(nn.Module):
    """Attention U-Net: image or volume -> logits per class and pixel, or another image.

    Shape: (B, in_channels, H, W) -> (B, num_classes or out_channels, H, W); (B, C, D, H, W) with
    `dimensions=3`. Any size: what 2 ** depth does not divide is padded with copies of the border,
    and the result cropped.

    Level 1 has `width` channels at full size, each further one twice as many at half the size, down
    to level depth + 1. A gate on a level's skip connection is steered by the decoder's map of the
    level below. Convolutions start as released, normal by fan-in; gates as they come. Networks that
    differ in their gates alone start from the same weights when built with the same seed.

    Args:
        in_channels: of the input.
        num_classes: of a segmentation; 0 for an image as output.
        out_channels: of that image.
        width: channels of level 1.
        depth: levels with a skip connection.
        dimensions: 2 or 3.
        attention: factory `(channels, gating_channels) -> module` of the module of (skip, gating)
            on each gated level; `torch.nn.Identity` leaves the skips as they are: the plain U-Net.
        gated_levels: 1 is at full size; the paper gates all levels but this.
        gating: `channels -> module` on the lowest map before it steers its gate.
        deep_supervision: heads on all decoder levels, resized, concatenated and merged by a 1x1
            convolution, as released.
        residual: add the input (its first `out_channels`) to the output, so that the network learns
            the correction, which is 0 at first.

    Raises:
        InputError: numbers that do not fit each other.
    """

    def __init__(
        self,
        in_channels: Size = 3,
        num_classes: NonNegativeInt = 0,
        out_channels: Size = 3,
        width: Size = 16,
        depth: Annotated[int, Range(1, 10)] = 4,
        dimensions: int = 2,
        attention: SkipGate = AttentionGate,
        gated_levels: Sequence[Count] = (2, 3, 4),
        gating: Callable[[int], nn.Module] = nn.Identity,
        deep_supervision: bool = False,
        residual: bool = False,
    ):
        super().__init__()
        if dimensions not in CONV:
            raise InputError(f"AttentionUNet: dimensions {dimensions} is neither 2 nor 3")
        if wrong := [level for level in gated_levels if not 1 <= level <= depth]:
            raise InputError(
                f"AttentionUNet: gated level {wrong[0]} is not in 1..{depth}, the levels that depth"
                f" {depth} has"
            )
        if residual and (num_classes or in_channels < out_channels):
            raise InputError(
                "AttentionUNet: residual needs num_classes 0 and at least out_channels"
                f" {out_channels} of in_channels, not {in_channels}"
            )
        self.in_channels, self.num_classes = in_channels, num_classes
        self.dimensions, self.depth, self.residual = dimensions, depth, residual
        widths = [width * 2**level for level in range(depth + 1)]
        block = partial(double_convolution, dimensions=dimensions)
        self.encoder = nn.ModuleList(map(block, [in_channels, *widths[:-1]], widths))
        self.decoder = nn.ModuleList(
            block(fine + coarse, fine) for fine, coarse in pairwise(widths)
        )
        self.head = build_head(
            widths[:depth], num_classes or out_channels, dimensions, deep_supervision
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight)
        if residual:
            for parameter in self.head.last.parameters():
                nn.init.zeros_(parameter)
        # Behind all else: gates then do not move the random start of the rest.
        self.gating = gating(widths[-1])
        self.gates = nn.ModuleList(
            attention(widths[level - 1], widths[level]) if level in gated_levels else nn.Identity()
            for level in range(1, depth + 1)
        )
        for name, module in (("attention", self.gates), ("gating", self.gating)):
            if any(isinstance(part, CONV[5 - dimensions]) for part in module.modules()):
                raise InputError(
                    f"AttentionUNet: its {name} is not for {dimensions} dimensions: set"
                    f" {name}.init_args.dims to {dimensions}"
                )

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[2:]
        skips, lowest = self.encode(arranged(self, self.pad(images)))
        output = self.head(self.decode(skips, lowest))
        output = output[(..., *map(slice, size))]
        return images[:, : output.shape[1]] + output if self.residual else output

    def pad(self, images: Tensor) -> Tensor:
        """Copies of the border at the end of each axis that 2 ** depth does not divide."""
        room = [side for length in reversed(images.shape[2:]) for side in (0, self.missing(length))]
        return F.pad(images, room, mode="replicate") if any(room) else images

    def missing(self, length: int) -> int:
        return -length % 2**self.depth

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The maps of levels 1..depth, and that of the level below them."""
        skips = []
        for block in self.encoder[:-1]:
            skips.append(block(x))
            x = POOL[self.dimensions](skips[-1], 2)
        return skips, self.encoder[-1](x)

    def decode(self, skips: list[Tensor], x: Tensor) -> list[Tensor]:
        """The decoder's maps, that of level 1 first."""
        gating, maps = self.gating(x), []
        for skip, gate, block in reversed(list(zip(skips, self.gates, self.decoder, strict=True))):
            if not isinstance(gate, nn.Identity):
                skip = gate(skip, gating)
            x = F.interpolate(x, skip.shape[2:], mode=INTERPOLATION[self.dimensions])
            x = gating = block(torch.cat((skip, x), 1))
            maps.insert(0, x)
        return maps


class Head(nn.Module):
    """1x1 convolution of the finest map.

    Shape: maps of levels 1, 2, ... -> (B, outputs, H, W)
    """

    def __init__(self, width: int, outputs: int, dimensions: int):
        super().__init__()
        self.last = CONV[dimensions](width, outputs, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.last(maps[0])


class DeepSupervision(nn.Module):
    """1x1 convolutions of all maps, at the size of the finest, and one that merges them.

    Shape: maps of levels 1, 2, ... -> (B, outputs, H, W)
    """

    def __init__(self, widths: Sequence[int], outputs: int, dimensions: int):
        super().__init__()
        conv = CONV[dimensions]
        self.levels = nn.ModuleList(conv(width, outputs, 1) for width in widths)
        self.last = conv(outputs * len(widths), outputs, 1)
        self.mode = INTERPOLATION[dimensions]

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        outputs = [
            F.interpolate(level(x), size, mode=self.mode)
            for level, x in zip(self.levels, maps, strict=True)
        ]
        return self.last(torch.cat(outputs, 1))


def build_head(
    widths: Sequence[int], outputs: int, dimensions: int, deep_supervision: bool
) -> Head | DeepSupervision:
    if deep_supervision:
        return DeepSupervision(widths, outputs, dimensions)
    return Head(widths[0], outputs, dimensions)


def double_convolution(channels: int, width: int, dimensions: int) -> nn.Sequential:
    """Twice a 3x3 convolution, a batch norm and ReLU."""
    conv, norm = partial(CONV[dimensions], kernel_size=3, padding=1), NORM[dimensions]
    return nn.Sequential(
        conv(channels, width), norm(width), nn.ReLU(inplace=True),
        conv(width, width), norm(width), nn.ReLU(inplace=True),
    )  # fmt: skip
