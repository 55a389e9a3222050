"""Random augmentation of batches: what an image draws follows from its own random numbers.

A step has `draws`, how many numbers in [0, 1) it takes for each image, and maps images (B, C, H, W)
and these numbers, (B, draws) float32 on the CPU, to images. What the numbers decide is known on the
host, so that a GPU is not waited for. Distributions are those of torchvision.transforms.v2.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2 import functional

from attention_vision.data import image_batches as batches
from attention_vision.data.image_batches import inverse_matrices, to

AREA, ASPECT = (0.02, 0.33), (0.3, 3.3)  # of an erased rectangle (Zhong et al., arXiv 1708.04896)
ASPECT_CROP = (3 / 4, 4 / 3)  # of a random part of a photograph
TRIES = 10  # of a rectangle that has to fit

Operation = Callable[[Tensor, Tensor], Tensor]


class Step(Protocol):
    """A step of an augmentation; the images may be changed in place."""

    draws: int

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor: ...


class Steps:
    """Steps one after the other, each with random numbers of its own."""

    def __init__(self, steps: Sequence[Step]):
        self.steps = list(steps)
        self.draws = sum(step.draws for step in steps)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        parts = numbers.split([step.draws for step in self.steps], dim=1)
        for step, part in zip(self.steps, parts, strict=True):
            images = step(images, part)
        return images


class Affine:
    """Turn, shift and zoom, bilinearly: `RandomAffine`.

    Args:
        rotation: largest angle, in degrees.
        shift: largest shift, as a share of the side.
        zoom: largest change of scale.
    """

    draws = 4

    def __init__(self, rotation: float, shift: float, zoom: float):
        self.rotation, self.shift, self.zoom = rotation, shift, zoom

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        angle, across, down, scale = (2 * numbers.double() - 1).unbind(1)
        shift = (self.shift * width * across).round(), (self.shift * height * down).round()
        straight = torch.zeros_like(angle)
        matrices = inverse_matrices(
            (self.rotation * angle).deg2rad(), shift, 1 + self.zoom * scale, (straight, straight)
        )
        return batches.affine(images, matrices, bilinear=True)


class Crop:
    """Cut out of the padded image, and mirror: `RandomCrop` and `RandomHorizontalFlip`.

    Args:
        padding: zeros on each side, in pixels.
        flip: probability of mirroring.
    """

    draws = 3

    def __init__(self, padding: int, flip: float):
        self.padding, self.flip = padding, flip

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        top, left = (numbers[:, :2] * (2 * self.padding + 1)).long().unbind(1)
        flip = numbers[:, 2] < self.flip
        top, left, flip = (to(part, images.device) for part in (top, left, flip))
        return batches.crop(images, self.padding, top, left, flip)


class ResizedCrop:
    """A random part of the image, resized to a square: `RandomResizedCrop`.

    Args:
        size: side of the result, in pixels.
        area: smallest share of the image.
        bicubic: interpolate so, else bilinearly; both over the pixels that shrink into one.
        flip: probability of mirroring the result.
    """

    draws = 2 * TRIES + 3

    def __init__(self, size: int, area: float, bicubic: bool, flip: float):
        self.size, self.area, self.bicubic, self.flip = size, area, bicubic, flip

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        tries, (top, left, flip) = numbers[:, : 2 * TRIES], numbers[:, 2 * TRIES :].unbind(1)
        high, wide, fits = rectangles(
            tries.double(), (height, width), (self.area, 1.0), ASPECT_CROP, 0
        )
        # Without a fit the largest part of the middle that has the aspect.
        whole_high = min(height, round(width * ASPECT_CROP[1]))
        whole_wide = min(width, round(height * ASPECT_CROP[1]))
        high, wide = high.where(fits, whole_high), wide.where(fits, whole_wide)
        top = (top.double() * (height - high + 1)).floor().where(fits, (height - whole_high) // 2)
        left = (left.double() * (width - wide + 1)).floor().where(fits, (width - whole_wide) // 2)
        rows, columns = (
            to(torch.stack(pair, 1).float(), images.device) for pair in ((top, high), (left, wide))
        )
        mirrored = to(flip < self.flip, images.device)
        return batches.resized_crop(images, rows, columns, self.size, self.bicubic, mirrored)


class AutoAugment:
    """One of 25 pairs of operations, each with its probability: `AutoAugment`.

    Cubuk et al., arXiv 1805.09501.

    Args:
        policy: "cifar10", "imagenet" or "svhn".
    """

    draws = 5  # the pair; whether each applies; the signs

    def __init__(self, policy: str):
        known = transforms.AutoAugment(transforms.AutoAugmentPolicy(policy)).policies
        self.names = list(OPERATIONS)
        rows = [[(self.names.index(name), p, bin or 0) for name, p, bin in pair] for pair in known]
        self.policy = torch.tensor(rows, dtype=torch.float64)  # (25, 2, 3)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        pairs = self.policy[(numbers[:, 0] * len(self.policy)).long()]
        levels, signed = magnitudes(10, images.shape[-2:])
        for number in range(2):
            chosen, probability, level = pairs[:, number].unbind(1)
            chosen = chosen.long()
            strength = levels[chosen, level.long()]
            strength = with_sign(strength, signed[chosen], numbers[:, 3 + number])
            applies = numbers[:, 1 + number] <= probability
            images = apply(images, chosen.where(applies, -1), strength)
        return images


class RandAugment:
    """Operations drawn from fourteen, all with one magnitude: `RandAugment`.

    Cubuk et al., arXiv 1909.13719.

    Args:
        operations: for each image.
        magnitude: 0 to 30.
    """

    def __init__(self, operations: int, magnitude: int):
        self.operations, self.magnitude = operations, magnitude
        self.draws = 2 * operations

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        levels, signed = magnitudes(31, images.shape[-2:])
        for pair in numbers.unflatten(1, (-1, 2)).unbind(1):
            chosen, sign = (pair[:, 0] * RANDOM).long(), pair[:, 1]
            strength = with_sign(levels[chosen, self.magnitude], signed[chosen], sign)
            images = apply(images, chosen, strength)
        return images


class TrivialAugment:
    """One operation of any strength: `TrivialAugmentWide` (Müller and Hutter, arXiv 2103.10158)."""

    draws = 3

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        levels, signed = magnitudes(31, images.shape[-2:], wide=True)
        chosen, level = (numbers[:, 0] * RANDOM).long(), (numbers[:, 1] * 31).long()
        strength = with_sign(levels[chosen, level], signed[chosen], numbers[:, 2])
        return apply(images, chosen, strength)


class Normalize:
    """From bytes to floats of mean 0 and deviation 1: `ToDtype` and `Normalize`, bit by bit.

    Args:
        mean, std: per channel, of values in 0..1.
    """

    draws = 0

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.mean, self.std = (torch.tensor(part)[:, None, None] for part in (mean, std))

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        if self.mean.device != images.device:
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        return images.float().mul_(1 / 255).sub_(self.mean).div_(self.std)


class Rescale:
    """From bytes to floats in -1..1, as the generator of a GAN makes them."""

    draws = 0

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        return images.float().div_(127.5).sub_(1)


class Erase:
    """Set a rectangle to 0, after normalization the mean: `RandomErasing`.

    Args:
        probability: of doing so.
    """

    draws = 2 * TRIES + 3

    def __init__(self, probability: float):
        self.probability = probability

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        size = images.shape[-2:]
        high, wide, fits = rectangles(numbers[:, : 2 * TRIES].double(), size, AREA, ASPECT, 1)
        applies, top, left = numbers[:, 2 * TRIES :].double().unbind(1)
        applies = (applies < self.probability) & fits
        top = (top * (size[0] - high + 1)).floor()
        left = (left * (size[1] - wide + 1)).floor()
        return erase(images, top, left, (top + high).where(applies, 0), left + wide)


class Cutout:
    """Set a square to 0 whose center is any pixel (DeVries and Taylor, arXiv 1708.04552).

    Args:
        side: of the square, in pixels; the border of the image cuts it.
    """

    draws = 2

    def __init__(self, side: int):
        self.side = side

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        sides = torch.tensor(images.shape[-2:])
        top, left = ((numbers * sides).floor() - self.side // 2).unbind(1)
        return erase(images, top, left, top + self.side, left + self.side)


def rectangles(
    numbers: Tensor,
    size: Sequence[int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    margin: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Heights and widths, (B,) float64, and whether there is one that fits: of `TRIES` the first.

    Args:
        numbers: random ones, (B, 2 · TRIES) float64.
        size: height and width of the images.
        area: least and largest share of the image.
        aspect: least and largest ratio of height and width, whose logarithm is uniform.
        margin: pixels that a side is shorter than the image's, at least.
    """
    shares, ratios = numbers.unflatten(1, (-1, 2)).unbind(2)
    areas = size[0] * size[1] * (area[0] + (area[1] - area[0]) * shares)
    low, high = torch.tensor(aspect, dtype=torch.float64).log()
    ratios = (low + (high - low) * ratios).exp()
    heights, widths = (areas * ratios).sqrt().round(), (areas / ratios).sqrt().round()
    fits = (heights <= size[0] - margin) & (widths <= size[1] - margin)
    fits &= (heights > 0) & (widths > 0)
    first = fits.byte().argmax(1, keepdim=True)
    return heights.gather(1, first)[:, 0], widths.gather(1, first)[:, 0], fits.any(1)


def erase(images: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """Set the pixels of a rectangle to 0, those at `bottom` and `right` not included."""
    height, width = images.shape[-2:]
    edges = to(torch.stack((top, bottom, left, right), 1).float(), images.device)[..., None]
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    rows = (edges[:, 0] <= rows) & (rows < edges[:, 1])
    columns = (edges[:, 2] <= columns) & (columns < edges[:, 3])
    return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def magnitudes(bins: int, size: Sequence[int], wide: bool = False) -> tuple[Tensor, Tensor]:
    """Strengths of `OPERATIONS`, (operations, bins) float64, and which have a random sign.

    Args:
        bins: number of strengths.
        size: height and width of the images.
        wide: those of TrivialAugment, else those of AutoAugment and RandAugment.
    """
    shear, turn, change, bits = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    down, across = (32.0, 32.0) if wide else (150.0 / 331.0 * side for side in size)
    largest = {"ShearX": shear, "ShearY": shear, "TranslateX": across, "TranslateY": down}
    largest |= {"Rotate": turn}
    largest |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), change)
    levels = {name: torch.linspace(0.0, most, bins) for name, most in largest.items()}
    levels["Posterize"] = (8 - torch.arange(bins) / ((bins - 1) / bits)).round()
    levels["Solarize"] = torch.linspace(1.0, 0.0, bins)
    none = torch.zeros(bins)
    table = torch.stack([levels.get(name, none) for name in OPERATIONS]).double()
    return table, torch.tensor([name in largest for name in OPERATIONS])


def with_sign(strength: Tensor, signed: Tensor, numbers: Tensor) -> Tensor:
    return strength.where(~(signed & (numbers <= 0.5)), -strength)


def apply(images: Tensor, chosen: Tensor, strength: Tensor) -> Tensor:
    """Change each image by one of `OPERATIONS`; return them.

    Args:
        images: (B, C, H, W) uint8.
        chosen: number of the operation, (B,) int64 on the CPU; -1 for none.
        strength: with its sign, (B,) float64 on the CPU.
    """
    # Images of one operation are brought together, once: copies of rows one by one are slower.
    order = chosen.argsort(stable=True)
    counts = (chosen + 1).bincount(minlength=1 + len(OPERATIONS)).tolist()
    groups = images.index_select(0, to(order, images.device)).split(counts)
    strengths = strength[order].split(counts)
    changed = [
        operation(group, one) if len(group) else group
        for operation, group, one in zip(
            (unchanged, *OPERATIONS.values()), groups, strengths, strict=True
        )
    ]
    return torch.cat(changed).index_select(0, to(order.argsort(), images.device))


def unchanged(images: Tensor, strength: Tensor) -> Tensor:
    return images


def shear_x(images: Tensor, strength: Tensor) -> Tensor:
    return sheared(images, strength.atan(), torch.zeros_like(strength))


def shear_y(images: Tensor, strength: Tensor) -> Tensor:
    return sheared(images, torch.zeros_like(strength), strength.atan())


def sheared(images: Tensor, along_x: Tensor, along_y: Tensor) -> Tensor:
    """Shear from the upper left corner, which stays."""
    height, width = images.shape[-2:]
    straight, corner = torch.zeros_like(along_x), (-width / 2, -height / 2)
    unscaled, still = torch.ones_like(along_x), (straight, straight)
    matrices = inverse_matrices(straight, still, unscaled, (along_x, along_y), corner)
    return batches.affine(images, matrices)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn counter-clockwise: `rotate`."""
    straight, unscaled = torch.zeros_like(degrees), torch.ones_like(degrees)
    pair = (straight, straight)
    return batches.affine(images, inverse_matrices(-degrees.deg2rad(), pair, unscaled, pair))


def translate_x(images: Tensor, pixels: Tensor) -> Tensor:
    return shifted(images, pixels.trunc(), torch.zeros_like(pixels))


def translate_y(images: Tensor, pixels: Tensor) -> Tensor:
    return shifted(images, torch.zeros_like(pixels), pixels.trunc())


def shifted(images: Tensor, across: Tensor, down: Tensor) -> Tensor:
    straight, unscaled = torch.zeros_like(across), torch.ones_like(across)
    matrices = inverse_matrices(straight, (across, down), unscaled, (straight, straight))
    return batches.affine(images, matrices)


def with_factor(operation: Operation) -> Operation:
    """An operation of images and a factor as one of images and the change of it, from 1."""

    def changed(images: Tensor, strength: Tensor) -> Tensor:
        return operation(images, to((1 + strength).float(), images.device))

    return changed


# By torchvision's names, from images and strengths; Identity is first, AutoAugment's Invert last.
OPERATIONS: dict[str, Operation] = {
    "Identity": unchanged,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
    "Brightness": with_factor(batches.brightness),
    "Color": with_factor(batches.saturation),
    "Contrast": with_factor(batches.contrast),
    "Sharpness": with_factor(batches.sharpness),
    "Posterize": lambda images, bits: batches.posterize(images, to(bits.int(), images.device)),
    "Solarize": lambda images, part: batches.solarize(
        images, to((255 * part).float(), images.device)
    ),
    "AutoContrast": lambda images, _: functional.autocontrast(images),
    "Equalize": lambda images, _: functional.equalize(images),
    "Invert": lambda images, _: ~images,
}
RANDOM = len(OPERATIONS) - 1  # of which RandAugment and TrivialAugment draw
