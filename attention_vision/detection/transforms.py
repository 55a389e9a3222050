"""The scales and crops of detection as a few numbers, on torchvision.transforms.v2.

A recipe maps (PIL image, tv_tensors.BoundingBoxes) to a normalized float image (3, h, w) and the
boxes (n, 4) in its pixels. Geometry works on the PIL image, whose bilinear filter the released
weights were trained and measured with.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from attention_vision.errors import InputError
from attention_vision.ranges import Probability, Size, checked

# Of the image that a part is cut from, in pixels. The release has no bound: a strip of 1 x 3,000
# pixels would become 600 x 1,800,000.
LONGEST_CUT = 10_000
SCALES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)


@checked
@dataclass(frozen=True)
class DETRAugmentation:
    """DETR's recipe (arXiv 2005.12872, section A.4, and `datasets/coco.py` of the release).

    Attributes:
        flip: probability of a horizontal flip.
        short_sides: one is drawn for each training image, in pixels.
        longest: of the other side, in pixels; it bounds the short side.
        crop: probability that a part is cut out before that resize.
        crop_short_sides: of the image that the part is cut from; one is drawn.
        crop_least: smallest side of the part, in pixels.
        crop_most: largest side of the part, in pixels.
        evaluation: short side in evaluation and prediction, in pixels.
        pad_to: batches are padded to a multiple of it on either side. 1 is the release, where
            nearly every batch has another size; 128 leaves `--compile` and cuDNN few to prepare
            for. Boxes do not depend on it with `mask_padding` in the network.

    Raises:
        InputError: no short side, or `crop_least` above `crop_most`.
    """

    flip: Probability = 0.5
    short_sides: tuple[Size, ...] = SCALES
    longest: Size = 1333
    crop: Probability = 0.5
    crop_short_sides: tuple[Size, ...] = (400, 500, 600)
    crop_least: Size = 384
    crop_most: Size = 600
    evaluation: Size = 800
    pad_to: Size = 1

    def __post_init__(self) -> None:
        for name in ("short_sides", "crop_short_sides"):
            if not getattr(self, name):
                raise InputError(f"data.recipe.{name} is empty: name at least one side")
        if self.crop_least > self.crop_most:
            raise InputError(
                f"data.recipe: crop_least {self.crop_least} is above crop_most {self.crop_most}"
            )

    def train(self, mean: tuple[float, ...], std: tuple[float, ...]) -> v2.Transform:
        geometry: list[v2.Transform] = [v2.RandomHorizontalFlip(self.flip)] if self.flip else []
        resize = RandomShortSide(self.short_sides, self.longest)
        if self.crop:
            part = v2.Compose(
                [
                    RandomShortSide(self.crop_short_sides, LONGEST_CUT),
                    RandomPart(self.crop_least, self.crop_most),
                    resize,
                ]
            )
            geometry.append(v2.RandomChoice([resize, part], p=[1 - self.crop, self.crop]))
        else:
            geometry.append(resize)
        return _normalize(geometry, mean, std)

    def evaluate(self, mean: tuple[float, ...], std: tuple[float, ...]) -> v2.Transform:
        return _normalize([RandomShortSide((self.evaluation,), self.longest)], mean, std)


class RandomShortSide(v2.Transform):
    """Resizes to a short side drawn from a few, the long side bounded, the aspect kept.

    Rounds as the release does; torchvision's own `RandomShortestSize` differs by a pixel.
    """

    def __init__(self, short_sides: tuple[int, ...], longest: int | None):
        super().__init__()
        self.short_sides, self.longest = short_sides, longest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        drawn = self.short_sides[int(torch.randint(len(self.short_sides), ()))]
        return {"size": resized(v2.query_size(flat_inputs), drawn, self.longest)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(functional.resize, inpt, list(params["size"]), antialias=True)


def resized(size: tuple[int, int], short: int, longest: int | None) -> tuple[int, int]:
    """(height, width) of an image scaled to a short side, or less where the long one is bounded."""
    low, high = sorted(size)
    if longest is not None and high / low * short > longest:
        short = round(longest * low / high)
    if short < 1:  # a strip, whose short side cannot shrink any further
        short, low, high = 1, 1, longest or high
    long = int(short * high / low)
    return (short, long) if size[0] <= size[1] else (long, short)


class RandomPart(v2.Transform):
    """Cuts out a rectangle whose sides are drawn from least..most pixels, at most the image's."""

    def __init__(self, least: int, most: int):
        super().__init__()
        self.least, self.most = least, most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params = {}
        for side, corner, extent in zip(
            ("height", "width"), ("top", "left"), v2.query_size(flat_inputs), strict=True
        ):
            most = min(self.most, extent)
            params[side] = int(torch.randint(min(self.least, most), most + 1, ()))
            params[corner] = int(torch.randint(extent - params[side] + 1, ()))
        return params

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(functional.crop, inpt, **params)


def _normalize(
    geometry: list[v2.Transform], mean: tuple[float, ...], std: tuple[float, ...]
) -> v2.Transform:
    return v2.Compose(
        [
            *geometry,
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
            v2.ToPureTensor(),
        ]
    )
