"""Recipes of augmentation as a few numbers each, for one image and for batches.

A recipe maps an image, PIL or tensor, grey or RGB, to a normalized float tensor (3, size, size), by
torchvision.transforms.v2. Its batched form, for images in memory, has the same distribution.
Geometry and color work on uint8, which is fastest; random erasing comes after normalization, as in
its paper's code.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torchvision.transforms import v2

from attention_vision.checkpoints.preprocessing import Interpolation
from attention_vision.data import augmentation as batched
from attention_vision.errors import InputError
from attention_vision.ranges import Fraction, Probability, Range, Share, checked

Policy = Literal["cifar10", "imagenet", "svhn"]


@dataclass(frozen=True)
class Batched:
    """A transform in two parts, the random one for a batch at once.

    Attributes:
        pixels: maps an image, PIL or tensor, or a batch of tensors, to uint8; nothing is random.
        steps: map batches of these to normalized float images.
    """

    pixels: Callable[[Any], Tensor]
    steps: batched.Steps


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

    def batched_train(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
    ) -> Batched | None:
        """The distribution of `train` for images in memory; None for a recipe without that."""
        return None

    def batched_evaluation(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
        crop: float | Literal["squash"] | None = None,
    ) -> Batched | None:
        """The same as `evaluation` for images in memory; None for a recipe without that."""
        return None


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
        autoaugment: policy of AutoAugment, "cifar10", "imagenet" or "svhn"; None for none.
        trivialaugment: one operation of TrivialAugment per image.
        erasing: probability of random erasing.
        cutout: side of a square that is set to the mean, in pixels; 0 for none.

    Raises:
        InputError: more than one of RandAugment, AutoAugment and TrivialAugment.
    """

    padding: Annotated[int, Range(0, 256)] = 4
    flip: Probability = 0.5
    rotation: Annotated[float, Range(0, 180)] = 0.0
    shift: Probability = 0.0
    zoom: Fraction = 0.0
    randaugment: Annotated[int, Range(0, 100)] = 0
    magnitude: Annotated[int, Range(0, 30)] = 9
    erasing: Probability = 0.0
    autoaugment: Policy | None = None
    trivialaugment: bool = False
    cutout: Annotated[int, Range(0, 65_536)] = 0

    def __post_init__(self) -> None:
        _one_policy(self)

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

    def batched_train(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
    ) -> Batched:
        steps: list[batched.Step] = []
        if self.rotation or self.shift or self.zoom:
            steps.append(batched.Affine(self.rotation, self.shift, self.zoom))
        if self.padding or self.flip:
            steps.append(batched.Crop(self.padding, self.flip))
        resize = v2.Resize((size, size), _filter(interpolation), antialias=True)
        return Batched(_pixels(resize, [], interpolation), _batched(steps, self, mean, std))

    def batched_evaluation(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
        crop: float | Literal["squash"] | None = None,
    ) -> Batched:
        pixels = _evaluation_pixels(size, interpolation, crop or "squash")
        return Batched(pixels, batched.Steps([batched.Normalize(mean, std)]))


@checked
@dataclass(frozen=True)
class ImageNetAugmentation(Augmentation):
    """For photographs of any size, such as ImageNet: a random part of the image, resized.

    Attributes:
        area: smallest share of the image that a training crop covers; its aspect is 3:4 to 4:3.
        flip: probability of a horizontal flip.
        randaugment: operations of RandAugment per image, 0 for none.
        magnitude: strength of RandAugment, 0 to 30.
        autoaugment: policy of AutoAugment, "cifar10", "imagenet" or "svhn"; None for none.
        trivialaugment: one operation of TrivialAugment per image.
        erasing: probability of random erasing.
        cutout: side of a square that is set to the mean, in pixels; 0 for none.
        centre: side of the evaluation crop as a share of the resized short side: 224 / 256.

    Raises:
        InputError: more than one of RandAugment, AutoAugment and TrivialAugment.
    """

    area: Share = 0.08
    flip: Probability = 0.5
    randaugment: Annotated[int, Range(0, 100)] = 0
    magnitude: Annotated[int, Range(0, 30)] = 9
    erasing: Probability = 0.0
    centre: Share = 0.875
    autoaugment: Policy | None = None
    trivialaugment: bool = False
    cutout: Annotated[int, Range(0, 65_536)] = 0

    def __post_init__(self) -> None:
        _one_policy(self)

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

    def batched_train(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
    ) -> Batched | None:
        if interpolation not in (None, "bilinear", "bicubic"):
            return None
        crop = batched.ResizedCrop(size, self.area, interpolation == "bicubic", self.flip)
        pixels = v2.Compose([v2.ToImage(), v2.RGB(), v2.ToPureTensor()])
        return Batched(pixels, _batched([crop], self, mean, std))

    def batched_evaluation(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
        crop: float | Literal["squash"] | None = None,
    ) -> Batched:
        pixels = _evaluation_pixels(size, interpolation, crop or self.centre)
        return Batched(pixels, batched.Steps([batched.Normalize(mean, std)]))


class RandomCutout(v2.Transform):
    """Set a square to 0 whose center is any pixel (DeVries and Taylor, arXiv 1708.04552).

    Args:
        side: of the square, in pixels; the border of the image cuts it.
    """

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        top, left = (int(torch.randint(end, ())) - self.side // 2 for end in (height, width))
        bottom, right = min(top + self.side, height), min(left + self.side, width)
        top, left = max(top, 0), max(left, 0)
        return {"i": top, "j": left, "h": bottom - top, "w": right - left}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.erase(inpt, **params, v=torch.zeros(()))


def batched_form(recipe: Augmentation, name: str) -> Callable[..., Batched | None]:
    """The method `batched_NAME`, of "train" or "evaluation"; one for None where only NAME is known.

    A class that overrides one of the two alone does something else there.
    """
    kinds = type(recipe).__mro__
    owners = [next(c for c in kinds if one in vars(c)) for one in (name, f"batched_{name}")]
    if owners[0] is owners[1]:
        return getattr(recipe, f"batched_{name}")
    return lambda *args, **kwargs: None


def _one_policy(recipe: "CIFARAugmentation | ImageNetAugmentation") -> None:
    chosen = [
        name for name in ("randaugment", "autoaugment", "trivialaugment") if getattr(recipe, name)
    ]
    if len(chosen) > 1:
        raise InputError(f"data.recipe: {chosen[0]} and {chosen[1]}: leave one out")


def _filter(interpolation: Interpolation | None) -> v2.InterpolationMode:
    return v2.InterpolationMode(interpolation or "bilinear")


def _evaluation(
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: Interpolation | None,
    crop: float | Literal["squash"],
) -> v2.Transform:
    pixels = _evaluation_pixels(size, interpolation, crop)
    return v2.Compose([pixels, *_normalize(mean, std), v2.ToPureTensor()])


def _evaluation_pixels(
    size: int, interpolation: Interpolation | None, crop: float | Literal["squash"]
) -> v2.Transform:
    """Resize the short side to size / crop and cut the center out, or resize both sides."""
    sides = (size, size) if crop == "squash" else round(size / crop)
    cut: list[v2.Transform] = [] if crop == "squash" else [v2.CenterCrop(size)]
    resize = v2.Resize(sides, _filter(interpolation), antialias=True)
    return _pixels(resize, cut, interpolation)


def _finish(
    resize: v2.Transform,
    geometry: list[v2.Transform],
    recipe: CIFARAugmentation | ImageNetAugmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: Interpolation | None,
) -> v2.Transform:
    """Flip, operations drawn at random, normalization and erasing, which the two recipes share."""
    steps = [*geometry]
    if recipe.flip:
        steps.append(v2.RandomHorizontalFlip(recipe.flip))
    if recipe.randaugment:
        steps.append(v2.RandAugment(recipe.randaugment, recipe.magnitude))
    if recipe.autoaugment:
        steps.append(v2.AutoAugment(v2.AutoAugmentPolicy(recipe.autoaugment)))
    if recipe.trivialaugment:
        steps.append(v2.TrivialAugmentWide())
    steps += _normalize(mean, std)
    if recipe.erasing:
        steps.append(v2.RandomErasing(recipe.erasing))
    if recipe.cutout:
        steps.append(RandomCutout(recipe.cutout))
    return v2.Compose([_pixels(resize, [], interpolation), *steps, v2.ToPureTensor()])


def _batched(
    geometry: list[batched.Step],
    recipe: CIFARAugmentation | ImageNetAugmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> batched.Steps:
    """`_finish` for batches, whose geometry has the flip."""
    steps = [*geometry]
    if recipe.randaugment:
        steps.append(batched.RandAugment(recipe.randaugment, recipe.magnitude))
    if recipe.autoaugment:
        steps.append(batched.AutoAugment(recipe.autoaugment))
    if recipe.trivialaugment:
        steps.append(batched.TrivialAugment())
    steps.append(batched.Normalize(mean, std))
    if recipe.erasing:
        steps.append(batched.Erase(recipe.erasing))
    if recipe.cutout:
        steps.append(batched.Cutout(recipe.cutout))
    return batched.Steps(steps)


def _normalize(mean: tuple[float, ...], std: tuple[float, ...]) -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]


def _pixels(
    resize: v2.Transform, cut: list[v2.Transform], interpolation: Interpolation | None
) -> v2.Transform:
    """Resize by Pillow where the filter is named, as releases were evaluated, else by torch.

    The two differ by 1 of 255 in some pixels, which moves logits by more than 1e-4.
    """
    convert = (
        [v2.RGB(), resize, v2.ToImage()] if interpolation else [v2.ToImage(), v2.RGB(), resize]
    )
    return v2.Compose([*convert, *cut, v2.ToPureTensor()])
