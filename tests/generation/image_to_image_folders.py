"""Tiny folders of images, masks and volumes for the tests in this folder."""

from pathlib import Path

import numpy as np
from PIL import Image


def discs(folder: Path, count: int = 4, size: tuple[int, int] = (20, 26)) -> tuple[str, str]:
    """images/k.png, a bright disc on noise, and masks/k.png, 255 inside; their two paths."""
    random = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        rows, columns = np.mgrid[: size[0], : size[1]]
        centre = random.uniform(0.3, 0.7, 2) * size
        inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 30
        image = random.integers(0, 100, (*size, 3)) + 120 * inside[..., None]
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{number}.png")
        mask = Image.fromarray((inside * 255).astype(np.uint8))
        mask.save(folder / "masks" / f"{number}.png")
    return str(folder / "images"), str(folder / "masks")


def balls(folder: Path, count: int = 3) -> tuple[str, str]:
    """images/k.npy in Hounsfield-like units and masks/k.npz of 0..2; their two paths."""
    random = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        mask = np.zeros((9, 12, 10), np.uint8)
        mask[2:6, 3:9, 2:7], mask[6:8, 8:11, 6:9] = 1, 2
        volume = random.normal(0, 10, mask.shape) + 60 * mask
        np.save(folder / "images" / f"{number}.npy", volume.astype(np.int16))
        np.savez_compressed(folder / "masks" / f"{number}.npz", mask)
    return str(folder / "images"), str(folder / "masks")
