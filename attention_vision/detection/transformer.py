"""The transformer of DETR.

It differs from `torch.nn.Transformer` in three ways: positions are added to the queries and keys
(not the values) of every layer; the decoder gives its state after every layer, for auxiliary
losses; and every attention is this package's `MultiHeadAttention`, so that any of them can be
recorded by name.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attention_vision.attention import MultiHeadAttention


class Residual(nn.Module):
    """norm(x + dropout(f(x))) as released, or x + dropout(f(norm(x))) with `norm_first`."""

    def __init__(self, width: int, dropout: float, norm_first: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return x + self.dropout(branch(self.norm(x)))
        return self.norm(x + self.dropout(branch(x)))


class FeedForward(nn.Sequential):
    """Linear, ReLU, dropout, linear. Shape: (B, N, C) -> (B, N, C)"""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.reduce = nn.Linear(hidden, width)


class EncoderLayer(nn.Module):
    """Pixels attend to pixels, then the feed-forward network.

    Shape: x and position (B, N, C), padding (B, N) bool True where padded -> (B, N, C)
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, norm_first: bool):
        super().__init__()
        self.self_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.residual1 = Residual(width, dropout, norm_first)
        self.residual2 = Residual(width, dropout, norm_first)

    def forward(self, x: Tensor, position: Tensor, padding: Tensor) -> Tensor:
        def attend_to_pixels(y: Tensor) -> Tensor:
            placed = y + position
            return self.self_attention(placed, placed, y, key_padding_mask=padding)

        x = self.residual1(x, attend_to_pixels)
        return self.residual2(x, self.feed_forward)


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to the pixels, then the feed-forward network.

    Shape: x and query_position (B, Q, C), pixels and placed_pixels, which are pixels + position,
    (B, N, C), padding (B, N) -> (B, Q, C)
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, norm_first: bool):
        super().__init__()
        self.self_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.cross_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.residual1 = Residual(width, dropout, norm_first)
        self.residual2 = Residual(width, dropout, norm_first)
        self.residual3 = Residual(width, dropout, norm_first)

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        pixels: Tensor,
        placed_pixels: Tensor,
        padding: Tensor,
    ) -> Tensor:
        def attend_to_queries(y: Tensor) -> Tensor:
            placed = y + query_position
            return self.self_attention(placed, placed, y)

        def attend_to_pixels(y: Tensor) -> Tensor:
            placed = y + query_position
            return self.cross_attention(placed, placed_pixels, pixels, key_padding_mask=padding)

        x = self.residual1(x, attend_to_queries)
        x = self.residual2(x, attend_to_pixels)
        return self.residual3(x, self.feed_forward)


class Transformer(nn.Module):
    """Encoder and decoder; matrices start Xavier-uniform, as released.

    Hugging Face's DETR with `auxiliary_loss=True` is another network: it feeds the normed state to
    the next decoder layer. Here, as in the release, the norm is only on the way to the heads.

    Args:
        width: C.
        heads: h, a divisor of C.
        encoder_layers: 0 is the ablation of Table 2.
        decoder_layers: at least 1.
        hidden: channels inside the feed-forward networks.
        dropout: of attention weights, of branches, and inside the feed-forward networks.
        norm_first: pre-norm, with one more norm at the end of the encoder.
    """

    def __init__(
        self,
        width: int = 256,
        heads: int = 8,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        hidden: int = 2048,
        dropout: float = 0.1,
        norm_first: bool = False,
    ):
        super().__init__()
        layer = (width, heads, hidden, dropout, norm_first)
        self.encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(encoder_layers))
        self.encoder_norm = nn.LayerNorm(width) if norm_first else nn.Identity()
        self.decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, pixels: Tensor, position: Tensor, padding: Tensor, query_position: Tensor
    ) -> Tensor:
        """Encode the pixels and decode the queries.

        Args:
            pixels, position: (B, N, C).
            padding: (B, N) bool, True where padded.
            query_position: (Q, C), learned.

        Returns:
            the normed state after each of the L decoder layers, (L, B, Q, C).
        """
        for layer in self.encoder:
            pixels = layer(pixels, position, padding)
        pixels = self.encoder_norm(pixels)

        placed_pixels = pixels + position  # the keys of every decoder layer
        query_position = query_position.expand(len(pixels), -1, -1)
        x = torch.zeros_like(query_position)
        states = []
        for layer in self.decoder:
            x = layer(x, query_position, pixels, placed_pixels, padding)
            states.append(x)
        return self.decoder_norm(torch.stack(states))
