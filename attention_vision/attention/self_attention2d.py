"""SAGAN's self-attention over the pixels of a feature map."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_vision.attention.kernel import attend
from attention_vision.ranges import Count, Size, checked


@checked
class SelfAttention2d(nn.Module):
    """Self-attention between all pixels (Zhang et al., SAGAN, arXiv 1805.08318, eq. 1-3).

    Shape: (B, C, H, W) -> (B, C, H, W)

    `form="released"` is the authors' code (brain-research/self-attention-gan), which departs from
    the paper: queries and keys have C/8 channels, values C/2, keys and values are max-pooled 2x2, a
    1x1 convolution leads back to C, and the result is x + gamma · y with gamma = 0 at the start.
    `form="plain"` is how introductory articles write it: values of full width, no pooling, no
    output convolution, no gamma and no residual. In both no convolution is biased, the softmax runs
    over keys, and scores are not divided by sqrt(d).

    Args:
        channels: C.
        reduction: queries and keys have C // reduction channels, at least 1.
        form: see above.

    Raises:
        ValueError: `reduction` is not positive, or an unknown `form`.
    """

    def __init__(
        self, channels: Size, reduction: Count = 8, form: Literal["released", "plain"] = "released"
    ):
        super().__init__()
        if form not in ("released", "plain"):
            raise ValueError(f"SelfAttention2d: form {form!r} is neither released nor plain")
        narrow = max(1, channels // reduction)
        released = form == "released"
        value_channels = max(1, channels // 2) if released else channels
        self.query = nn.Conv2d(channels, narrow, 1, bias=False)
        self.key = nn.Conv2d(channels, narrow, 1, bias=False)
        self.value = nn.Conv2d(channels, value_channels, 1, bias=False)
        self.out = nn.Conv2d(value_channels, channels, 1, bias=False) if released else nn.Identity()
        self.gamma = nn.Parameter(torch.zeros(())) if released else None

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.gamma is not None:
            # ceil_mode keeps the last row and column of odd maps; even maps do not notice.
            key, value = (F.max_pool2d(m, 2, ceil_mode=True) for m in (key, value))
        query, key, value = (m.flatten(2).mT[:, None] for m in (query, key, value))  # (B, 1, N, d)
        y = attend(query, key, value, scale=1.0)[:, 0]  # (B, HW, C/2)
        y = self.out(y.mT.unflatten(2, x.shape[2:]))
        return y if self.gamma is None else x + self.gamma * y
