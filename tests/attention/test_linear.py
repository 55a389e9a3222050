"""The linear layer of tokens computes torch's product, whichever kernel it selects."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from attention_vision.attention import linear
from attention_vision.attention.linear import Linear


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Convolutions(TorchFunctionMode):
    """Counts the convolutions that run."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.conv2d
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(8, 197, 64), (1, 1, 64), (300, 64), (2, 4, 49, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_product_and_gradients_are_those_of_torch(shape, bias, two_threads, monkeypatch):
    monkeypatch.setattr(linear, "LARGE", 1)
    torch.manual_seed(0)
    ours, torchs = Linear(64, 96, bias), nn.Linear(64, 96, bias)
    torchs.load_state_dict(ours.state_dict())
    inputs = [torch.randn(shape).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    with Convolutions() as convolutions:
        outputs = [layer(x) for layer, x in zip((ours, torchs), inputs, strict=True)]
    assert convolutions.count == 1
    assert outputs[0].stride() == outputs[1].stride()
    weights = torch.randn_like(outputs[0])
    found, wanted = (
        torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])
        for y, x, layer in zip(outputs, inputs, (ours, torchs), strict=True)
    )
    for a, b in zip((outputs[0], *found), (outputs[1], *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * b.abs().max().item())


def test_torch_computes_what_the_convolution_would_slow(two_threads, monkeypatch):
    layer = Linear(64, 96)
    assert not layer.pays(torch.randn(8, 197, 64))  # small
    monkeypatch.setattr(linear, "LARGE", 1)
    assert layer.pays(torch.randn(8, 197, 64))
    assert not layer.pays(torch.randn(8, 197, 64, dtype=torch.float64))
    assert not layer.pays(torch.randn(64))
    assert not layer.pays(torch.randn(8, 197, 64, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not layer.pays(torch.randn(8, 197, 64))
    torch.set_num_threads(1)
    assert not layer.pays(torch.randn(8, 197, 64))


def test_a_compiled_network_is_one_graph(two_threads, monkeypatch):
    monkeypatch.setattr(linear, "LARGE", 1)
    torch.compiler.reset()
    layers = nn.Sequential(Linear(6, 5), Linear(5, 3))
    x = torch.randn(2, 4, 6)
    compiled = torch.compile(layers, backend="eager", fullgraph=True)  # raises at a break
    torch.testing.assert_close(compiled(x), layers(x))
