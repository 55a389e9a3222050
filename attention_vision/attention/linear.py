"""The linear layer of tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Multiply-adds below which the longer call of a convolution costs more than its kernel gains.
LARGE = 10**8


class Linear(nn.Linear):
    """`torch.nn.Linear`, on several CPU threads computed by oneDNN as a 1x1 convolution.

    Shape: (..., C) -> (..., out_features)

    PyTorch multiplies float32 matrices by MKL. The tokens side by side are a map of one row, and of
    it oneDNN computes the same product, the gradients of its factors and of the bias, in 9 to 12 %
    less time at the shapes of ViT-S on an AMD CPU with AVX-512. With one thread PyTorch does not
    call oneDNN.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.pays(input):
            return super().forward(input)
        # The strides of a map with channels last, those of axes of length 1 included.
        row = input.reshape(1, 1, -1, self.in_features).permute(0, 3, 1, 2)  # (1, C, 1, tokens)
        row = F.conv2d(row, self.weight[..., None, None], self.bias)
        return row.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)

    def pays(self, input: Tensor) -> bool:
        """Whether the convolution is chosen for this input; compiled code has its own kernels."""
        return (
            not torch.compiler.is_compiling()  # the number of threads would break its graph
            and input.device.type == "cpu"
            and input.dtype == torch.float32
            and input.ndim > 1
            and input.numel() * self.out_features >= LARGE
            and torch.get_num_threads() > 1
            and not torch.is_autocast_enabled("cpu")
        )
