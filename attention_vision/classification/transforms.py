"""Recipes of augmentation as a few numbers each, for one image and for batches.

A recipe maps an image, an `EncodedImage`, PIL or tensor, grey or RGB, to a normalized float tensor
(3, size, size), by torchvision.transforms.v2. Its batched form, for images in memory, has the same
distribution. Geometry and color work on uint8, which is fastest; random erasing comes after
normalization, as in its paper's code.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from attention_vision.checkpoints.preprocessing import Interpolation
from attention_vision.data import augmentation as batched
from attention_vision.data.encoded_image import EncodedImage
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


class _Recipe(Augmentation):
    """The evaluation of both recipes, which differ in the crop alone."""

    @property
    def evaluation_crop(self) -> float | Literal["squash"]:
        """What is cut out where the weights do not say it."""
        raise NotImplementedError

    def evaluation(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
        crop: float | Literal["squash"] | None = None,
    ) -> nn.Module:
        return _evaluation(size, mean, std, interpolation, crop or self.evaluation_crop)

    def batched_evaluation(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Interpolation | None = None,
        crop: float | Literal["squash"] | None = None,
    ) -> Batched:
        pixels = _evaluation_pixels(size, interpolation, crop or self.evaluation_crop)
        return Batched(pixels, batched.Steps([batched.Normalize(mean, std)]))


@checked
@dataclass(frozen=True)
class CIFARAugmentation(_Recipe):
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

    @property
    def evaluation_crop(self) -> Literal["squash"]:
        return "squash"

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
        return Batched(nn.Sequential(Decode(), resize), _batched(steps, self, mean, std))


@checked
@dataclass(frozen=True)
class ImageNetAugmentation(_Recipe):
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

    @property
    def evaluation_crop(self) -> float:
        return self.centre

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
        return Batched(Decode(), _batched([crop], self, mean, std))


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


class RandomRegion(v2.RandomResizedCrop):
    """torchvision's RandomResizedCrop, which decodes of an `EncodedImage` what it cuts out alone.

    It draws the same numbers. Where the region that it drew of a JPEG has at least twice the sides
    that it is resized to, the file is decoded at 1/2, 1/4 or 1/8, never to fewer pixels than the
    crop has: see `EncodedImage.region`.
    """

    def forward(self, *inputs: Any) -> Any:
        (image,) = inputs
        size = list(cast(tuple[int, int], self.size))
        filter = v2.InterpolationMode(self.interpolation)
        if isinstance(image, EncodedImage):
            extent = torch.empty(3, *image.size, device="meta")
            return image.region(**self.make_params([extent]), size=size, filter=filter)
        image = to_rgb(image)
        return v2.functional.resized_crop_image(
            image, **self.make_params([image]), size=size, interpolation=filter, antialias=True
        )


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
        return v2.functional.grayscale_to_rgb(image) if self.pillow else to_rgb(image)


def to_rgb(image: Any) -> Tensor:
    """A PIL image or tensor, grey or RGB, as an RGB tensor."""
    image = image if isinstance(image, Tensor) else v2.functional.to_image(image)
    return v2.functional.grayscale_to_rgb_image(image.as_subclass(Tensor))


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
    return Pixels(_evaluation_pixels(size, interpolation, crop), mean, std)


def _evaluation_pixels(
    size: int, interpolation: Interpolation | None, crop: float | Literal["squash"]
) -> nn.Module:
    """Resize the short side to size / crop and cut the center out, or resize both sides.

    By Pillow where the filter is named, as releases were evaluated, else by torch: the two differ
    by 1 of 255 in some pixels, which moves logits by more than 1e-4. Images are decoded whole.
    """
    sides = (size, size) if crop == "squash" else round(size / crop)
    cut: list[v2.Transform] = [] if crop == "squash" else [v2.CenterCrop(size)]
    resize = v2.Resize(sides, _filter(interpolation), antialias=True)
    by_pillow = interpolation is not None
    return nn.Sequential(Decode(by_pillow), resize, *([Decode()] * by_pillow), *cut)


def _finish(
    resize: v2.Transform,
    geometry: list[v2.Transform],
    recipe: CIFARAugmentation | ImageNetAugmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: Interpolation | None,
) -> nn.Module:
    """Flip, operations drawn at random, normalization and erasing, which the two recipes share.

    Training resizes tensors, which takes a third of Pillow's time and differs by 1 of 255 in some
    pixels.
    """
    steps: list[nn.Module] = [Decode(), resize, *geometry]
    if isinstance(resize, RandomRegion):
        steps.pop(0)  # which decodes the region that it draws
    if recipe.flip:
        steps.append(v2.RandomHorizontalFlip(recipe.flip))
    if recipe.randaugment:
        steps.append(v2.RandAugment(recipe.randaugment, recipe.magnitude))
    if recipe.autoaugment:
        steps.append(v2.AutoAugment(v2.AutoAugmentPolicy(recipe.autoaugment)))
    if recipe.trivialaugment:
        steps.append(v2.TrivialAugmentWide())
    erased: list[nn.Module] = []
    if recipe.erasing:
        erased.append(v2.RandomErasing(recipe.erasing))
    if recipe.cutout:
        erased.append(RandomCutout(recipe.cutout))
    normalized = Pixels(nn.Sequential(*steps), mean, std)
    return nn.Sequential(normalized, *erased) if erased else normalized


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
