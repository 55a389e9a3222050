"""Local windows plus sparse global tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_vision.attention.multi_head import MultiHeadAttention
from attention_vision.attention.token_grid import to_map
from attention_vision.attention.window import from_windows, pad_to_windows, to_windows
from attention_vision.ranges import Size, checked


@checked
class LocalGlobalAttention(nn.Module):
    """Attention to the token's window and to a few tokens that summarize the whole map.

    Shape: (B, N, C) -> (B, N, C), the N tokens being a map row by row, without class token

    The global tokens are the means over a g x g grid of the map; the tokens of the window and the
    global ones share one softmax. O(HW(M² + g²)) in place of O((HW)²). The pattern is that of
    Longformer and its two-dimensional kin (arXiv 2004.05150, 2103.15358), with pooled in place of
    learned global tokens.

    Args:
        width: C.
        heads: h, a divisor of C.
        window: M, the side of a window; maps that it does not divide are padded, unseen.
        global_grid: g.

    Raises:
        ValueError: `heads` does not divide `width`, or a size is not positive; the tokens are not
            the `grid`, or not square without.
    """

    def __init__(self, width: Size, heads: Size, window: Size = 7, global_grid: Size = 4):
        super().__init__()
        self.window = window
        self.global_grid = global_grid
        self.attention = MultiHeadAttention(width, heads)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Attend; `grid` is (H, W), a square when not given."""
        x = to_map(x, grid, "LocalGlobalAttention")
        height, width = x.shape[1:3]
        padded = pad_to_windows(x, self.window)
        windows = to_windows(padded, self.window)  # (B nW, M², C)
        count = windows.shape[0] // x.shape[0]

        summary = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), self.global_grid)
        summary = summary.flatten(2).mT  # (B, g², C)
        keys = torch.cat((windows, summary.repeat_interleave(count, 0)), 1)  # (B nW, M² + g², C)
        padding = None
        if padded.shape[1:3] != (height, width):
            inside = pad_to_windows(x.new_ones(1, height, width, 1), self.window)
            padding = to_windows(inside, self.window)[..., 0] == 0  # (nW, M²)
            padding = F.pad(padding, (0, summary.shape[1])).repeat(x.shape[0], 1)
        y = self.attention(windows, keys, key_padding_mask=padding)

        y = from_windows(y, (padded.shape[1], padded.shape[2]), self.window)[:, :height, :width]
        return y.flatten(1, 2)


@checked
class LocalGlobalAttention2d(LocalGlobalAttention):
    """Local and global attention of a feature map, residual: x + gamma · y, gamma = 0 at the start.

    Shape: (B, C, H, W) -> (B, C, H, W)

    Args:
        channels: C.
        heads: h, a divisor of C.
        window: M, as in `LocalGlobalAttention`.
        global_grid: g.
    """

    def __init__(self, channels: Size, heads: Size = 1, window: Size = 7, global_grid: Size = 4):
        super().__init__(channels, heads, window, global_grid)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[2], x.shape[3])
        y = super().forward(x.flatten(2).mT, grid)
        return x + self.gamma * y.mT.unflatten(2, grid)
