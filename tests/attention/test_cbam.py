"""CBAM's ablations: what the channel gate pools, and in which order the gates stand."""

import naive
import pytest
import torch
from naive import each, gated, linear
from redraw import redraw

from attention_vision.attention import CBAM, ChannelGate, record_attention


def channel_gate(pool):
    """The channel gate that pools by one function alone, channel by channel."""

    @each
    def gate(m, x):
        pooled = torch.stack([pool(channel) for channel in x])
        return gated(x, torch.sigmoid(linear(m.mlp[2], torch.relu(linear(m.mlp[0], pooled)))))

    return gate


def spatial_first(m, x):
    return naive.channel_gate(m.channel, naive.spatial_gate(m.spatial, x))


def parallel(m, x):
    gates = [naive.channel_gate(m.channel, x) / x, naive.spatial_gate(m.spatial, x) / x]
    return x * gates[0] * gates[1]


VARIANTS = {
    "avg": (lambda: ChannelGate(8, 2, pooling="avg"), channel_gate(torch.mean)),
    "max": (lambda: ChannelGate(8, 2, pooling="max"), channel_gate(torch.amax)),
    "spatial first": (lambda: CBAM(8, 2, 3, order="spatial_first"), spatial_first),
    "parallel": (lambda: CBAM(8, 2, 3, order="parallel"), parallel),
}


@pytest.mark.parametrize(("make", "loop"), VARIANTS.values(), ids=VARIANTS)
def test_variants_equal_their_loops(make, loop):
    module = redraw(make(), 1).eval().double()
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(module(x), loop(module, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", ["channel_first", "spatial_first", "parallel"])
def test_both_gates_are_recorded_in_every_order(order):
    x = torch.randn(2, 8, 5, 4)
    module = redraw(CBAM(8, 2, order=order), 1).eval()
    with record_attention(module) as maps:
        y = module(x)
    assert set(maps) == {"channel", "spatial"}
    torch.testing.assert_close(y, x * maps["channel"] * maps["spatial"])


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: ChannelGate(8, pooling="mean"), "pooling 'mean' is not one of avg, max, both"),
        (lambda: CBAM(8, order="channel"), "order 'channel' is not one of channel_first,"),
        (lambda: CBAM(8, pooling="sum"), "pooling 'sum'"),
    ],
)
def test_unknown_variants_are_one_line(build, line):
    with pytest.raises(ValueError, match=line):
        build()
