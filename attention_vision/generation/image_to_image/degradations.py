"""What restoration undoes: noise, holes, low resolution.

A degradation maps an image (3, H, W) in 0..1 to the network's input. It draws from torch's global
stream, which the data seeds per sample; `channels` says how many an input has.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_vision.errors import InputError


class Degradation(nn.Module):
    """Base: image (3, H, W) in 0..1 -> input (C, H, W), whose first three channels are an image."""

    channels = 3

    def forward(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    def undegraded(self, image: Tensor) -> Tensor:
        """The input made of an image that came degraded, for predict."""
        return image


class Noise(Degradation):
    """Adds white Gaussian noise; not clipped, as in DnCNN (arXiv 1608.03981) and its successors.

    Args:
        sigma: standard deviation in grey levels of 0..255; 25 is the customary one.
        sigma_high: draw each image's from `sigma`..`sigma_high`; none fixes it.
    """

    def __init__(self, sigma: float = 25.0, sigma_high: float | None = None):
        super().__init__()
        if sigma < 0 or (sigma_high is not None and sigma_high < sigma):
            raise InputError(f"Noise: sigma {sigma} and sigma_high {sigma_high} are no range")
        self.sigma, self.sigma_high = sigma, sigma_high

    def forward(self, image: Tensor) -> Tensor:
        sigma = self.sigma
        if self.sigma_high is not None:
            sigma += (self.sigma_high - sigma) * torch.rand(()).item()
        return image + torch.randn_like(image) * (sigma / 255)


class Holes(Degradation):
    """Greys out rectangles, and tells which pixels by a fourth channel that is 1 inside.

    Args:
        count: rectangles; they may overlap.
        least: side of a rectangle as a share of the image's, at least.
        most: the same, at most.
    """

    channels = 4

    def __init__(self, count: int = 2, least: float = 0.15, most: float = 0.4):
        super().__init__()
        if count < 1 or not 0 < least <= most <= 1:
            raise InputError(f"Holes: count {count}, sides {least}..{most} of the image")
        self.count, self.least, self.most = count, least, most

    def forward(self, image: Tensor) -> Tensor:
        hole = torch.zeros_like(image[:1])
        for _ in range(self.count):
            rows, columns = (self.stretch(length) for length in image.shape[1:])
            hole[:, rows, columns] = 1
        return torch.cat((torch.where(hole > 0, 0.5, image), hole))

    def stretch(self, length: int) -> slice:
        share = self.least + (self.most - self.least) * torch.rand(()).item()
        extent = max(1, round(share * length))
        start = int(torch.randint(length - extent + 1, ()))
        return slice(start, start + extent)

    def undegraded(self, image: Tensor) -> Tensor:
        """Raises InputError: nothing in an image says where its holes are."""
        raise InputError(
            "an image does not tell where its holes are: set data.degrade to true, and predict from"
            " whole images"
        )


class LowResolution(Degradation):
    """Shrinks by a factor and enlarges again, both bicubic: the input has the size of the result.

    Args:
        factor: of the sides.
    """

    def __init__(self, factor: int = 2):
        super().__init__()
        if factor < 2:
            raise InputError(f"LowResolution: factor {factor} is less than 2")
        self.factor = factor

    def forward(self, image: Tensor) -> Tensor:
        small = [max(1, length // self.factor) for length in image.shape[1:]]
        return resized(resized(image, small), image.shape[1:])

    def undegraded(self, image: Tensor) -> Tensor:
        """Enlarges a small image by the factor."""
        return resized(image, [length * self.factor for length in image.shape[1:]])


def resized(image: Tensor, size: list[int] | torch.Size) -> Tensor:
    """Bicubic, with antialiasing where it shrinks, in 0..1."""
    return F.interpolate(image[None], tuple(size), mode="bicubic", antialias=True)[0].clamp(0, 1)
