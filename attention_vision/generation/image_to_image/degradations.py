"""Degradations for restoration: noise, holes, low resolution.

A degradation maps an image (3, H, W) in 0..1 to the network's input of `channels` channels. It uses
torch's global random stream, which the data seeds per sample.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_vision.errors import InputError
from attention_vision.ranges import Count, NonNegative, Range, Share, checked


class Degradation(nn.Module):
    """Base: image (3, H, W) in 0..1 -> input (C, H, W), whose first three channels are an image."""

    channels = 3

    def forward(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    def undegraded(self, image: Tensor) -> Tensor:
        """Network input of an image that is degraded already, for predict."""
        return image


@checked
class Noise(Degradation):
    """White Gaussian noise, not clipped, as in DnCNN (arXiv 1608.03981) and its successors.

    Args:
        sigma: standard deviation in gray levels of 0..255; 25 is customary.
        sigma_high: draw each image's sigma from `sigma`..`sigma_high`; None for a fixed one.
    """

    def __init__(self, sigma: NonNegative = 25.0, sigma_high: NonNegative | None = None):
        super().__init__()
        if sigma_high is not None and sigma_high < sigma:
            raise InputError(f"Noise: sigma {sigma} and sigma_high {sigma_high} are not a range")
        self.sigma, self.sigma_high = sigma, sigma_high

    def forward(self, image: Tensor) -> Tensor:
        sigma = self.sigma
        if self.sigma_high is not None:
            sigma += (self.sigma_high - sigma) * torch.rand(()).item()
        return image + torch.randn_like(image) * (sigma / 255)


@checked
class Holes(Degradation):
    """Gray rectangles, with a fourth channel that is 1 inside of them.

    Args:
        count: number of rectangles; they may overlap.
        least: smallest side of a rectangle as a fraction of the image's.
        most: largest side of a rectangle as a fraction of the image's.
    """

    channels = 4

    def __init__(self, count: Count = 2, least: Share = 0.15, most: Share = 0.4):
        super().__init__()
        if least > most:
            raise InputError(f"Holes: least {least} is above most {most}")
        self.count, self.least, self.most = count, least, most

    def forward(self, image: Tensor) -> Tensor:
        hole = torch.zeros_like(image[:1])
        for _ in range(self.count):
            rows, columns = (self.random_slice(length) for length in image.shape[1:])
            hole[:, rows, columns] = 1
        return torch.cat((torch.where(hole > 0, 0.5, image), hole))

    def random_slice(self, length: int) -> slice:
        fraction = self.least + (self.most - self.least) * torch.rand(()).item()
        extent = max(1, round(fraction * length))
        start = int(torch.randint(length - extent + 1, ()))
        return slice(start, start + extent)

    def undegraded(self, image: Tensor) -> Tensor:
        """Raise InputError: the positions of holes cannot be read from an image."""
        raise InputError(
            "an image does not tell where its holes are: set data.degrade to true, and predict from"
            " whole images"
        )


@checked
class LowResolution(Degradation):
    """Lower resolution: shrunk by a factor and enlarged to the size of the image, both bicubic.

    Args:
        factor: ratio of the sides.
    """

    def __init__(self, factor: Annotated[int, Range(2, 64)] = 2):
        super().__init__()
        self.factor = factor

    def forward(self, image: Tensor) -> Tensor:
        small = [max(1, length // self.factor) for length in image.shape[1:]]
        return resized(resized(image, small), image.shape[1:])

    def undegraded(self, image: Tensor) -> Tensor:
        """Enlarge a small image by the factor."""
        return resized(image, [length * self.factor for length in image.shape[1:]])


def resized(image: Tensor, size: list[int] | torch.Size) -> Tensor:
    """Resize bicubically, with antialiasing if it shrinks; clipped to 0..1."""
    return F.interpolate(image[None], tuple(size), mode="bicubic", antialias=True)[0].clamp(0, 1)
