"""Axial attention."""

import torch
from torch import Tensor, nn

from attention_vision.attention.multi_head import MultiHeadAttention


class AxialAttention2d(nn.Module):
    """Every pixel attends to its row and, apart from that, to its column (Ho et al., 1912.12180).

    Shape: (B, C, H, W) -> (B, C, H, W)

    x + gamma · (along the row + along the column), gamma = 0 at the start. O(HW(H + W)) in place of
    O((HW)²); two of them in sequence connect every pair of pixels.

    Args:
        channels: C.
        heads: h, a divisor of C.
    """

    def __init__(self, channels: int, heads: int = 1):
        super().__init__()
        self.row = MultiHeadAttention(channels, heads)
        self.column = MultiHeadAttention(channels, heads)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        batch = len(x)
        rows = x.permute(0, 2, 3, 1).flatten(0, 1)  # (BH, W, C)
        columns = x.permute(0, 3, 2, 1).flatten(0, 1)  # (BW, H, C)
        along_row = self.row(rows).unflatten(0, (batch, -1)).permute(0, 3, 1, 2)
        along_column = self.column(columns).unflatten(0, (batch, -1)).permute(0, 3, 2, 1)
        return x + self.gamma * (along_row + along_column)
