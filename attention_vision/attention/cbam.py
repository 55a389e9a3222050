"""CBAM: the channel gate, the spatial gate, and one after the other."""

import torch
from torch import Tensor, nn

from attention_vision.attention.record import note


class ChannelGate(nn.Module):
    """x · σ(MLP(mean(x)) + MLP(max(x))), one MLP for both (Woo et al., arXiv 1807.06521, eq. 2).

    Shape: (B, C, H, W) -> (B, C, H, W)

    The shared MLP is biased and the two results are added before the sigmoid, as in the released
    code (Jongchan/attention-module).

    Raises:
        ValueError: `reduction` is not positive.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        if reduction < 1:
            raise ValueError(f"ChannelGate: reduction {reduction} is not positive")
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        score = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
        gate = score.sigmoid()[..., None, None]  # (B, C, 1, 1)
        note(gate)
        return x * gate


class SpatialGate(nn.Module):
    """x · σ(norm(conv([max over C, mean over C]))) (arXiv 1807.06521, eq. 3).

    Shape: (B, C, H, W) -> (B, C, H, W)

    The released code departs from the paper: a batch norm (momentum 0.01) follows the convolution,
    its scale starts at 0, so that every gate starts at σ(0) = 1/2, and the order is max, then mean
    (timm has it the other way round).

    Args:
        channels: not used; the gate is the same for all of them. It keeps the FeatureAttention
            contract.
        kernel_size: odd, of the convolution over the map.

    Raises:
        ValueError: `kernel_size` is even.
    """

    def __init__(self, channels: int, kernel_size: int = 7):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"SpatialGate: kernel_size {kernel_size} is not odd")
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        summary = torch.stack((x.amax(1), x.mean(1)), 1)  # (B, 2, H, W)
        gate = self.norm(self.conv(summary)).sigmoid()  # (B, 1, H, W)
        note(gate)
        return x * gate


class CBAM(nn.Module):
    """Channel gate, then spatial gate (arXiv 1807.06521; the order that its Table 3 finds best).

    Shape: (B, C, H, W) -> (B, C, H, W)
    """

    def __init__(self, channels: int, reduction: int = 16, kernel_size: int = 7):
        super().__init__()
        self.channel = ChannelGate(channels, reduction)
        self.spatial = SpatialGate(channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.spatial(self.channel(x))
