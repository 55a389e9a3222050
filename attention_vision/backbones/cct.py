"""Compact transformers for small images: CCT, CVT and ViT-Lite."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from attention_vision.attention import (
    LearnedPosition,
    MultiHeadAttention,
    SequencePool,
    TokenAttention,
)
from attention_vision.attention.linear import Linear
from attention_vision.backbones.backbone import Backbone, build_pool
from attention_vision.backbones.checkpointing import checkpoint_blocks, recomputable
from attention_vision.backbones.memory_format import arranged
from attention_vision.backbones.vit import (
    ClassToken,
    TransformerBlock,
    check_attention,
    head,
    initialize,
)
from attention_vision.errors import InputError
from attention_vision.ranges import Fraction, Layers, NonNegativeInt, Positive, Size, checked


@checked
class ConvTokenizer(nn.Sequential):
    """CCT's tokenizer: layers of convolution, ReLU and max pooling.

    Shape: (B, in_channels, H, W) -> (B, C, H / S, W / S), S = 2 per layer of 3 x 3, 4 of 7 x 7

    Args:
        in_channels: of the images.
        width: C.
        layers: 1 in CCT-7/3x1, 2 in CCT-7/3x2; the channels between two are 64.
        kernel: side of the convolutions; their stride is kernel // 2 - 1, at least 1.
    """

    def __init__(self, in_channels: Size, width: Size, layers: Layers = 1, kernel: Size = 3):
        channels = [in_channels, *[64] * (layers - 1), width]
        stride = max(1, kernel // 2 - 1)
        super().__init__(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False),
                    nn.ReLU(),
                    nn.MaxPool2d(3, 2, 1),
                )
                for before, after in pairwise(channels)
            )
        )


@checked
class PatchTokenizer(nn.Conv2d):
    """Patches of P x P pixels, projected: the tokenizer of ViT-Lite and CVT.

    Shape: (B, in_channels, H, W) -> (B, C, H / P, W / P)
    """

    def __init__(self, in_channels: Size, width: Size, patch_size: Size = 4):
        super().__init__(in_channels, width, patch_size, patch_size)


@checked
class CompactAttention(MultiHeadAttention):
    """Multi-head attention without bias in queries, keys and values, as in CCT's released code.

    Shape: (B, N, C) -> (B, N, C)
    """

    def __init__(self, width: Size, heads: Size, dropout: Fraction = 0.1):
        super().__init__(width, heads, dropout=dropout)
        self.qkv = Linear(width, 3 * width, bias=False)


class CompactBlock(TransformerBlock):
    """x = norm(x + attention(norm(x))), then x + MLP(x): the second norm is on the residual path.

    This is the block of the released code, src/utils/transformers.py; the paper draws ViT's.
    """

    @recomputable
    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        y = self.attention(self.norm1(x), **self.extra_arguments(grid, None))
        x = self.norm2(x + self.drop(self.dropout(y)))
        return x + self.drop(self.mlp(x))


@checked
class CCT(Backbone):
    """Compact Convolutional Transformer (Hassani et al., arXiv 2104.05704), here CCT-7/3x1.

    Shape: images (B, in_channels, H, W) -> logits (B, num_classes)

    Built after the authors' release, SHI-Labs/Compact-Transformers. With `tokenizer=PatchTokenizer`
    it is CVT-7/4, and with `pool=ClassToken` besides it is ViT-Lite-7/4.

    Args:
        image_size: pixels; the size that positions are learned at, and resized from.
        width: C.
        depth: number of blocks.
        heads: h, a divisor of C.
        num_classes: 0 leaves out the head.
        tokenizer: factory `in_channels, width -> module` from images to a map of tokens:
            `ConvTokenizer` or `PatchTokenizer`.
        attention: factory `width, heads -> module`; the default drops 0.1 of its weights.
        pool: factory `width -> module`: `SequencePool`, `ClassToken`, `MeanPool`, `AttentionPool`.
        position: `"learned"`, one vector per token; `"sine"`, fixed waves along the sequence; or
            `"none"`.
        mlp_ratio: hidden width of the MLP over C.
        dropout: after the positions, the attention and both layers of the MLP.
        stochastic_depth: rate at which the last block's branches are dropped; linear from 0.
        in_channels: 3 for RGB.
        checkpointing: compute the activations of each block again in the backward pass, in place
            of keeping them: less memory, one more forward pass, the same gradients.

    Raises:
        InputError: `width` is not a multiple of `heads`; a size or number is not positive;
            `position` is unknown; the tokenizer does not return a map of `width` channels, or an
            attention does not map tokens to tokens, which is checked at construction.
    """

    def __init__(
        self,
        image_size: Size = 32,
        width: Size = 256,
        depth: Layers = 7,
        heads: Size = 4,
        num_classes: NonNegativeInt = 10,
        tokenizer: Callable[[int, int], nn.Module] = ConvTokenizer,
        attention: TokenAttention = CompactAttention,
        pool: Callable[[int], nn.Module] = SequencePool,
        position: Literal["learned", "sine", "none"] = "learned",
        mlp_ratio: Positive = 2.0,
        dropout: Fraction = 0.0,
        stochastic_depth: Fraction = 0.1,
        in_channels: Size = 3,
        checkpointing: bool = False,
    ):
        super().__init__()
        if width % heads:
            raise InputError(f"CCT: width {width} is not a multiple of heads {heads}")
        if position not in ("learned", "sine", "none"):
            raise InputError(f"CCT: position {position!r} is not one of learned, sine, none")
        self.num_classes, self.in_channels = num_classes, in_channels

        self.tokenizer = tokenizer(in_channels, width)
        with torch.no_grad():
            tokens = self.tokenizer(torch.zeros(1, in_channels, image_size, image_size))
        if tokens.ndim != 4 or tokens.shape[1] != width:
            raise InputError(
                f"CCT: tokenizer {type(self.tokenizer).__name__} gives {tuple(tokens.shape)}, no"
                f" map (1, {width}, H, W)"
            )
        grid = (tokens.shape[2], tokens.shape[3])
        self.channels, self.strides = (width,), (round(image_size / grid[0]),)

        self.pool = build_pool(self, pool, width)
        prefix = self.pool.num_prefix_tokens if isinstance(self.pool, ClassToken) else 0
        self.num_prefix_tokens = prefix
        self.position = None if position == "none" else LearnedPosition(width, grid, prefix)
        if self.position is not None:
            table = self.position.table
            if position == "learned":
                nn.init.trunc_normal_(table, std=0.2)  # as released
            else:
                table.requires_grad_(False).copy_(waves(table.shape[1], table.shape[2]))
        self.dropout = nn.Dropout(dropout)
        rates = torch.linspace(0, stochastic_depth, depth, device="cpu").tolist()
        hidden = int(mlp_ratio * width)
        blocks = [
            CompactBlock(attention(width, heads), width, hidden, dropout, rate, eps=1e-5)
            for rate in rates
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.head = head(width, num_classes)
        for part in (self.blocks, self.head):
            part.apply(initialize)
        for module in self.tokenizer.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        check_attention(self, blocks, torch.zeros(1, prefix + grid[0] * grid[1], width), grid)
        if checkpointing:
            checkpoint_blocks(self)

    def tokens(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, num_prefix_tokens + N, C) after the last norm."""
        return self._encode(images)[0]

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> the one map [(B, C, H/S, W/S)], without class token."""
        tokens, grid = self._encode(images)
        return [tokens[:, self.num_prefix_tokens :].mT.unflatten(2, grid)]

    def _encode(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.tokenizer(arranged(self, images))
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).mT
        if isinstance(self.pool, ClassToken):
            x = self.pool.prepend(x)
        if self.position is not None:
            x = x + self.position(grid)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, grid)
        return self.norm(x), grid


def waves(length: int, width: int) -> Tensor:
    """(N, C): sines in even channels, cosines in odd ones (1706.03762, section 3.5)."""
    place = torch.arange(length)[:, None]
    pair = torch.arange(width) // 2
    angle = place / 10_000 ** (2 * pair / width)
    return torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos())
