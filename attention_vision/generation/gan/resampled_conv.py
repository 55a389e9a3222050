"""3x3 convolutions merged with the resampling beside them: equal, at four ninths of the cost.

Doubling by nearest neighbors repeats every pixel, so that of the nine products of a convolution
behind it many are with the same pixel; the mean of 2x2 outputs likewise sums products with the same
input. Both are one kernel of 4x4 and stride 2, whose 16 weights are sums of the nine: 4 products an
output instead of 9 behind a doubling, 16 instead of 36 before a halving. Rounding apart the numbers
are those of the two steps, borders of zeros included.
"""

import torch.nn.functional as F
from torch import Tensor, nn


def double_and_convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """`conv` of the map doubled by nearest neighbors. Shape: (B, C, H, W) -> (B, K, 2H, 2W)

    `conv` has a kernel of 3x3 and a padding of 1, here and in `convolve_and_halve`.
    """
    kernel = _box_sums(conv.weight, divisor=1).flip(2, 3).transpose(0, 1)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


def convolve_and_halve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Means of 2x2 pixels of `conv`'s map. Shape: (B, C, 2H, 2W) -> (B, K, H, W)"""
    return F.conv2d(x, _box_sums(conv.weight, divisor=4), conv.bias, stride=2, padding=1)


def _box_sums(kernel: Tensor, divisor: int) -> Tensor:
    """(K, C, 3, 3) -> (K, C, 4, 4): the full convolution with 2x2 ones, over `divisor`."""
    return F.avg_pool2d(kernel, 2, stride=1, padding=1, divisor_override=divisor)
