"""Vision Transformer, and DeiT with its distillation token."""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from attention_vision.attention import (
    LearnedPosition,
    MultiHeadAttention,
    RelativePositionBias,
    TokenAttention,
)
from attention_vision.attention.linear import Linear
from attention_vision.backbones.backbone import Backbone, build_pool, shape_error
from attention_vision.backbones.checkpointing import checkpoint_blocks, recomputable
from attention_vision.backbones.memory_format import arranged
from attention_vision.errors import InputError
from attention_vision.ranges import Fraction, Layers, NonNegativeInt, Positive, Size, checked


class ClassToken(nn.Module):
    """A learned token that passes through the network, whose output is pooled (ViT, eq. 1, 4).

    Shape: tokens (B, 1 + N, C) -> (B, C)
    """

    num_prefix_tokens = 1  # tokens that it adds

    def __init__(self, width: int):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, width) * 1e-6)  # as timm

    def prepend(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, 1 + N, C)."""
        return torch.cat((self.token.expand(tokens.shape[0], -1, -1), tokens), 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


class DistilledToken(ClassToken):
    """A class token and a distillation token after it (DeiT, arXiv 2012.12877, section 3).

    Shape: tokens (B, 2 + N, C) -> (B, 2, C), for `DistilledHead`
    """

    num_prefix_tokens = 2

    def __init__(self, width: int):
        super().__init__(width)
        self.distillation = ClassToken(width)

    def prepend(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, 2 + N, C)."""
        return super().prepend(self.distillation.prepend(tokens))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, :2]


class DistilledHead(nn.Module):
    """A linear head for the class token, one for the distillation token (DeiT, section 3).

    Shape: (B, 2, C) -> in training the pair of their logits, each (B, num_classes), classes first;
    in evaluation the mean of the two, as in facebookresearch/deit, models.py
    """

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.classes = head(width, num_classes)
        self.distillation = head(width, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        classes, distillation = self.classes(x[:, 0]), self.distillation(x[:, 1])
        return (classes, distillation) if self.training else (classes + distillation) / 2


def head(width: int, num_classes: int) -> nn.Module:
    return nn.Linear(width, num_classes) if num_classes else nn.Identity()


@checked
class MLP(nn.Sequential):
    """Linear, GELU, linear. Shape: (..., C) -> (..., C)."""

    def __init__(self, width: Size, hidden: Size, dropout: Fraction = 0.0):
        super().__init__()
        self.expand = Linear(width, hidden)
        self.activation = nn.GELU()
        self.drop1 = nn.Dropout(dropout)
        self.reduce = Linear(hidden, width)
        self.drop2 = nn.Dropout(dropout)


class TransformerBlock(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + MLP(norm(x)) (ViT, eq. 2-3)."""

    def __init__(
        self, attention: nn.Module, width: int, hidden: int, dropout: float,
        stochastic_depth: float, eps: float = 1e-6,
    ):  # fmt: skip
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attention = attention
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)
        self.drop = StochasticDepth(stochastic_depth, "row")
        self.on_grid = "grid" in signature(attention.forward).parameters

    @recomputable
    def forward(self, x: Tensor, grid: tuple[int, int], bias: Tensor | None = None) -> Tensor:
        y = self.attention(self.norm1(x), **self.extra_arguments(grid, bias))
        x = x + self.drop(self.dropout(y))
        return x + self.drop(self.mlp(self.norm2(x)))

    def extra_arguments(self, grid: tuple[int, int], bias: Tensor | None) -> dict[str, Any]:
        """Arguments of the attention besides the tokens: the map's (H, W), a bias of the scores."""
        arguments: dict[str, Any] = {"grid": grid} if self.on_grid else {}
        return arguments if bias is None else arguments | {"bias": bias}


def check_attention(
    network: Backbone,
    blocks: Sequence[TransformerBlock],
    tokens: Tensor,
    grid: tuple[int, int],
    bias: Tensor | None = None,
) -> None:
    """Raise InputError when an attention of the first blocks does not map tokens to tokens."""
    for block in blocks[:2]:
        attention, arguments = block.attention, block.extra_arguments(grid, bias)
        if reason := shape_error(attention, tokens, arguments):
            hint, prefix = "", network.num_prefix_tokens
            if prefix and not shape_error(attention, tokens[:, prefix:], arguments):
                hint = "; pool: MeanPool leaves out the class token"
            raise InputError(
                f"{type(network).__name__}: attention {type(attention).__name__} does not map"
                f" {tuple(tokens.shape)} to itself: {reason}{hint}"
            )


def initialize(module: nn.Module) -> None:
    """Truncated normal of std 0.02 for weights, 0 for biases, as timm and DeiT."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@checked
class ViT(Backbone):
    """Vision Transformer (Dosovitskiy et al., arXiv 2010.11929); the defaults are ViT-B/16.

    Shape: images (B, in_channels, H, W) -> logits (B, num_classes); H and W any multiples of
    `patch_size`, positions being resized to them

    Each patch of P x P pixels is a vector of P² · in_channels numbers, 768 for P = 16 and RGB,
    projected to `width`. DeiT has the same shapes: Ti, S and B have widths 192, 384 and 768 with 3,
    6 and 12 heads; with `pool=DistilledToken` it is the distilled DeiT, which returns a pair of
    logits in training (see `DistilledHead`).

    Args:
        image_size: pixels; the size that positions are learned at.
        patch_size: P.
        width: C.
        depth: number of blocks.
        heads: h, a divisor of C.
        num_classes: 0 leaves out the head.
        attention: factory `width, heads -> module`. If its forward takes `grid`, it receives the
            (H, W) of the patches.
        alternate: factory of every second block's attention, such as shifted `WindowAttention`
            after unshifted; the default is `attention`.
        pool: factory `width -> module` that maps (B, N, C) -> (B, C): `ClassToken`, `MeanPool` or
            `AttentionPool`; or `DistilledToken`. The two tokens are added to those of the patches.
        position: `"absolute"`, one learned vector per patch, added to it; `"relative"`, a learned
            bias per head and offset in every block (the class token has none), for an attention
            that takes `bias=`; or `"none"`.
        mlp_ratio: hidden width of the MLP over C.
        dropout: after the positions, the attention and both layers of the MLP.
        stochastic_depth: rate at which the last block's branches are dropped; linear from 0.
        in_channels: 3 for RGB.
        checkpointing: compute the activations of each block again in the backward pass, in place
            of keeping them: less memory, one more forward pass, the same gradients.

    Raises:
        InputError: `image_size`, or the size of an image, is not a multiple of `patch_size`, or
            `width` of `heads`; a size or number is not positive; `position` is unknown; an
            attention does not map tokens to tokens, which is checked at construction.
    """

    def __init__(
        self,
        image_size: Size = 224,
        patch_size: Size = 16,
        width: Size = 768,
        depth: Layers = 12,
        heads: Size = 12,
        num_classes: NonNegativeInt = 1000,
        attention: TokenAttention = MultiHeadAttention,
        alternate: TokenAttention | None = None,
        pool: Callable[[int], nn.Module] = ClassToken,
        position: Literal["absolute", "relative", "none"] = "absolute",
        mlp_ratio: Positive = 4.0,
        dropout: Fraction = 0.0,
        stochastic_depth: Fraction = 0.0,
        in_channels: Size = 3,
        checkpointing: bool = False,
    ):
        super().__init__()
        if position not in ("absolute", "relative", "none"):
            raise InputError(f"ViT: position {position!r} is not one of absolute, relative, none")
        if width % heads:
            raise InputError(f"ViT: width {width} is not a multiple of heads {heads}")
        if image_size % patch_size:
            raise InputError(
                f"ViT: image_size {image_size} is not a multiple of patch_size {patch_size}"
            )
        grid = (image_size // patch_size, image_size // patch_size)
        self.num_classes, self.in_channels = num_classes, in_channels
        self.channels, self.strides = (width,), (patch_size,)

        self.patches = nn.Conv2d(in_channels, width, patch_size, patch_size)
        self.pool = build_pool(self, pool, width)
        prefix = self.pool.num_prefix_tokens if isinstance(self.pool, ClassToken) else 0
        self.num_prefix_tokens = prefix
        self.position = LearnedPosition(width, grid, prefix) if position == "absolute" else None
        self.dropout = nn.Dropout(dropout)
        kinds = (attention, alternate or attention)
        rates = torch.linspace(0, stochastic_depth, depth, device="cpu").tolist()
        hidden = int(mlp_ratio * width)
        blocks = [
            TransformerBlock(kinds[i % 2](width, heads), width, hidden, dropout, rate)
            for i, rate in enumerate(rates)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.biases = nn.ModuleList(
            RelativePositionBias(heads, grid) for _ in range(depth) if position == "relative"
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        distilled = isinstance(self.pool, DistilledToken)
        self.head = (DistilledHead if distilled else head)(width, num_classes)
        for part in (self.patches, self.blocks, self.head):
            part.apply(initialize)
        tokens = torch.zeros(1, prefix + grid[0] * grid[1], width)
        bias = self.bias(self.biases[0], grid) if len(self.biases) else None
        check_attention(self, blocks, tokens, grid, bias)
        if checkpointing:
            checkpoint_blocks(self)

    def tokens(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, N, C) after the last norm, the class token first."""
        size = self.strides[0]
        if images.shape[2] % size or images.shape[3] % size:
            raise InputError(
                f"ViT: images of {images.shape[2]} x {images.shape[3]} pixels do not divide into "
                f"patches of {size}; resize or crop them to a multiple"
            )
        x = self.patches(arranged(self, images))
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).mT
        if isinstance(self.pool, ClassToken):
            x = self.pool.prepend(x)
        if self.position is not None:
            x = x + self.position(grid)
        x = self.dropout(x)
        biases = [self.bias(table, grid) for table in self.biases] or [None] * len(self.blocks)
        for block, bias in zip(self.blocks, biases, strict=True):
            x = block(x, grid, bias)
        return self.norm(x)

    def bias(self, table: nn.Module, grid: tuple[int, int]) -> Tensor:
        """(h, N, N) from a `RelativePositionBias`; the class token has none on either side."""
        return F.pad(table(grid), (self.num_prefix_tokens, 0, self.num_prefix_tokens, 0))

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> the one map [(B, C, H/P, W/P)], without class token."""
        grid = (images.shape[2] // self.strides[0], images.shape[3] // self.strides[0])
        return [self.tokens(images)[:, self.num_prefix_tokens :].mT.unflatten(2, grid)]
