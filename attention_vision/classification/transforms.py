"""Recipes of torchvision.transforms.v2 as a few numbers each.

A recipe maps an image, PIL or tensor, grey or RGB, to a normalized float tensor (3, size, size).
Geometry and color work on uint8, which is fastest; random erasing comes after normalization, as in
its paper's code.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torchvision.transforms import v2

from attention_vision.checkpoints.preprocessing import Interpolation
from attention_vision.ranges import Fraction, Probability, Range, Share, checked


class Augmentation(ABC):
    """Base of all recipes: what happens to an image in training, and in evaluation.

    Both methods return a transform of an image, PIL or tensor, to (3, size, size) float, normalized
    by the mean and standard deviation per channel of values in 0..1. `interpolation` and `crop` are
    those of released weights; without them, the recipe's own.
    """

    @abstractmethod
    def train(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
    ) -> v2.Transform: ...

    @abstractmethod
    def evaluation(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
        crop: float | Literal["squash"] | None = None,
    ) -> v2.Transform: ...


@checked
@dataclass(frozen=True)
class CIFARAugmentation(Augmentation):
    """For images that are already cut out, such as CIFAR: pad, crop, flip.

    Attributes:
        padding: zeros on each side before a random crop back to size, in pixels; 4 at 32 pixels is
            usual.
        flip: probability of a horizontal flip.
        rotation: largest rotation, in degrees.
        shift: largest shift, as a share of the side.
        zoom: largest change of scale, 0.1 for 0.9 to 1.1.
        randaugment: operations of RandAugment per image, 0 for none.
        magnitude: strength of RandAugment, 0 to 30.
        erasing: probability of random erasing.
    """

    padding: Annotated[int, Range(0, 256)] = 4
    flip: Probability = 0.5
    rotation: Annotated[float, Range(0, 180)] = 0.0
    shift: Probability = 0.0
    zoom: Fraction = 0.0
    randaugment: Annotated[int, Range(0, 100)] = 0
    magnitude: Annotated[int, Range(0, 30)] = 9
    erasing: Probability = 0.0

    def train(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
    ) -> v2.Transform:
        steps: list[v2.Transform] = []
        if self.rotation or self.shift or self.zoom:
            steps.append(
                v2.RandomAffine(
                    (-self.rotation, self.rotation),
                    translate=(self.shift, self.shift),
                    scale=(1 - self.zoom, 1 + self.zoom),
                    interpolation=v2.InterpolationMode.BILINEAR,
                )
            )
        if self.padding:
            steps.append(v2.RandomCrop(size, padding=self.padding))
        resize = v2.Resize((size, size), _filter(interpolation), antialias=True)
        return _finish(resize, steps, self, mean, std, interpolation)

    def evaluation(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
        crop: float | Literal["squash"] | None = None,
    ) -> v2.Transform:
        return _evaluation(size, mean, std, interpolation, crop or "squash")


@checked
@dataclass(frozen=True)
class ImageNetAugmentation(Augmentation):
    """For photographs of any size, such as ImageNet: a random part of the image, resized.

    Attributes:
        area: smallest share of the image that a training crop covers; its aspect is 3:4 to 4:3.
        flip: probability of a horizontal flip.
        randaugment: operations of RandAugment per image, 0 for none.
        magnitude: strength of RandAugment, 0 to 30.
        erasing: probability of random erasing.
        centre: side of the evaluation crop as a share of the resized short side: 224 / 256.
    """

    area: Share = 0.08
    flip: Probability = 0.5
    randaugment: Annotated[int, Range(0, 100)] = 0
    magnitude: Annotated[int, Range(0, 30)] = 9
    erasing: Probability = 0.0
    centre: Share = 0.875

    def train(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
    ) -> v2.Transform:
        crop = v2.RandomResizedCrop(
            size, (self.area, 1.0), interpolation=_filter(interpolation), antialias=True
        )
        return _finish(crop, [], self, mean, std, interpolation)

    def evaluation(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
        crop: float | Literal["squash"] | None = None,
    ) -> v2.Transform:
        return _evaluation(size, mean, std, interpolation, crop or self.centre)


def _filter(interpolation: Interpolation | None) -> v2.InterpolationMode:
    return v2.InterpolationMode(interpolation or "bilinear")


def _evaluation(
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: Interpolation | None,
    crop: float | Literal["squash"],
) -> v2.Transform:
    """Resize the short side to size / crop and cut the center out, or resize both sides."""
    sides = (size, size) if crop == "squash" else round(size / crop)
    cut: list[v2.Transform] = [] if crop == "squash" else [v2.CenterCrop(size)]
    resize = v2.Resize(sides, _filter(interpolation), antialias=True)
    return _normalize(resize, cut, mean, std, interpolation)


def _finish(
    resize: v2.Transform,
    geometry: list[v2.Transform],
    recipe: CIFARAugmentation | ImageNetAugmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: Interpolation | None,
) -> v2.Transform:
    """Flip, RandAugment, normalization and erasing, which the two recipes share."""
    if recipe.flip:
        geometry.append(v2.RandomHorizontalFlip(recipe.flip))
    if recipe.randaugment:
        geometry.append(v2.RandAugment(recipe.randaugment, recipe.magnitude))
    steps = _normalize(resize, geometry, mean, std, interpolation)
    return v2.Compose([steps, v2.RandomErasing(recipe.erasing)]) if recipe.erasing else steps


def _normalize(
    resize: v2.Transform,
    geometry: list[v2.Transform],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: Interpolation | None,
) -> v2.Transform:
    """Resize by Pillow where the filter is named, as releases were evaluated, else by torch.

    The two differ by 1 of 255 in some pixels, which moves logits by more than 1e-4.
    """
    convert = (
        [v2.RGB(), resize, v2.ToImage()] if interpolation else [v2.ToImage(), v2.RGB(), resize]
    )
    return v2.Compose(
        [
            *convert,
            *geometry,
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
            v2.ToPureTensor(),
        ]
    )
