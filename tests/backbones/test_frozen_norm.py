"""A convolution and a frozen batch norm are one convolution."""

import pytest
import torch
from redraw import redraw
from torchvision.ops import FrozenBatchNorm2d

from attention_vision.backbones.resnet import conv, convolve


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_a_frozen_norm_is_part_of_the_kernel(stride, dilation):
    layer, norm = conv(4, 6, 3, stride, dilation).double(), FrozenBatchNorm2d(6).double()
    redraw(norm, 1)
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64, requires_grad=True)
    folded, plain = convolve(layer, norm, x), norm(layer(x))
    torch.testing.assert_close(folded, plain)
    weights = torch.randn_like(plain)
    for one, other in zip(
        *(torch.autograd.grad((y * weights).sum(), (x, layer.weight)) for y in (folded, plain)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    assert not any(torch.allclose(y, layer(x)) for y in (folded, plain))
