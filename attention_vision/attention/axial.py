"""Axial attention."""

import torch
from torch import Tensor, nn

from attention_vision.attention.multi_head import MultiHeadAttention
from attention_vision.attention.token_grid import to_map
from attention_vision.ranges import Size, checked


@checked
class AxialAttention(nn.Module):
    """Attention along the row plus attention along the column (Ho et al., arXiv 1912.12180).

    Shape: (B, N, C) -> (B, N, C), the N tokens being a map row by row, without class token

    O(HW(H + W)) in place of O((HW)²); two of them in sequence connect every pair of positions.

    Args:
        width: C.
        heads: h, a divisor of C.

    Raises:
        ValueError: `heads` does not divide `width`; the tokens are not the `grid`, or not square
            without.
    """

    def __init__(self, width: Size, heads: Size):
        super().__init__()
        self.row = MultiHeadAttention(width, heads)
        self.column = MultiHeadAttention(width, heads)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Attend; `grid` is (H, W), a square when not given."""
        batch = x.shape[0]
        x = to_map(x, grid, "AxialAttention")
        along_row = self.row(x.flatten(0, 1)).unflatten(0, (batch, -1))  # (B, H, W, C)
        columns = x.transpose(1, 2).flatten(0, 1)  # (BW, H, C)
        along_column = self.column(columns).unflatten(0, (batch, -1)).transpose(1, 2)
        return (along_row + along_column).flatten(1, 2)


@checked
class AxialAttention2d(AxialAttention):
    """Axial attention of a feature map, residual: x + gamma · y, gamma = 0 at the start.

    Shape: (B, C, H, W) -> (B, C, H, W)

    Args:
        channels: C.
        heads: h, a divisor of C.
    """

    def __init__(self, channels: Size, heads: Size = 1):
        super().__init__(channels, heads)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[2], x.shape[3])
        y = super().forward(x.flatten(2).mT, grid)
        return x + self.gamma * y.mT.unflatten(2, grid)
