"""The attention gate of Attention U-Net."""

import torch.nn.functional as F
from torch import Tensor, nn

from attention_vision.attention.recording import capture
from attention_vision.ranges import Size, checked

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
UPSAMPLING = {2: "bilinear", 3: "trilinear"}


@checked
class AttentionGate(nn.Module):
    """Gate of a skip connection, driven by a coarser map (arXiv 1804.03999, eq. 1-2).

    Shape: x (B, C, H, W), gating (B, G, H', W') -> (B, C, H, W); one more axis with `dims=3`

    α = σ(ψ relu(θ x + φ g)), W(α · x). As released (ozan-oktay/Attention-Gated-Networks) θ is a
    strided 2x2 convolution without bias, φ and ψ are biased 1x1 ones, φ(g) is resized to θ(x) and α
    back to x, and W is a 1x1 convolution with a batch norm.

    Args:
        channels: C.
        gating_channels: G.
        hidden: width of θ and φ; C // 2 when not given.
        dims: 2 for images, 3 for volumes.

    Raises:
        ValueError: `dims` is something else.
    """

    def __init__(
        self, channels: Size, gating_channels: Size, hidden: Size | None = None, dims: int = 2
    ):
        super().__init__()
        if dims not in CONV:
            raise ValueError(f"AttentionGate: dims {dims} is neither 2 nor 3")
        conv = CONV[dims]
        hidden = hidden or max(1, channels // 2)
        self.upsampling = UPSAMPLING[dims]
        self.theta = conv(channels, hidden, 2, stride=2, bias=False)
        self.phi = conv(gating_channels, hidden, 1)
        self.psi = conv(hidden, 1, 1)
        self.out = nn.Sequential(conv(channels, channels, 1), NORM[dims](channels))

    def forward(self, x: Tensor, gating: Tensor) -> Tensor:
        theta = self.theta(x)
        phi = self.resize(self.phi(gating), theta)
        gate = self.resize(self.psi(F.relu(theta + phi)).sigmoid(), x)  # (B, 1, H, W)
        capture(gate)
        return self.out(gate * x)

    def resize(self, y: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(y, like.shape[2:], mode=self.upsampling)
