"""Attention pooling: a query gathers a set into one vector."""

from typing import Literal

import torch
from torch import Tensor, nn

from attention_vision.attention.kernel import attend, masked_softmax
from attention_vision.attention.recording import capture
from attention_vision.ranges import NonNegativeInt, Size, checked


@checked
class AttentionPool(nn.Module):
    """z = Σ softmax(f(x_i, h)) x_i for each query h (Bahdanau et al., arXiv 1409.0473).

    Shape: tokens (B, N, C) -> (B, C) with one learned query, else (B, Q, C)

    f is h · x_i / sqrt(C) for `score="dot"` and vᵀ tanh(W x_i + U h) for `score="additive"`. Both
    start with equal weights, so that put in the place of global average pooling it starts as that.

    Args:
        width: C.
        queries: number of learned queries Q; 0 when they are passed to `forward`.
        score: f.
        hidden: width inside the additive f; C when not given.

    Raises:
        ValueError: there is neither a learned nor a passed query, or both; an unknown `score`.
    """

    def __init__(
        self,
        width: Size,
        queries: NonNegativeInt = 1,
        score: Literal["dot", "additive"] = "dot",
        hidden: Size | None = None,
    ):
        super().__init__()
        if score not in ("dot", "additive"):
            raise ValueError(f"AttentionPool: score {score!r} is neither dot nor additive")
        self.query = nn.Parameter(torch.zeros(queries, width)) if queries else None
        if score == "additive":
            hidden = hidden or width
            self.of_token = nn.Linear(width, hidden)
            self.of_query = nn.Linear(width, hidden, bias=False)
            self.score = nn.Linear(hidden, 1, bias=False)
            nn.init.zeros_(self.score.weight)
        else:
            self.score = None

    def forward(
        self, tokens: Tensor, query: Tensor | None = None, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        """Pool.

        Args:
            query: (B, Q, C) or (Q, C), if the queries are not learned.
            key_padding_mask: (B, N) bool, True where a token is padding.
        """
        learned = query is None
        queries = self.query if query is None else query
        if queries is None or (self.query is not None and not learned):
            raise ValueError("AttentionPool: give either queries= at construction or query= here")
        query = queries.expand(tokens.shape[0], -1, -1)  # (B, Q, C)
        visible = None if key_padding_mask is None else ~key_padding_mask[:, None]  # (B, 1, N)

        if self.score is None:
            mask = None if visible is None else visible[:, None]
            z = attend(query[:, None], tokens[:, None], tokens[:, None], mask=mask)[:, 0]
        else:
            pairs = self.of_token(tokens)[:, None] + self.of_query(query)[:, :, None]
            weights = masked_softmax(self.score(pairs.tanh())[..., 0], visible)  # (B, Q, N)
            capture(weights[:, None], "weights")  # (B, 1, Q, N), as attend does
            z = weights.to(tokens.dtype) @ tokens
        return z[:, 0] if learned and z.shape[1] == 1 else z


@checked
class SequencePool(nn.Module):
    """z = Σ softmax(g(x))_i x_i with a learned linear g (Hassani et al., CCT, arXiv 2104.05704).

    Shape: tokens (B, N, C) -> (B, C)

    `AttentionPool` with unscaled dot products. The bias that g has in the release cancels in the
    softmax; there is none here.

    Args:
        width: C.
    """

    def __init__(self, width: Size):
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, width))
        nn.init.trunc_normal_(self.query, std=0.02)  # as released

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query.expand(tokens.shape[0], 1, 1, -1)  # (B, h, Q, C), one head and one query
        return attend(query, tokens[:, None], tokens[:, None], scale=1.0)[:, 0, 0]
