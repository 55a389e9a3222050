"""CompactResNet: its filters, its fast biases, its size."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attention_vision.attention import MultiHeadAttention
from attention_vision.backbones import CompactResNet
from attention_vision.backbones.compact_resnet import (
    COLORS,
    NEIGHBOR,
    BiasNorm,
    whitening_filters,
)
from attention_vision.errors import InputError


def test_the_filters_whiten_what_they_are_made_for():
    """Patches with the modeled correlations, drawn at random, come out uncorrelated."""
    generator = torch.Generator().manual_seed(0)
    line = torch.tensor([[1, NEIGHBOR], [NEIGHBOR, 1]])
    roots = [torch.linalg.cholesky(part) for part in (torch.tensor(COLORS), line, line)]
    noise = torch.randn(100_000, 3, 2, 2, generator=generator)
    patches = torch.einsum("nchw,dc,ih,jw->ndij", noise, *roots)
    white = patches.flatten(1) @ whitening_filters(3).flatten(1).T
    covariance = torch.cov(white.T)
    assert (covariance - covariance.diag().diag()).abs().max() < 0.03
    assert covariance[0, 0] == pytest.approx(1, abs=0.03)
    variances = covariance.diag()
    assert (variances.diff() < 0.02).all()  # the floor takes most from the smallest


def test_the_filters_are_the_same_everywhere():
    """No sign or order is left to the library of linear algebra."""
    filters = whitening_filters(3)
    assert (filters[:, -1, -1, -1] > 0).all()  # blue, below, on the right
    assert (filters.flatten(1).norm(dim=1).diff() > -1e-5).all()
    edges = filters[2:4].sum(1)  # of equal eigenvalues: rows differ in the first, then columns
    assert torch.allclose(edges[0], -edges[0].flip(0))
    assert torch.allclose(edges[1], edges[0].T)
    assert whitening_filters(1).shape == (4, 1, 2, 2)
    assert whitening_filters(5).shape == (20, 5, 2, 2)


def test_a_gain_of_eight_is_a_rate_of_sixty_four():
    x, target = torch.randn(2, 16, 3, 4, 4)
    moved = []
    for gain, rate in ((8.0, 0.01), (1.0, 0.64)):
        norm = BiasNorm(3, gain)
        optimizer = torch.optim.SGD(norm.parameters(), lr=rate)
        for _ in range(3):
            optimizer.zero_grad()
            (norm(x) - target).square().mean().backward()
            optimizer.step()
        moved.append(norm.bias * gain)
        assert norm.num_batches_tracked == 3
    torch.testing.assert_close(*moved)


def test_size():
    network = CompactResNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_971_640
    with FlopCounterMode(display=False) as counter:
        maps = network.features(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * (118_147_360 - 2_560)  # all but the head
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 15, 15), (256, 7, 7), (256, 3, 3)]
    assert network.stem.weight.requires_grad is False


def test_other_channels_and_a_wrong_slot():
    assert CompactResNet(in_channels=1, num_classes=0)(torch.zeros(2, 1, 28, 28)).shape == (2, 256)
    with pytest.raises(InputError, match="CompactResNet: attention MultiHeadAttention does not"):
        CompactResNet(attention=lambda channels: MultiHeadAttention(channels, 2))
