"""Local windows plus sparse global tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_vision.attention.multi_head import MultiHeadAttention
from attention_vision.attention.window import from_windows, pad_to_windows, to_windows


class LocalGlobalAttention2d(nn.Module):
    """Every pixel attends to its window and to a few tokens that summarise the whole map.

    Shape: (B, C, H, W) -> (B, C, H, W)

    The global tokens are the means over a g x g grid of the map; the pixels of the window and the
    global tokens share one softmax. O(HW(M² + g²)) in place of O((HW)²). The pattern is that of
    Longformer and its two-dimensional kin (arXiv 2004.05150, 2103.15358), with pooled in place of
    learned global tokens. x + gamma · y, gamma = 0 at the start.

    Args:
        channels: C.
        heads: h, a divisor of C.
        window: M, the side of a window; maps that it does not divide are padded, unseen.
        global_grid: g.
    """

    def __init__(self, channels: int, heads: int = 1, window: int = 7, global_grid: int = 4):
        super().__init__()
        self.window = window
        self.global_grid = global_grid
        self.attention = MultiHeadAttention(channels, heads)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = pad_to_windows(x.permute(0, 2, 3, 1), self.window)
        windows = to_windows(padded, self.window)  # (B nW, M², C)
        count = len(windows) // len(x)

        summary = F.adaptive_avg_pool2d(x, self.global_grid).flatten(2).mT  # (B, g², C)
        keys = torch.cat((windows, summary.repeat_interleave(count, 0)), 1)  # (B nW, M² + g², C)
        padding = None
        if padded.shape[1:3] != (height, width):
            inside = pad_to_windows(x.new_ones(1, height, width, 1), self.window)
            padding = to_windows(inside, self.window)[..., 0] == 0  # (nW, M²)
            padding = F.pad(padding, (0, summary.shape[1])).repeat(len(x), 1)
        y = self.attention(windows, keys, key_padding_mask=padding)

        y = from_windows(y, padded.shape[1:3], self.window)[:, :height, :width]
        return x + self.gamma * y.permute(0, 3, 1, 2)
