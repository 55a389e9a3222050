"""3x3 convolutions merged with the resampling beside them: equal, at four ninths of the cost.

Doubling by nearest neighbors repeats every pixel, so that of the nine products of a convolution
behind it many are with the same pixel; the mean of 2x2 outputs likewise sums products with the same
input. Both are one kernel of 4x4 and stride 2, whose 16 weights are sums of the nine: 4 products an
output instead of 9 behind a doubling, 16 instead of 36 before a halving. Rounding apart the numbers
are those of the two steps, borders of zeros included; parameters are those of `nn.Conv2d`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _ResampledConv2d(nn.Conv2d):
    """Base: a 3x3 convolution, and the 4x4 kernel that it is with the resampling.

    Args:
        inputs, outputs: channels.
        sums: (9, 16), the 16 weights as sums of the nine.
    """

    sums: Tensor

    def __init__(self, inputs: int, outputs: int, sums: Tensor):
        super().__init__(inputs, outputs, 3, padding=1)
        self.register_buffer("sums", sums, persistent=False)

    def kernel(self) -> Tensor:
        """(outputs, inputs, 4, 4)"""
        weight = self.weight
        with torch.autocast(weight.device.type, enabled=False):
            return (weight.flatten(2) @ self.sums.to(weight.dtype)).unflatten(2, (4, 4))


class DoublingConv2d(_ResampledConv2d):
    """A 3x3 convolution of the map doubled by nearest neighbors.

    Shape: (B, inputs, H, W) -> (B, outputs, 2H, 2W)
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, _box_sums().flip(1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.kernel().transpose(0, 1), self.bias, stride=2, padding=1)


class HalvingConv2d(_ResampledConv2d):
    """A 3x3 convolution, and the means of 2x2 of its pixels.

    Shape: (B, inputs, 2H, 2W) -> (B, outputs, H, W)
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, _box_sums() / 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel(), self.bias, stride=2, padding=1)


def _box_sums() -> Tensor:
    """The full convolution of 3x3 weights with 2x2 ones, as a matrix (9, 16)."""
    axis = torch.eye(3, 4) + torch.eye(3, 4).roll(1, dims=1)
    return torch.kron(axis, axis)
