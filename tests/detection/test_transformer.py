"""The layers of DETR's transformer equal their formulas, with and without pre-norm."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attention_vision.detection.transformer import DecoderLayer, EncoderLayer, Residual


def naive(residual: Residual, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """The two formulas of the docstring."""
    if residual.norm_first:
        return x + residual.dropout(f(residual.norm(x)))
    return residual.norm(x + residual.dropout(f(x)))


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layer_draws_the_same_dropout_as_its_formula(norm_first):
    layer = EncoderLayer(16, 2, 32, 0.3, norm_first)
    x, position, padding = torch.randn(2, 6, 16), torch.randn(2, 6, 16), torch.zeros(2, 6) > 0
    padding[1, 4:] = True

    def attend(y: Tensor) -> Tensor:
        return layer.self_attention(y + position, y + position, y, key_padding_mask=padding)

    torch.manual_seed(0)
    got = layer(x, position, padding)
    torch.manual_seed(0)
    expected = naive(layer.residual1, x, attend)
    assert torch.equal(got, naive(layer.residual2, expected, layer.feed_forward))


@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_layer_draws_the_same_dropout_as_its_formula(norm_first):
    layer = DecoderLayer(16, 2, 32, 0.3, norm_first)
    x, position = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    memory, key, padding = torch.randn(2, 6, 16), torch.randn(2, 6, 16), torch.zeros(2, 6) > 0
    padding[1, 4:] = True

    def attend(y: Tensor) -> Tensor:
        return layer.self_attention(y + position, y + position, y)

    def cross(y: Tensor) -> Tensor:
        return layer.cross_attention(y + position, key, memory, key_padding_mask=padding)

    torch.manual_seed(0)
    got = layer(x, position, memory, key, padding)
    torch.manual_seed(0)
    expected = naive(layer.residual2, naive(layer.residual1, x, attend), cross)
    assert torch.equal(got, naive(layer.residual3, expected, layer.feed_forward))
