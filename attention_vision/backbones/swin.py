"""Swin Transformer."""

from collections.abc import Callable
from math import ceil
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_vision.attention import TokenAttention, WindowAttention
from attention_vision.attention.linear import Linear
from attention_vision.attention.window import pad_to_windows
from attention_vision.backbones.backbone import (
    Backbone,
    MeanPool,
    build_pool,
    shape_error,
)
from attention_vision.backbones.checkpointing import checkpoint_blocks
from attention_vision.backbones.memory_format import arranged
from attention_vision.backbones.vit import TransformerBlock, initialize
from attention_vision.errors import InputError
from attention_vision.ranges import Fraction, Layers, NonNegativeInt, Positive, Size, checked


class PatchMerging(nn.Module):
    """Each 2 x 2 neighbours become one token of twice the width (Swin, section 3.1).

    Shape: (B, H, W, C) -> (B, H/2, W/2, 2C), rounded up; an odd map is padded by zeros

    As released, the neighbours stand column by column: top left, bottom left, top right, bottom
    right.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_windows(x, 2).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # (B, H/2, W/2, 4C)
        return self.reduction(self.norm(x))


class SwinStage(nn.Module):
    """Merging, the identity in the first stage, and blocks of one resolution.

    Shape: (B, H, W, C) -> (B, H/2, W/2, 2C), the same in the first stage
    """

    def __init__(self, merging: nn.Module, blocks: list[TransformerBlock]):
        super().__init__()
        self.merging = merging
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.merging(x)
        grid = x.shape[1:3]
        x = x.flatten(1, 2)
        for block in self.blocks:
            x = block(x, grid)
        return x.unflatten(1, grid)


@checked
class Swin(Backbone):
    """Swin Transformer (Liu et al., arXiv 2103.14030); the defaults are Swin-T.

    Shape: images (B, in_channels, H, W) -> logits (B, num_classes)

    Attention looks at windows of M x M tokens, which every second block shifts by M // 2; merging
    halves the map and doubles the width from stage to stage. Swin-S has depths (2, 2, 18, 2);
    Swin-B has them as well, with width=128 and heads (4, 8, 16, 32).

    Images may have any size: their right and lower border is padded with zeros to whole patches, a
    map to whole windows and to an even number of rows and columns, as in torchvision and in the
    released detection code (timm shifts before it pads, which gives other maps).

    Args:
        image_size: pixels. A stage whose map, at this size, is no larger than M has one window of
            the size of the map and no shift, as released: `window=56` at 224 is global attention
            in all stages. Images of other sizes keep these windows.
        patch_size: pixels of a side of a patch.
        width: C of the first stage, doubled in each stage.
        depths: blocks of each stage.
        heads: h of each stage, divisors of its width.
        window: M.
        num_classes: 0 leaves out the head.
        attention: factory `width, heads -> module` that stands in every block in place of shifted
            windows, e.g. `MultiHeadAttention` or `AxialAttention`; `window`, `shift`,
            `position` and `mask_padding` are then without effect.
        shift: off, no block shifts its windows (Table 4 of the paper).
        position: `"relative"`, a learned bias per head and offset in a window, or `"none"`
            (Table 4).
        mask_padding: attention does not see the padding of windows. Off, as released, it is seen as
            zeros.
        pool: factory `width -> module` that maps (B, N, C) -> (B, C): `MeanPool` or
            `AttentionPool`.
        mlp_ratio: hidden width of the MLP over C.
        dropout: after the patches, the attention and both layers of the MLP.
        stochastic_depth: rate at which the last block's branches are dropped; linear from 0. The
            release has 0.2, 0.3 and 0.5 for T, S and B.
        in_channels: 3 for RGB.
        checkpointing: compute the activations of each block again in the backward pass, in place
            of keeping them: less memory, one more forward pass, the same gradients.

    Raises:
        InputError: a size or number is not positive; `depths` and `heads` are not equally many;
            heads do not divide the width of their stage; `attention` does not map tokens to
            tokens, which is checked at construction.
    """

    def __init__(
        self,
        image_size: Size = 224,
        patch_size: Size = 4,
        width: Size = 96,
        depths: tuple[Layers, ...] = (2, 2, 6, 2),
        heads: tuple[Size, ...] = (3, 6, 12, 24),
        window: Size = 7,
        num_classes: NonNegativeInt = 1000,
        attention: TokenAttention | None = None,
        shift: bool = True,
        position: Literal["relative", "none"] = "relative",
        mask_padding: bool = False,
        pool: Callable[[int], nn.Module] = MeanPool,
        mlp_ratio: Positive = 4.0,
        dropout: Fraction = 0.0,
        stochastic_depth: Fraction = 0.0,
        in_channels: Size = 3,
        checkpointing: bool = False,
    ):
        super().__init__()
        if position not in ("relative", "none"):
            raise InputError(f"Swin: position {position!r} is neither relative nor none")
        if len(depths) != len(heads) or not depths:
            raise InputError(
                f"Swin: depths {tuple(depths)} and heads {tuple(heads)} must have one number each "
                "for every stage"
            )
        for number, count in enumerate(heads, start=1):
            if (width << number - 1) % count:
                raise InputError(
                    f"Swin: heads {tuple(heads)}: {count} does not divide {width << number - 1}, "
                    f"the width of stage {number}"
                )
        self.num_classes, self.in_channels = num_classes, in_channels
        self.channels = tuple(width << stage for stage in range(len(depths)))
        self.strides = tuple(patch_size << stage for stage in range(len(depths)))

        def layer(stage: int, index: int) -> nn.Module:
            channels = self.channels[stage]
            if attention is not None:
                return attention(channels, heads[stage])
            side = min(window, ceil(image_size / self.strides[stage]))
            distance = side // 2 if shift and index % 2 else 0
            relative = position == "relative"
            return WindowAttention(channels, heads[stage], side, distance, relative, mask_padding)

        self.patches = nn.Conv2d(in_channels, width, patch_size, patch_size)
        self.patch_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        rates = iter(torch.linspace(0, stochastic_depth, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList()
        for stage, (depth, channels) in enumerate(zip(depths, self.channels, strict=True)):
            hidden = int(mlp_ratio * channels)
            blocks = [
                TransformerBlock(layer(stage, index), channels, hidden, dropout, next(rates), 1e-5)
                for index in range(depth)
            ]
            merging = PatchMerging(channels // 2) if stage else nn.Identity()
            self.stages.append(SwinStage(merging, blocks))
        self.norm = nn.LayerNorm(self.channels[-1])
        self.pool = build_pool(self, pool, self.channels[-1])
        self.head = nn.Linear(self.channels[-1], num_classes) if num_classes else nn.Identity()
        for part in (self.stages, self.head):
            part.apply(initialize)
        self.check_attention()
        if checkpointing:
            checkpoint_blocks(self)

    def check_attention(self) -> None:
        """Raise InputError when the first block's attention does not map tokens to tokens."""
        attention = self.get_submodule("stages.0.blocks.0.attention")
        tokens = torch.zeros(1, 16, self.channels[0])
        if reason := shape_error(attention, tokens):
            raise InputError(
                f"Swin: attention {type(attention).__name__} does not map {tuple(tokens.shape)} to"
                f" itself: {reason}"
            )

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> one map a stage, the last one after the last norm.

        Strides are 4 8 16 32 with the patches of the paper; sizes are rounded up.
        """
        size = self.strides[0]
        images = F.pad(images, (0, -images.shape[3] % size, 0, -images.shape[2] % size))
        patches = self.patches(arranged(self, images))
        x = self.dropout(self.patch_norm(patches.permute(0, 2, 3, 1)))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        maps[-1] = self.norm(x)
        return [x.permute(0, 3, 1, 2) for x in maps]
