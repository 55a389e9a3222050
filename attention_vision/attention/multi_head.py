"""Multi-head attention."""

import torch.nn.functional as F
from torch import Tensor, nn

from attention_vision.attention.kernel import attend
from attention_vision.attention.linear import Linear
from attention_vision.ranges import Fraction, Size, checked


@checked
class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al., arXiv 1706.03762, section 3.2.2).

    Shape: query (B, Q, C), key and value (B, K, C) -> (B, Q, C)

    Called with one argument it is self-attention, (B, N, C) -> (B, N, C); with a query and a key,
    values are the keys. The three input projections are one matrix, as in timm's ViT and
    `torch.nn.MultiheadAttention`, and self-attention applies it in one product.

    Args:
        width: C, a multiple of `heads`.
        heads: h; each has C / h channels.
        bias: whether the projections are biased.
        dropout: of the weights, while training.

    Raises:
        ValueError: `width` is not a multiple of `heads`, or `dropout` is outside 0..1.
    """

    def __init__(self, width: Size, heads: Size, bias: bool = True, dropout: Fraction = 0.0):
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(
                f"MultiHeadAttention: width {width} is not a multiple of heads {heads}"
            )
        self.heads = heads
        self.dropout = dropout
        self.qkv = Linear(width, 3 * width, bias)
        self.out = Linear(width, width, bias)
        nn.init.xavier_uniform_(self.qkv.weight)
        if bias:
            nn.init.zeros_(self.qkv.bias)
            nn.init.zeros_(self.out.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            key_padding_mask: (B, K) bool, True where a key is padding and must not be seen (the
                convention of `torch.nn.MultiheadAttention`).
            mask: bool, broadcasts to (B, h, Q, K), True where a query may attend (as in `attend`).
            bias: float, broadcasts to (B, h, Q, K), added to the scores.
        """
        if key_padding_mask is not None:
            visible = ~key_padding_mask[:, None, None]  # (B, 1, 1, K)
            mask = visible if mask is None else mask & visible
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, h, N, d)
            for x in self.project(query, key, value)
        )
        dropout = self.dropout if self.training else 0.0
        y = attend(query, key, value, bias=bias, mask=mask, dropout=dropout)
        return self.out(y.transpose(1, 2).flatten(2))

    def project(
        self, query: Tensor, key: Tensor | None, value: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads side by side, each (B, N, C)."""
        if key is None and value is None:
            return self.qkv(query).chunk(3, -1)
        key = query if key is None else key
        value = key if value is None else value
        weights = self.qkv.weight.chunk(3)
        biases = (None,) * 3 if self.qkv.bias is None else self.qkv.bias.chunk(3)
        inputs = (query, key, value)
        query, key, value = (
            F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)
        )
        return query, key, value
