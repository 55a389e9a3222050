"""Controls: blocks without attention of about the cost of `SelfAttention2d`, for ablations."""

from torch import Tensor, nn

from attention_vision.ranges import Size, checked


@checked
class PlainBottleneck(nn.Module):
    """A ResNet bottleneck that keeps channels and size (He et al., arXiv 1512.03385, fig. 5).

    Shape: (B, C, H, W) -> (B, C, H, W)

    relu(x + norm(conv(...))) with convolutions of 1x1, 3x3 and 1x1, C / 4 channels inside. At 64
    channels it has 4,544 parameters, `SelfAttention2d` has 5,121.

    Args:
        channels: C, a multiple of 4.
    """

    def __init__(self, channels: Size):
        super().__init__()
        width = channels // 4
        self.conv1 = conv(channels, width, 1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, channels, 1)
        self.norm3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        return (x + self.norm3(self.conv3(y))).relu()


def conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size, initialized as in ResNet."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


@checked
class ResidualBlock2d(nn.Module):
    """x + conv(relu(conv(relu(x)))), as many parameters as `SelfAttention2d`: SAGAN's control.

    Shape: (B, C, H, W) -> (B, C, H, W)

    SAGAN (arXiv 1805.08318, Table 1) asks whether attention helps or depth does. Attention has
    5/4 C² parameters, two 3x3 convolutions through 5/72 C channels have as many, up to rounding.

    Args:
        channels: C.
    """

    def __init__(self, channels: Size):
        super().__init__()
        hidden = max(1, round(channels * 5 / 72))
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x.relu()).relu())
