"""Squeeze-and-Excitation."""

from collections.abc import Callable

from torch import Tensor, nn

from attention_vision.attention.recording import capture
from attention_vision.ranges import Count, Size, checked


@checked
class SqueezeExcite(nn.Module):
    """Channel gate from the mean: x · σ(W₂ act(W₁ mean(x))) (Hu et al., arXiv 1709.01507, eq. 3).

    Shape: (B, C, H, W) -> (B, C, H, W)

    Both layers are biased, as in the released Caffe model and in timm. In a ResNet block it stands
    after the last norm, before the residual is added; the shortcut is not gated.

    Args:
        channels: C.
        reduction: the hidden width is C // reduction.
        activation: of the hidden layer; EfficientNet uses `torch.nn.SiLU`.
        divisor: the hidden width is rounded to the nearest multiple of it, and is never less than
            one. timm's SE-ResNets have 8: SE-ResNet-18 then has hidden widths 8, 8, 16 and 32 in
            place of the paper's 4, 8, 16 and 32, and 1,032 parameters more.

    Raises:
        ValueError: `reduction` or `divisor` is not positive.
    """

    def __init__(
        self,
        channels: Size,
        reduction: Count = 16,
        activation: Callable[[], nn.Module] = nn.ReLU,
        divisor: Count = 1,
    ):
        super().__init__()
        # Half a divisor rounds up. timm's limit of 0.9 on rounding down is off in its SE modules.
        hidden = max(divisor, (channels // reduction + divisor // 2) // divisor * divisor)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.activation = activation()
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        gate = self.excite(self.activation(self.squeeze(mean))).sigmoid()  # (B, C, 1, 1)
        capture(gate)
        return x * gate
