"""The transformer of DETR.

It differs from `torch.nn.Transformer` in three ways: positions are added to the queries and keys
(not the values) of every layer; the decoder returns its state after every layer, for auxiliary
losses; and every attention is this package's `MultiHeadAttention`, so that any of them can be
recorded by name.
"""

import torch
from torch import Tensor, nn

from attention_vision.attention import MultiHeadAttention


class Residual(nn.Module):
    """Residual branch: norm(x + dropout(f(x))) as released, or x + dropout(f(norm(x))).

    The latter with `norm_first`. `branch_input(x)` is what f is applied to, and its result goes to
    `forward`. Shape: all (B, N, C)
    """

    def __init__(self, width: int, dropout: float, norm_first: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def branch_input(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.norm_first else x

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        x = x + self.dropout(branch)
        return x if self.norm_first else self.norm(x)


class FeedForward(nn.Sequential):
    """Linear, ReLU, dropout, linear. Shape: (B, N, C) -> (B, N, C)"""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.reduce = nn.Linear(hidden, width)


class EncoderLayer(nn.Module):
    """Self-attention over the feature map, then the feed-forward network.

    Shape: x and position (B, N, C), padding (B, N) bool True where padded -> (B, N, C)
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, norm_first: bool):
        super().__init__()
        self.self_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.residual1 = Residual(width, dropout, norm_first)
        self.residual2 = Residual(width, dropout, norm_first)

    def forward(self, x: Tensor, position: Tensor, padding: Tensor) -> Tensor:
        value = self.residual1.branch_input(x)
        query = key = value + position
        x = self.residual1(x, self.self_attention(query, key, value, key_padding_mask=padding))
        return self.residual2(x, self.feed_forward(self.residual2.branch_input(x)))


class DecoderLayer(nn.Module):
    """Self-attention of the queries, cross-attention to the memory, then the feed-forward network.

    Shape: x and query_position (B, Q, C), memory and memory_key, which is memory + position,
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
        memory: Tensor,
        memory_key: Tensor,
        padding: Tensor,
    ) -> Tensor:
        value = self.residual1.branch_input(x)
        query = key = value + query_position
        x = self.residual1(x, self.self_attention(query, key, value))

        query = self.residual2.branch_input(x) + query_position
        attended = self.cross_attention(query, memory_key, memory, key_padding_mask=padding)
        x = self.residual2(x, attended)
        return self.residual3(x, self.feed_forward(self.residual3.branch_input(x)))


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
        self, features: Tensor, position: Tensor, padding: Tensor, query_position: Tensor
    ) -> Tensor:
        """Encodes the feature map and decodes the queries.

        Args:
            features, position: (B, N, C).
            padding: (B, N) bool, True where padded.
            query_position: (Q, C), learned.

        Returns:
            the normed state after each of the L decoder layers, (L, B, Q, C).
        """
        memory = features
        for layer in self.encoder:
            memory = layer(memory, position, padding)
        memory = self.encoder_norm(memory)

        memory_key = memory + position  # of every decoder layer
        query_position = query_position.expand(len(memory), -1, -1)
        x = torch.zeros_like(query_position)
        states = []
        for layer in self.decoder:
            x = layer(x, query_position, memory, memory_key, padding)
            states.append(x)
        return self.decoder_norm(torch.stack(states))
