"""Recipes of torchvision.transforms.v2 as a few numbers each.

A recipe maps an image, an `EncodedImage`, PIL or tensor, grey or RGB, to a normalized float tensor
(3, size, size). Geometry and color work on uint8, which is fastest; random erasing comes after
normalization, as in its paper's code.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from attention_vision.checkpoints.preprocessing import Interpolation
from attention_vision.data.encoded_image import EncodedImage
from attention_vision.ranges import Fraction, Probability, Range, Share, checked


class Augmentation(ABC):
    """Base of all recipes: what happens to an image in training, and in evaluation.

    Both methods return a transform of an image, an `EncodedImage`, PIL or tensor, to
    (3, size, size) float, normalized by the mean and standard deviation per channel of values in
    0..1. `interpolation` and `crop` are those of released weights; without them, the recipe's own.
    """

    @abstractmethod
    def train(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
    ) -> nn.Module: ...

    @abstractmethod
    def evaluation(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
        crop: float | Literal["squash"] | None = None,
    ) -> nn.Module: ...


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
    ) -> nn.Module:
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
    ) -> nn.Module:
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
    ) -> nn.Module:
        crop = RandomRegion(
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
    ) -> nn.Module:
        return _evaluation(size, mean, std, interpolation, crop or self.centre)


class RandomRegion(v2.RandomResizedCrop):
    """torchvision's RandomResizedCrop, which decodes of an `EncodedImage` what it cuts out alone.

    It draws the same numbers. Where the region that it drew of a JPEG has at least twice the sides
    that it is resized to, the file is decoded at 1/2, 1/4 or 1/8, never to fewer pixels than the
    crop has: see `EncodedImage.region`.
    """

    def forward(self, *inputs: Any) -> Any:
        (image,) = inputs
        if not isinstance(image, EncodedImage):
            return super().forward(Decode()(image))
        extent = torch.empty(3, *image.size, device="meta")
        height, width = cast(tuple[int, int], self.size)
        filter = cast(v2.InterpolationMode, self.interpolation)
        return image.region(**self.make_params([extent]), size=(height, width), filter=filter)


class Decode(nn.Module):
    """Make an image an RGB tensor, or a PIL image for transforms by Pillow.

    Args:
        pillow: make it a PIL image.
    """

    def __init__(self, pillow: bool = False):
        super().__init__()
        self.pillow = pillow

    def forward(self, image: Any) -> Any:
        if isinstance(image, EncodedImage):
            return image.pillow() if self.pillow else image.tensor()
        if not self.pillow:
            image = v2.functional.to_image(image).as_subclass(Tensor)
        return v2.functional.grayscale_to_rgb(image)


class Pixels(nn.Module):
    """A transform in two parts: uint8 pixels of an image, and normalization, of one or of many.

    Args:
        pixels: image -> (3, H, W) uint8.
        mean: per channel, of values in 0..1.
        std: standard deviation per channel.
    """

    def __init__(self, pixels: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.pixels, self.mean, self.std = pixels, mean, std

    def forward(self, image: Any) -> Tensor:
        return self.normalized(self.pixels(image))

    def normalized(self, pixels: Tensor) -> Tensor:
        """(..., 3, H, W) uint8 or float in 0..1 -> float, normalized, on the same device.

        As torchvision's ToDtype and Normalize, bit-equal on a CPU, without a copy from the host.
        """
        images = v2.functional.to_dtype_image(pixels, torch.float32, scale=True)
        if images is pixels:
            images = images.clone()
        for channel, mean, std in zip(images.unbind(-3), self.mean, self.std, strict=True):
            channel.sub_(mean).div_(std)
        return images


def _filter(interpolation: Interpolation | None) -> v2.InterpolationMode:
    return v2.InterpolationMode(interpolation or "bilinear")


def _evaluation(
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: Interpolation | None,
    crop: float | Literal["squash"],
) -> nn.Module:
    """Resize the short side to size / crop and cut the center out, or resize both sides.

    By Pillow where the filter is named, as releases were evaluated, else by torch: the two differ
    by 1 of 255 in some pixels, which moves logits by more than 1e-4. Images are decoded whole.
    """
    sides = (size, size) if crop == "squash" else round(size / crop)
    cut: list[v2.Transform] = [] if crop == "squash" else [v2.CenterCrop(size)]
    resize = v2.Resize(sides, _filter(interpolation), antialias=True)
    decode, pillow = Decode(interpolation is not None), [Decode()] if interpolation else []
    return Pixels(nn.Sequential(decode, resize, *pillow, *cut), mean, std)


def _finish(
    resize: v2.Transform,
    geometry: list[v2.Transform],
    recipe: CIFARAugmentation | ImageNetAugmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: Interpolation | None,
) -> nn.Module:
    """Flip, RandAugment, normalization and erasing, which the two recipes share.

    Training resizes tensors, which takes a third of Pillow's time and differs by 1 of 255 in some
    pixels.
    """
    if recipe.flip:
        geometry.append(v2.RandomHorizontalFlip(recipe.flip))
    if recipe.randaugment:
        geometry.append(v2.RandAugment(recipe.randaugment, recipe.magnitude))
    decode = [] if isinstance(resize, RandomRegion) else [Decode()]
    normalized = Pixels(nn.Sequential(*decode, resize, *geometry), mean, std)
    return (
        v2.Compose([normalized, v2.RandomErasing(recipe.erasing)]) if recipe.erasing else normalized
    )
