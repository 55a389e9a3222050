"""Cross-attention between two feature maps."""

import torch
from torch import Tensor, nn

from attention_vision.attention.kernel import attend
from attention_vision.ranges import Size, checked


@checked
class CrossAttention2d(nn.Module):
    """Cross-attention from the pixels of one map to those of another, of any size and width.

    Shape: x (B, C, H, W), source (B, S, H', W') -> (B, C, H, W)

    x + gamma · out(attention(query(x), key(source), value(source))), gamma = 0 at the start, so
    that it can be put into a trained network without a jump. Scores are scaled by 1 / sqrt(d).

    Args:
        query_channels: C.
        key_channels: S.
        heads: h, a divisor of C.

    Raises:
        ValueError: `query_channels` is not a multiple of `heads`.
    """

    def __init__(self, query_channels: Size, key_channels: Size, heads: Size = 1):
        super().__init__()
        if heads < 1 or query_channels % heads:
            raise ValueError(
                f"CrossAttention2d: query_channels {query_channels} is not a multiple of heads"
                f" {heads}"
            )
        self.heads = heads
        self.query = nn.Conv2d(query_channels, query_channels, 1, bias=False)
        self.key = nn.Conv2d(key_channels, query_channels, 1, bias=False)
        self.value = nn.Conv2d(key_channels, query_channels, 1, bias=False)
        self.out = nn.Conv2d(query_channels, query_channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        query, key, value = (
            m.flatten(2).unflatten(1, (self.heads, -1)).mT  # (B, h, N, d)
            for m in (self.query(x), self.key(source), self.value(source))
        )
        y = attend(query, key, value).mT.flatten(1, 2)  # (B, C, HW)
        return x + self.gamma * self.out(y.unflatten(2, x.shape[2:]))
