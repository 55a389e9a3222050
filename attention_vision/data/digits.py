"""Real handwritten digits from inside scikit-learn's wheel: data for every task, no download.

1,797 scans of 8x8 pixels with 17 grey levels (E. Alpaydin and C. Kaynak, "Optical Recognition of
Handwritten Digits", UCI, 1998). A stratified fifth is held out once and for all: the split depends
on the order of the scans alone, so that accuracies of different seeds and versions can be compared.

`scene` puts several of them on one cluttered ground, for detection: scenes of either split hold
that split's scans only. `write_scenes` leaves them as a data set in COCO format. In between,
`cluttered_digits` shows one of them on such a ground, so that a classifier learns to see there.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from attention_vision.errors import InputError

CLASS_NAMES = tuple(str(digit) for digit in range(10))
MEAN, STD = 0.305, 0.323  # of single digits at 32 pixels


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
    shipped: Any = load_digits()
    images = torch.from_numpy(shipped.images).float() / 16
    return images, torch.from_numpy(shipped.target).long()


def held_out(labels: Tensor) -> Tensor:
    """Marks the held-out fifth: (n,) bool, every fifth scan of each class in the shipped order."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        mask[(labels == label).nonzero().squeeze(1)[4::5]] = True
    return mask


def single_digits(split: str, size: int = 32) -> tuple[Tensor, Tensor]:
    """One digit per image: images (n, 1, size, size) float in 0..1 and labels (n,) int64.

    1,442 digits to train on and 355 held out. Scans are upscaled bilinearly.
    """
    images, labels = scans()
    chosen = held_out(labels) if split == "val" else ~held_out(labels)
    images = interpolate(images[chosen, None], size=(size, size), mode="bilinear", antialias=False)
    return images, labels[chosen]


class Scene(NamedTuple):
    """Digits on cluttered ground, all boxes inside and without much overlap."""

    image: np.ndarray  # (size, size, 3) uint8, RGB
    boxes: np.ndarray  # (n, 4) float32, xyxy in pixels, tight around the ink
    labels: np.ndarray  # (n,) int64


DIGITS = (0.03, 0.17, 0.2, 0.2, 0.2, 0.2)  # probabilities of 0 to 5 digits in a scene
HEIGHTS = (8 / 64, 40 / 64)  # of a digit, as shares of the scene's side
OVERLAP = 0.1  # largest share of a box that another one may cover
INK = 0.25  # opacity from which a pixel belongs to a digit

_ROWS_FIRST = ["einsum_path", (0, 1), (0, 1)]  # what numpy would find anew for each scene


def scene(split: str, index: int, size: int = 64, seed: int = 0) -> Scene:
    """One scene of size x size pixels, drawn from numpy's PCG64 by (seed, split, index) alone.

    Up to five digits, about 8 to 40 pixels high where the side is 64 (log-uniformly, so that small
    ones are as frequent as large ones), turned and stretched a little, brighter than the ground by
    0.3 to 0.8 of full scale, on smooth colours with strokes, arcs and noise. By COCO's ranges of
    area (32^2, 96^2 pixels) most of them are small, 4 % medium, none large: that AP is undefined.
    """
    stream = np.random.SeedSequence((seed, int(split == "val"), index))
    random = np.random.Generator(np.random.PCG64(stream))
    image = _ground(random, size)
    boxes, labels = [], []
    count = random.choice(len(DIGITS), p=DIGITS)
    least, most = np.log(HEIGHTS)
    heights = size * np.exp(random.uniform(least, most, count))
    for height in np.sort(heights)[::-1]:  # large ones first: small ones find a place beside them
        _add(image, height, split, boxes, labels, random)
    return Scene(
        _noisy(image, random),
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
    )


def cluttered_digits(
    split: str, count: int, size: int = 32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Scenes of one digit each: images (count, 3, size, size) float in 0..1, labels (count,) int64.

    Where the side is 32 a digit is 8 to 36 pixels high (log-uniformly), as large as in the scenes
    of 64 pixels.
    """
    images, labels = [], []
    for index in range(count):
        # The 1 parts these streams from those of `scene`.
        stream = np.random.SeedSequence((seed, int(split == "val"), index, 1))
        random = np.random.Generator(np.random.PCG64(stream))
        image, label = _ground(random, size), []
        while not label:  # a large one, turned, may not fit
            height = size * np.exp(random.uniform(*np.log((8 / 32, 36 / 32))))
            _add(image, height, split, [], label, random)
        images.append(_noisy(image, random))
        labels += label
    stacked = torch.from_numpy(np.array(images, dtype=np.uint8).reshape(-1, size, size, 3))
    return stacked.permute(0, 3, 1, 2).float() / 255, torch.tensor(labels, dtype=torch.int64)


def write_scenes(
    folder: str, train: int = 2000, val: int = 200, size: int = 64, seed: int = 0
) -> None:
    """A data set in COCO format: FOLDER/{train,val}/*.png and FOLDER/instances_{train,val}.json.

    Image ids start at 1, and so do the category ids: digit 0 is category 1.
    """
    for split, count in (("train", train), ("val", val)):
        (Path(folder) / split).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for index in range(count):
            drawn, name = scene(split, index, size, seed), f"{index + 1:06}.png"
            Image.fromarray(drawn.image).save(Path(folder) / split / name)
            images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
            for (left, top, right, bottom), label in zip(
                drawn.boxes.tolist(), drawn.labels.tolist(), strict=True
            ):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": label + 1,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASS_NAMES)]
        instances = {"images": images, "annotations": annotations, "categories": categories}
        (Path(folder) / f"instances_{split}.json").write_text(json.dumps(instances))


@cache
def _glyphs(split: str) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Opacities (n, side, side) of all scans at sides 8, 16 and 32, and labels (n,).

    Strokes of an upscaled scan are blurred; a steeper ramp makes them strokes again.
    """
    images, labels = scans()
    chosen = held_out(labels) if split == "val" else ~held_out(labels)
    fine = interpolate(images[chosen, None], size=(32, 32), mode="bicubic", antialias=False)
    fine = ((fine - 0.2) / 0.5).clamp(0, 1)
    levels = (avg_pool2d(fine, 4), avg_pool2d(fine, 2), fine)
    return tuple(level[:, 0].numpy() for level in levels), labels[chosen].numpy()


@cache
def _upscaling(cells: int, size: int) -> np.ndarray:
    """(size, cells): linear interpolation from a row of cells to a row of pixels."""
    place = np.linspace(0, cells - 1, size)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells)))


def _ground(random: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) in 0..1: two octaves of smooth dark colours, strokes and arcs over them."""
    image = np.full((size, size, 3), random.uniform(0.05, 0.3, 3))
    for cells, depth in ((3, 0.25), (7, 0.12)):
        weights = _upscaling(cells, size)
        field = random.uniform(-depth, depth, (cells, cells, 3))
        image += np.einsum("ya,abc,xb->yxc", weights, field, weights, optimize=_ROWS_FIRST)
    image = image.clip(0, 0.5)
    for _ in range(random.integers(2, 8)):
        across, down = random.uniform(0, size, 2)
        angle, reach = random.uniform(0, 2 * np.pi), size * random.uniform(0.05, 0.3)
        thickness = size / 64 * random.uniform(0.5, 1.5)
        # Only the square around it is painted: everything else keeps its color.
        radius = reach + thickness + 1
        left, top = max(0, int(across - radius)), max(0, int(down - radius))
        part = image[top : int(down + radius) + 1, left : int(across + radius) + 1]
        high, wide = part.shape[:2]
        x = np.arange(left, left + wide) + 0.5 - across
        y = np.arange(top, top + high)[:, None] + 0.5 - down
        # Along and beside the direction of the angle, in pixels.
        along = x * np.cos(angle) + y * np.sin(angle)
        beside = y * np.cos(angle) - x * np.sin(angle)
        if random.random() < 0.5:  # a stroke, with round ends
            distance = np.hypot(np.maximum(np.abs(along) - reach, 0), beside)
        else:  # an arc: the part of a circle that lies ahead
            behind = np.maximum(random.uniform(-0.7, 0.7) * reach - along, 0)
            distance = np.hypot(np.hypot(along, beside) - reach, behind)
        opacity = (thickness + 0.5 - distance).clip(0, 1)[..., None] * random.uniform(0.3, 0.8)
        part += opacity * (random.uniform(0.05, 0.7, 3) - part)
    return image


def _add(
    image: np.ndarray,
    height: float,
    split: str,
    boxes: list[tuple],
    labels: list[int],
    random: np.random.Generator,
) -> None:
    """Paints one digit more, if there is a free place for it, and notes its box and label."""
    glyphs, of_glyph = _glyphs(split)
    chosen = random.integers(len(of_glyph))
    level = next((k for k, side in enumerate((8, 16)) if height <= 1.5 * side), 2)
    opacity = _turned(glyphs[level][chosen], height, random)
    place = _free_place(opacity, boxes, len(image), random)
    if place is not None:
        _paint(image, opacity, place, random)
        boxes.append((*place, place[0] + opacity.shape[1], place[1] + opacity.shape[0]))
        labels.append(int(of_glyph[chosen]))


def _noisy(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(size, size, 3) uint8, with a sensor's noise."""
    image = image + random.normal(0, random.uniform(0.01, 0.05), image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def _turned(glyph: np.ndarray, height: float, random: np.random.Generator) -> np.ndarray:
    """The opacity of a digit about `height` pixels high, cut tightly to its ink."""
    side = len(glyph)
    angle, stretch, slant = random.uniform((-0.2, 0.85, -0.15), (0.2, 1.2, 0.15))
    reach = int(np.ceil(0.75 * height))
    u = (np.arange(-reach, reach) + 0.5) / height
    v = u[:, None]
    across = (u * np.cos(angle) + v * np.sin(angle)) / stretch + slant * v
    down = v * np.cos(angle) - u * np.sin(angle)
    # Bilinear between the glyph's pixels; a border of zeros stands for all outside.
    padded = np.pad(glyph, 1)
    column = ((across + 0.5) * side + 0.5).clip(0, side + 0.999)
    row = ((down + 0.5) * side + 0.5).clip(0, side + 0.999)
    left, top = column.astype(int), row.astype(int)
    column, row = column - left, row - top
    upper = padded[top, left] * (1 - column) + padded[top, left + 1] * column
    lower = padded[top + 1, left] * (1 - column) + padded[top + 1, left + 1] * column
    opacity = upper * (1 - row) + lower * row
    rows, columns = (np.flatnonzero((opacity > INK).any(axis)) for axis in (1, 0))
    return opacity[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _free_place(
    opacity: np.ndarray, boxes: list[tuple], size: int, random: np.random.Generator
) -> tuple[int, int] | None:
    """Left and top of a place that covers little of the boxes there are; None if none is found."""
    width, height = extent = np.array(opacity.shape[::-1])
    if height > size or width > size:
        return None
    others = np.array(boxes, dtype=float).reshape(-1, 4)
    areas = np.minimum((others[:, 2:] - others[:, :2]).prod(1), height * width)
    for _ in range(20):
        corner = random.integers(0, (size - width + 1, size - height + 1))
        far = np.minimum(others[:, 2:], corner + extent)
        shared = (far - np.maximum(others[:, :2], corner)).clip(0).prod(1)
        if (shared <= OVERLAP * areas).all():
            return int(corner[0]), int(corner[1])
    return None


def _paint(
    image: np.ndarray, opacity: np.ndarray, place: tuple[int, int], random: np.random.Generator
) -> None:
    """Blends a digit into the image, in a tint brighter than the ground it covers."""
    height, width = opacity.shape
    under = image[place[1] : place[1] + height, place[0] : place[0] + width]
    brightness = under.mean() + random.uniform(0.3, 0.8)
    colour = (brightness + random.uniform(-0.15, 0.15, 3)).clip(0, 1)
    under += opacity[..., None] * (colour - under)
