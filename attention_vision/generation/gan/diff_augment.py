"""Differentiable augmentation of what the discriminator sees, for training on few images."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_vision.errors import InputError

Part = Literal["colour", "translation", "cutout"]


class DiffAugment(nn.Module):
    """Random changes of colour, place and content (Zhao et al., arXiv 2006.10738, section 4).

    Shape: (B, 3, H, W) in -1..1 -> the same; each image by its own draw, and differentiable, so
    that the generator learns through it. Both networks see augmented images in all of their steps:
    were it real ones alone, the generator would learn to augment.

    Args:
        parts: of "colour" (brightness, saturation, contrast), "translation" (up to an eighth of the
            side, zeros beyond the edge) and "cutout" (a square of half the side), in this order.

    Raises:
        InputError: another part.
    """

    def __init__(self, parts: Sequence[Part] = ()):
        super().__init__()
        known = {"colour": colour, "translation": translation, "cutout": cutout}
        if unknown := set(parts) - known.keys():
            raise InputError(
                f"augment: no part {min(unknown)!r} of DiffAugment; there are {', '.join(known)}"
            )
        self.parts = [known[part] for part in known if part in parts]

    def forward(self, images: Tensor) -> Tensor:
        for part in self.parts:
            images = part(images)
        return images


def colour(images: Tensor) -> Tensor:
    """Brightness by up to 0.5, saturation by a factor of 0 to 2, contrast by one of 0.5 to 1.5."""
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, device=images.device)
    images = images + brightness - 0.5
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * 2 * saturation
    middle = images.mean((1, 2, 3), keepdim=True)
    return middle + (images - middle) * (contrast + 0.5)


def translation(images: Tensor, share: float = 0.125) -> Tensor:
    """By up to `share` of each side, whole pixels; what comes in is 0."""
    *_, height, width = images.shape
    high, wide = round(height * share), round(width * share)
    device, count = images.device, len(images)
    down = torch.randint(0, 2 * high + 1, (count, 1, 1), device=device)
    right = torch.randint(0, 2 * wide + 1, (count, 1, 1), device=device)
    rows = down + torch.arange(height, device=device)[:, None]  # of the padded image
    columns = right + torch.arange(width, device=device)
    which = torch.arange(count, device=device)[:, None, None]
    padded = F.pad(images, (wide, wide, high, high)).movedim(1, -1)
    return padded[which, rows, columns].movedim(-1, 1)


def cutout(images: Tensor, share: float = 0.5) -> Tensor:
    """A rectangle of `share` of each side becomes 0; its centre lies anywhere, so parts of it may
    lie outside."""
    *_, height, width = images.shape
    high, wide = round(height * share), round(width * share)
    device, count = images.device, len(images)
    top = torch.randint(0, height + (1 - high % 2), (count, 1, 1), device=device) - high // 2
    left = torch.randint(0, width + (1 - wide % 2), (count, 1, 1), device=device) - wide // 2
    row = torch.arange(height, device=device)[:, None]
    column = torch.arange(width, device=device)
    inside = (row >= top) & (row < top + high) & (column >= left) & (column < left + wide)
    return images.masked_fill(inside[:, None], 0)
