"""Differentiable augmentation of the discriminator's input, for training on few images."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_vision.errors import InputError

Part = Literal["colour", "translation", "cutout"]


class DiffAugment(nn.Module):
    """Random changes of color, position and content (Zhao et al., arXiv 2006.10738, section 4).

    Shape: (B, 3, H, W) in -1..1 -> the same

    Each image is changed by its own random numbers, and differentiably, so that the generator
    learns through it. Both networks train on augmented images in all of their steps: if only real
    ones were augmented, the generator would learn to generate augmented images.

    Args:
        parts: of "colour" (brightness, saturation, contrast), "translation" (up to an eighth of the
            side, zeros beyond the edge) and "cutout" (a square of half the side), in this order.

    Raises:
        InputError: a part that is not one of these.
    """

    def __init__(self, parts: Sequence[Part] = ()):
        super().__init__()
        known = {"colour": jitter_color, "translation": translate, "cutout": cutout}
        if unknown := set(parts) - known.keys():
            raise InputError(
                f"augment: no part {min(unknown)!r} of DiffAugment; there are {', '.join(known)}"
            )
        self.parts = [known[part] for part in known if part in parts]

    def forward(self, images: Tensor) -> Tensor:
        for part in self.parts:
            images = part(images)
        return images


def jitter_color(images: Tensor) -> Tensor:
    """Change brightness by up to 0.5, saturation by a factor of 0 to 2, contrast of 0.5 to 1.5."""
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, device=images.device)
    images = images + brightness - 0.5
    gray = images.mean(1, keepdim=True)
    images = gray + (images - gray) * 2 * saturation
    middle = images.mean((1, 2, 3), keepdim=True)
    return middle + (images - middle) * (contrast + 0.5)


def translate(images: Tensor, fraction: float = 0.125) -> Tensor:
    """Move by up to `fraction` of each side, by whole pixels; beyond the edge are zeros."""
    *_, height, width = images.shape
    high, wide = round(height * fraction), round(width * fraction)
    device, count = images.device, len(images)
    down = torch.randint(0, 2 * high + 1, (count, 1, 1), device=device)
    right = torch.randint(0, 2 * wide + 1, (count, 1, 1), device=device)
    rows = down + torch.arange(height, device=device)[:, None]  # of the padded image
    columns = right + torch.arange(width, device=device)
    which = torch.arange(count, device=device)[:, None, None]
    padded = F.pad(images, (wide, wide, high, high)).movedim(1, -1)
    return padded[which, rows, columns].movedim(-1, 1)


def cutout(images: Tensor, fraction: float = 0.5) -> Tensor:
    """Zero a rectangle of `fraction` of each side; its center may lie anywhere in the image."""
    *_, height, width = images.shape
    high, wide = round(height * fraction), round(width * fraction)
    device, count = images.device, len(images)
    top = torch.randint(0, height + (1 - high % 2), (count, 1, 1), device=device) - high // 2
    left = torch.randint(0, width + (1 - wide % 2), (count, 1, 1), device=device) - wide // 2
    row = torch.arange(height, device=device)[:, None]
    column = torch.arange(width, device=device)
    inside = (row >= top) & (row < top + high) & (column >= left) & (column < left + wide)
    return images.masked_fill(inside[:, None], 0)
