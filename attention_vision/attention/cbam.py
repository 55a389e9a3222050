"""CBAM: the channel gate, the spatial gate, and one after the other."""

from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from attention_vision.attention.recording import capture
from attention_vision.ranges import Count, Size, checked


@checked
class ChannelGate(nn.Module):
    """x · σ(MLP(mean(x)) + MLP(max(x))), one MLP for both (Woo et al., arXiv 1807.06521, eq. 2).

    Shape: (B, C, H, W) -> (B, C, H, W)

    The shared MLP is biased (from 0) and the two results are added before the sigmoid, as in the
    released code (Jongchan/attention-module).

    Args:
        channels: C.
        reduction: the hidden width is C // reduction, at least 1.
        pooling: what the MLP sees: `"avg"`, the mean alone, which is squeeze and excite, `"max"`,
            or `"both"`. The paper's Table 1 has errors of 23.14, 23.20 and 22.80 % with them.

    Raises:
        ValueError: `reduction` is not positive, or an unknown `pooling`.
    """

    def __init__(
        self,
        channels: Size,
        reduction: Count = 16,
        pooling: Literal["avg", "max", "both"] = "both",
    ):
        super().__init__()
        if pooling not in ("avg", "max", "both"):
            raise ValueError(f"ChannelGate: pooling {pooling!r} is not one of avg, max, both")
        hidden = max(1, channels // reduction)
        layers = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        for layer in layers:
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], nn.ReLU(), layers[1])
        self.mean, self.max = pooling != "max", pooling != "avg"

    def forward(self, x: Tensor) -> Tensor:
        means = [x.mean((2, 3))] if self.mean else []
        maxima = [x.amax((2, 3))] if self.max else []
        score = reduce(torch.add, (self.mlp(pooled) for pooled in means + maxima))
        gate = score.sigmoid()[..., None, None]  # (B, C, 1, 1)
        capture(gate)
        return x * gate


@checked
class SpatialGate(nn.Module):
    """x · σ(norm(conv([max over C, mean over C]))) (arXiv 1807.06521, eq. 3).

    Shape: (B, C, H, W) -> (B, C, H, W)

    The released code departs from the paper: a batch norm (momentum 0.01) follows the convolution,
    its scale starts at 0, so that every gate starts at σ(0) = 1/2, and the order is max, then mean
    (timm has it the other way round).

    Args:
        channels: not used; the gate is the same for all of them. It keeps the FeatureAttention
            contract.
        kernel_size: odd, of the convolution over the map; errors are 22.68 % with 3 and 22.66 %
            with 7 in the paper's Table 2.

    Raises:
        ValueError: `kernel_size` is even.
    """

    def __init__(self, channels: Size, kernel_size: Size = 7):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"SpatialGate: kernel_size {kernel_size} is not odd")
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
        self.norm = nn.BatchNorm2d(1, momentum=0.01)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """x, gated by what `source` (B, C, H, W) shows; x itself where none is given."""
        source = x if source is None else source
        summary = torch.stack((source.amax(1), source.mean(1)), 1)  # (B, 2, H, W)
        gate = self.norm(self.conv(summary)).sigmoid()  # (B, 1, H, W)
        capture(gate)
        return x * gate


@checked
class CBAM(nn.Module):
    """Channel gate, then spatial gate (Woo et al., arXiv 1807.06521).

    Shape: (B, C, H, W) -> (B, C, H, W)

    Args:
        channels: C.
        reduction, pooling: of the `ChannelGate`.
        kernel_size: of the `SpatialGate`.
        order: `"channel_first"`, the spatial gate looking at what the channel gate leaves;
            `"spatial_first"`; or `"parallel"`, both looking at x and multiplying it, which is our
            reading: the paper does not say how it joins them. Its Table 3 has errors of 22.66,
            22.78 and 22.95 %.

    Raises:
        ValueError: an unknown `order`, or what the gates refuse.
    """

    def __init__(
        self,
        channels: Size,
        reduction: Count = 16,
        kernel_size: Size = 7,
        pooling: Literal["avg", "max", "both"] = "both",
        order: Literal["channel_first", "spatial_first", "parallel"] = "channel_first",
    ):
        super().__init__()
        if order not in ("channel_first", "spatial_first", "parallel"):
            raise ValueError(
                f"CBAM: order {order!r} is not one of channel_first, spatial_first, parallel"
            )
        self.channel = ChannelGate(channels, reduction, pooling)
        self.spatial = SpatialGate(channels, kernel_size)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "spatial_first":
            return self.channel(self.spatial(x))
        return self.spatial(self.channel(x), source=x if self.order == "parallel" else None)
