"""Generator and discriminator of SAGAN, with a slot for attention."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from attention_vision.attention import FeatureAttention, SelfAttention2d
from attention_vision.backbones.backbone import shape_error
from attention_vision.backbones.memory_format import arranged
from attention_vision.errors import InputError
from attention_vision.generation.gan.resampled_conv import DoublingConv2d, HalvingConv2d
from attention_vision.ranges import NonNegativeInt, Size, checked

Initialization = Literal["orthogonal", "xavier"]
Upsampling = Literal["nearest", "bilinear"]


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm with a scale and a shift for each class of images.

    Shape: (B, C, H, W), labels (B,) int64 -> (B, C, H, W)

    Both are plain parameters, not an embedding: spectral norm leaves them alone, as in the release.
    StudioGAN computes them by linear layers, which it does normalize. Without classes it is a plain
    batch norm.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=not num_classes)
        self.scale = nn.Parameter(torch.ones(num_classes, channels)) if num_classes else None
        self.shift = nn.Parameter(torch.zeros(num_classes, channels)) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        x = self.norm(x)
        if self.scale is None or self.shift is None:
            return x
        scale, shift = self.scale[labels], self.shift[labels]  # (B, C)
        return x * scale[..., None, None] + shift[..., None, None]


class GeneratorBlock(nn.Module):
    """Norm, ReLU, upsampling by 2, 3x3; norm, ReLU, 3x3; plus the shortcut; then attention.

    Shape: (B, inputs, H, W), labels (B,) -> (B, outputs, 2H, 2W)
    """

    def __init__(
        self, inputs: int, outputs: int, num_classes: int,
        attention: nn.Module, upsampling: Upsampling,
    ):  # fmt: skip
        super().__init__()
        self.upsampling = upsampling
        self.norm1 = ConditionalBatchNorm2d(inputs, num_classes)
        if upsampling == "nearest":
            self.conv1 = DoublingConv2d(inputs, outputs)
        else:
            self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = ConditionalBatchNorm2d(outputs, num_classes)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)
        self.attention = attention

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        y = self.norm1(x, labels).relu()
        y = self.conv1(y if isinstance(self.conv1, DoublingConv2d) else self._enlarge(y))
        y = self.conv2(self.norm2(y, labels).relu())
        # The release enlarges first: equal numbers at four times the cost.
        return self.attention(self._enlarge(self.shortcut(x)) + y)

    def _enlarge(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode=self.upsampling)


class DiscriminatorBlock(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, pooling by 2; plus the shortcut; then attention.

    Shape: (B, inputs, H, W) -> (B, outputs, H / 2, W / 2)

    Args:
        first: the input is images, which a ReLU must not cut.
        halve: whether to pool. If neither size nor channels change, the shortcut is the identity.
        rectified_shortcut: the shortcut starts behind the first ReLU.
    """

    def __init__(
        self, inputs: int, outputs: int, attention: nn.Module,
        first: bool, halve: bool, rectified_shortcut: bool,
    ):  # fmt: skip
        super().__init__()
        self.first = first
        self.halve = halve
        self.rectified_shortcut = rectified_shortcut
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        if halve:
            self.conv2 = HalvingConv2d(outputs, outputs)
        else:
            self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        changes = halve or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if changes else nn.Identity()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.first else x.relu()
        x = y if self.rectified_shortcut else x
        y = self.conv2(self.conv1(y).relu())
        # The release shrinks after the 1x1 convolution, except in the first block: equal numbers at
        # four times the cost.
        return self.attention(self.shortcut(self._shrink(x)) + y)

    def _shrink(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.halve else x


@checked
class Generator(nn.Module):
    """Generator of images from noise and a class (Zhang et al., SAGAN, arXiv 1805.08318).

    Shape: z (B, latent), labels (B,) int64 -> images (B, 3, size, size) in -1..1

    A linear layer to 4x4, one `GeneratorBlock` for each doubling, batch norm, ReLU, 3x3, tanh. At
    128 pixels it is the release (brain-research/self-attention-gan); at 32 it is StudioGAN's and
    mimicry's CIFAR-10 generator, 4,386,308 parameters with attention at 16. Spectral norm is added
    from outside: `add_spectral_norm`.

    Args:
        size: side of the images: 16, 32, 64, 128 or another power of two.
        num_classes: 0 is unconditional: plain batch norm, labels are ignored.
        latent: dimension of the noise.
        width: channels of the widest map, at 4x4. Up to 32 pixels all maps have as many; beyond,
            the last has a 16th and each one before it twice as many, up to `width`. By default 256
            up to 32 pixels (StudioGAN, mimicry) and 1024 beyond (the release).
        attention: the factory of the slot; `torch.nn.Identity` is SNGAN.
        attention_at: sides of the maps that have the slot, after the block that computes them. By
            default half of `size`, at most 32: the release's at 128, StudioGAN's at 32.
        init: initialization of all linear, convolution and embedding layers, attention included,
            with biases 0: Xavier is the release's, orthogonal StudioGAN's. Layers whose weights
            are all 0 stay as they are.
        upsampling: nearest neighbor, or bilinear as in mimicry.

    Raises:
        InputError: a size or width that does not fit, a side without a map, attention that does not
            map maps to their shape; in `forward` labels that are missing or outside the classes
            (not checked on a GPU, which the check would wait for, nor in compiled or exported code;
            there the indexing fails).
    """

    def __init__(
        self,
        size: Size = 32,
        num_classes: NonNegativeInt = 10,
        latent: Size = 128,
        width: Size | None = None,
        attention: FeatureAttention = SelfAttention2d,
        attention_at: Sequence[Size] | None = None,
        init: Initialization = "orthogonal",
        upsampling: Upsampling = "nearest",
    ):
        super().__init__()
        doublings = _doublings("Generator", size)
        width = _width("Generator", size, width, 256)
        sides = [4 * 2**i for i in range(doublings + 1)]
        channels = [width if size <= 32 else min(width, width * size // (16 * s)) for s in sides]
        slots = _slots("Generator", attention, attention_at, size, sides[1:], channels[1:])
        self.size, self.num_classes, self.latent = size, num_classes, latent
        self.linear = nn.Linear(latent, width * 4 * 4)
        self.blocks = nn.ModuleList(
            GeneratorBlock(channels[i], channels[i + 1], num_classes, slots[i], upsampling)
            for i in range(doublings)
        )
        self.norm = nn.BatchNorm2d(channels[-1])
        self.conv = nn.Conv2d(channels[-1], 3, 3, padding=1)
        _initialize(self, init)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = _check_labels(self, labels)
        x = arranged(self, self.linear(z).unflatten(1, (-1, 4, 4)))
        for block in self.blocks:
            x = block(x, labels)
        return self.conv(self.norm(x).relu()).tanh()


@checked
class Discriminator(nn.Module):
    """Discriminator: the logit of an image of a class, high for real images.

    Shape: images (B, 3, size, size), labels (B,) int64 -> (B,)

    Residual blocks: up to 32 pixels four, of which the first two halve the map; beyond, all but the
    last halve it, down to 4x4. Then ReLU, the sum over the map, and the projection of Miyato &
    Koyama (arXiv 1802.05637): linear(h) + <embedding(label), h>. Release and peers as in
    `Generator`; 1,075,586 parameters at 32 pixels.

    Args:
        size: side of the images: 16, 32, 64, 128 or another power of two.
        num_classes: 0 is unconditional: no projection, labels are ignored.
        width: channels of the widest map, the last. Up to 32 pixels all maps have as many; beyond,
            the first has a 16th and each one after it twice as many. By default 128 up to 32 pixels
            (StudioGAN, mimicry) and 1024 beyond (the release).
        attention: the factory of the slot; `torch.nn.Identity` is SNGAN.
        attention_at: sides of the maps that have the slot, after the first block that computes
            them. By default half of `size`, at most 32: the release's at 128, StudioGAN's at 32,
            where mimicry has 8.
        init: as in `Generator`.
        rectified_shortcut: the shortcut of a block starts behind the block's first ReLU, as in
            mimicry and StudioGAN, whose ReLU works in place; in the release it does not.

    Raises:
        InputError: as in `Generator`.
    """

    def __init__(
        self,
        size: Size = 32,
        num_classes: NonNegativeInt = 10,
        width: Size | None = None,
        attention: FeatureAttention = SelfAttention2d,
        attention_at: Sequence[Size] | None = None,
        init: Initialization = "orthogonal",
        rectified_shortcut: bool = False,
    ):
        super().__init__()
        doublings = _doublings("Discriminator", size)
        width = _width("Discriminator", size, width, 128)
        if size <= 32:
            halvings = 2
            channels = [3, *[width] * 4]
        else:
            halvings = doublings
            channels = [3, *(min(width, width // 16 * 2**i) for i in range(doublings)), width]
        sides = [size // 2 ** min(i + 1, halvings) for i in range(len(channels) - 1)]
        slots = _slots("Discriminator", attention, attention_at, size, sides, channels[1:])
        self.size, self.num_classes = size, num_classes
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(
                channels[i], channels[i + 1], slot, i == 0, i < halvings, rectified_shortcut
            )
            for i, slot in enumerate(slots)
        )
        self.linear = nn.Linear(width, 1)
        self.embedding = nn.Embedding(num_classes, width) if num_classes else None
        _initialize(self, init)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = _check_labels(self, labels)
        x = arranged(self, images)
        for block in self.blocks:
            x = block(x)
        x = x.relu().sum((2, 3))  # (B, C)
        logits = self.linear(x)[:, 0]
        return logits if self.embedding is None else logits + (self.embedding(labels) * x).sum(1)


def _doublings(name: str, size: int) -> int:
    """Number of doublings from 4x4 to size x size."""
    if size < 16 or size & (size - 1):
        raise InputError(
            f"{name}: size {size} is not 4 times a power of two, 16 at least: 16, 32, 64, 128 ..."
        )
    return (size // 4).bit_length() - 1


def _width(name: str, size: int, width: int | None, small: int) -> int:
    """`width`, or the default: `small` up to 32 pixels."""
    if width is None:
        return small if size <= 32 else 1024
    if size > 32 and width % 16:
        raise InputError(
            f"{name}: width {width} is not a multiple of 16; at {size} pixels the narrowest maps"
            " have a 16th of it"
        )
    return width


def _slots(
    name: str, attention: FeatureAttention, attention_at: Sequence[int] | None,
    size: int, sides: list[int], channels: list[int],
) -> list[nn.Module]:  # fmt: skip
    """One module per block: attention where a side of `attention_at` is first reached."""
    if attention_at is None:
        attention_at = (min(size // 2, 32),)
    if missing := sorted(set(attention_at) - set(sides)):
        raise InputError(
            f"{name}: attention_at {missing[0]}, but at size {size} maps after blocks have the"
            f" sides {', '.join(map(str, dict.fromkeys(sides)))}"
        )
    slots: list[nn.Module] = [nn.Identity() for _ in sides]
    for side in attention_at:
        first = sides.index(side)
        slots[first] = attention(channels[first])
        shape = (2, channels[first], side, side)
        if reason := shape_error(slots[first], torch.zeros(shape)):
            raise InputError(
                f"{name}: attention {type(slots[first]).__name__} does not map {shape} to itself:"
                f" {reason}"
            )
    return slots


def _initialize(network: nn.Module, init: Initialization) -> None:
    if init not in ("orthogonal", "xavier"):
        raise InputError(f"init {init!r} is neither orthogonal nor xavier")
    start = nn.init.orthogonal_ if init == "orthogonal" else nn.init.xavier_uniform_
    for layer in network.modules():
        if isinstance(layer, nn.Linear | _ConvNd | nn.Embedding) and layer.weight.any():
            start(layer.weight)
            bias = getattr(layer, "bias", None)
            if bias is not None:
                nn.init.zeros_(bias)


def _check_labels(network: Generator | Discriminator, labels: Tensor | None) -> Tensor | None:
    if not network.num_classes:
        return None
    name = type(network).__name__
    if labels is None:
        raise InputError(
            f"{name}: labels are missing; it has {network.num_classes} classes (num_classes: 0 is"
            " a network without)"
        )
    # A compiler or an export has no numbers to look at yet.
    if labels.device.type == "cpu" and labels.numel() and not torch.compiler.is_compiling():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= network.num_classes:
            wrong = low if low < 0 else high
            raise InputError(
                f"{name}: label {wrong} is outside its classes, 0 to {network.num_classes - 1}"
            )
    return labels
