"""What a task may ask of any backbone, and the plain pool."""

from torch import Tensor, nn


class Backbone(nn.Module):
    """A network that gives feature maps, and classifies images by pooling the last of them.

    Its subclasses are what `network:` and `backbone:` accept in a configuration file. They set

    * `num_classes`: number of logits, 0 for none (then `forward` gives the pooled features);
    * `channels`: channels of each map that `features` gives;
    * `strides`: pixels of the image per pixel of each of these maps;
    * `prefix`: tokens before those of the last map, 1 with a class token;
    * `pool`: maps tokens (B, N, C) -> (B, C);
    * `head`: maps (B, C) -> (B, num_classes).
    """

    num_classes: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    prefix: int = 0
    pool: nn.Module
    head: nn.Module

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps (B, C_i, H / S_i, W / S_i), fine to coarse."""
        raise NotImplementedError

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, prefix + N, C): what is pooled, the last map row by row."""
        return self.features(images)[-1].flatten(2).mT

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, num_classes)."""
        return self.head(self.pool(self.tokens(images)))


class MeanPool(nn.Module):
    """The mean over tokens: global average pooling. Shape: (B, N, C) -> (B, C)."""

    def __init__(self, width: int):
        super().__init__()

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)
