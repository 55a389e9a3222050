"""What a task may ask of any backbone, and the plain pool."""

from torch import Tensor, nn


class Backbone(nn.Module):
    """A network that classifies images and gives feature maps.

    Its subclasses are what `network:` and `backbone:` accept in a configuration file. They set

    * `num_classes`: number of logits, 0 for none (then `forward` gives the pooled features);
    * `channels`: channels of each map that `features` gives;
    * `strides`: pixels of the image per pixel of each of these maps.
    """

    num_classes: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps (B, C_i, H / S_i, W / S_i), fine to coarse."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, num_classes)."""
        raise NotImplementedError


class MeanPool(nn.Module):
    """The mean over tokens: global average pooling. Shape: (B, N, C) -> (B, C)."""

    def __init__(self, width: int):
        super().__init__()

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)
