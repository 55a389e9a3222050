"""Real handwritten digits from inside scikit-learn's wheel: data for every task, no download.

1,797 scans of 8x8 pixels with 17 grey levels (E. Alpaydin and C. Kaynak, "Optical Recognition of
Handwritten Digits", UCI, 1998). A stratified fifth is held out once and for all: the split depends
on the order of the scans alone, so that accuracies of different seeds and versions can be compared.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from attention_vision.errors import InputError

CLASS_NAMES = tuple(str(digit) for digit in range(10))


def scans() -> tuple[Tensor, Tensor]:
    """All scans as shipped: images (1797, 8, 8) float in 0..1, ink is 1, and labels (1797,) int64.

    Raises InputError where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # 1-2 s, and only the demo's extra brings it
    except ImportError:
        raise InputError(
            'the embedded digits come with scikit-learn: pip install "attention-vision[demo]"'
        ) from None
    shipped = load_digits()
    images = torch.from_numpy(shipped.images).float() / 16
    return images, torch.from_numpy(shipped.target).long()


def held_out(labels: Tensor) -> Tensor:
    """Marks the held-out fifth: (n,) bool, every fifth scan of each class in the shipped order."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        mask[(labels == label).nonzero().squeeze(1)[4::5]] = True
    return mask


def single_digits(split: Literal["train", "val"], size: int = 32) -> tuple[Tensor, Tensor]:
    """One digit per image: images (n, 1, size, size) float in 0..1 and labels (n,) int64.

    1,442 digits to train on and 355 held out. Scans are upscaled bilinearly.
    """
    images, labels = scans()
    chosen = held_out(labels) if split == "val" else ~held_out(labels)
    images = interpolate(images[chosen, None], size=(size, size), mode="bilinear", antialias=False)
    return images, labels[chosen]
