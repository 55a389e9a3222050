"""Squeeze-and-Excitation."""

from collections.abc import Callable

from torch import Tensor, nn

from attention_vision.attention.record import note


class SqueezeExcite(nn.Module):
    """Channel gate from the mean: x · σ(W₂ act(W₁ mean(x))) (Hu et al., arXiv 1709.01507, eq. 3).

    Shape: (B, C, H, W) -> (B, C, H, W)

    Both layers are biased, as in the released Caffe model and in timm. In a ResNet block it stands
    after the last norm, before the residual is added.

    Args:
        channels: C.
        reduction: the hidden width is C // reduction, at least 1.
        activation: of the hidden layer; EfficientNet uses `torch.nn.SiLU`.

    Raises:
        ValueError: `reduction` is not positive.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ):
        super().__init__()
        if reduction < 1:
            raise ValueError(f"SqueezeExcite: reduction {reduction} is not positive")
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.activation = activation()
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        gate = self.excite(self.activation(self.squeeze(mean))).sigmoid()  # (B, C, 1, 1)
        note(gate)
        return x * gate
