"""Efficient Channel Attention."""

from math import log2

from torch import Tensor, nn

from attention_vision.attention.recording import capture
from attention_vision.ranges import Finite, Positive, Size, checked


@checked
class EfficientChannelAttention(nn.Module):
    """Channel gate from a 1-D convolution across neighbouring channels' means (arXiv 1910.03151).

    Shape: (B, C, H, W) -> (B, C, H, W)

    The kernel grows with log2(C) (eq. 12, rounded to odd as in the released code: 3 for 64
    channels, 5 for 256 to 1,024, 7 for 2,048).

    Args:
        channels: C.
        gamma, bias: of eq. 12.
    """

    def __init__(self, channels: Size, gamma: Positive = 2.0, bias: Finite = 1.0):
        super().__init__()
        kernel = int(abs(log2(channels) + bias) / gamma)
        kernel += 1 - kernel % 2
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3)).unsqueeze(1)  # (B, 1, C)
        gate = self.conv(mean).sigmoid().mT.unsqueeze(3)  # (B, C, 1, 1)
        capture(gate)
        return x * gate
