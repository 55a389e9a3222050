"""Operations on batches equal torchvision's on each image, with the same parameters."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from attention_vision.data import image_batches
from attention_vision.data.augmentation import OPERATIONS, apply, erase, magnitudes

SIZES = ((32, 32), (20, 27))
BLENDS = {"Color", "Contrast", "Sharpness"}  # which torchvision may round the other way
SPACES = {
    10: v2.AutoAugment._AUGMENTATION_SPACE,
    31: v2.RandAugment._AUGMENTATION_SPACE,
}


def pictures(count: int, size: tuple[int, int], channels: int = 3) -> Tensor:
    """Noise, every other picture with soft edges and a narrow range."""
    stream = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=stream)
    images[1::2] = functional.gaussian_blur(images[1::2], [5, 5])
    return images


def by_torchvision(image: Tensor, name: str, magnitude: float) -> Tensor:
    """As its policies apply an operation."""
    nearest = InterpolationMode.NEAREST
    apply_one = v2.RandAugment()._apply_image_or_video_transform
    return apply_one(image, name, magnitude, interpolation=nearest, fill={type(image): None})


def assert_close(ours: Tensor, theirs: Tensor, levels: int) -> None:
    assert ours.dtype == theirs.dtype == torch.uint8
    assert (ours.int() - theirs.int()).abs().max() <= levels


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bins", [10, 31, "wide"])
def test_strengths(bins: int | str, size: tuple[int, int]) -> None:
    wide, number = bins == "wide", 31 if bins == "wide" else int(bins)
    space = v2.TrivialAugmentWide._AUGMENTATION_SPACE if wide else SPACES[number]
    ours, signed = magnitudes(number, size, wide)
    for row, name in enumerate(OPERATIONS):
        if name in space:
            theirs, has_sign = space[name]
            strengths = theirs(number, *size)
            assert bool(signed[row]) == has_sign
            assert strengths is None or ours[row].tolist() == strengths.tolist()
    assert set(space) <= set(OPERATIONS)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str, channels: int) -> None:
    """All strengths of all policies, of both signs."""
    row = list(OPERATIONS).index(name)
    for size in SIZES:
        strengths = torch.cat(
            [magnitudes(*one)[0][row] for one in ((10, size), (31, size), (31, size, True))]
        )
        if magnitudes(10, size)[1][row]:
            strengths = torch.cat((strengths, -strengths))
        images = pictures(len(strengths), size, channels)
        theirs = torch.stack(
            [
                by_torchvision(image, name, strength)
                for image, strength in zip(images, strengths.tolist(), strict=True)
            ]
        )
        ours = apply(images.clone(), torch.full((len(images),), row), strengths)
        assert_close(ours, theirs, levels=1 if name in BLENDS else 0)
        assert (ours != theirs).float().mean() < 0.01
        unchanged = name == "Identity" or (name == "Color" and channels == 1)
        assert torch.equal(ours, images) == unchanged


def test_each_image_has_its_own_operation() -> None:
    images = pictures(45, (16, 16))
    chosen = torch.arange(45) % 16 - 1  # -1 is none
    strengths = magnitudes(31, (16, 16))[0][chosen.clamp(min=0), 20]
    together = apply(images.clone(), chosen, strengths)
    for number in range(45):
        only = slice(number, number + 1)
        alone = apply(images[only].clone(), chosen[only], strengths[only])
        assert torch.equal(together[only], alone)
    assert torch.equal(together[::16], images[::16])


@pytest.mark.parametrize("padding", [0, 3])
def test_crop(padding: int) -> None:
    images = pictures(12, (9, 14))
    top, left = (torch.arange(12) * k % (2 * padding + 1) for k in (1, 3))
    flip = torch.arange(12) % 2 == 1
    ours = image_batches.crop(images, padding, top, left, flip)
    for number, image in enumerate(images):
        padded = functional.pad(image, [padding])
        theirs = functional.crop(padded, int(top[number]), int(left[number]), 9, 14)
        theirs = functional.horizontal_flip(theirs) if flip[number] else theirs
        assert torch.equal(ours[number], theirs)


def test_affine() -> None:
    """Turned, shifted and zoomed at once; the border is blended with black."""
    images = pictures(30, (21, 30))
    stream = torch.Generator().manual_seed(0)
    drawn = torch.rand(30, 4, generator=stream, dtype=torch.float64) * 2 - 1
    angle, zoom = 40 * drawn[:, 0], 1 + 0.3 * drawn[:, 3]
    shift = (6 * drawn[:, 1]).round(), (6 * drawn[:, 2]).round()
    straight = torch.zeros_like(angle)
    matrices = image_batches.inverse_matrices(angle.deg2rad(), shift, zoom, (straight, straight))
    ours = image_batches.affine(images, matrices, bilinear=True)
    for number, image in enumerate(images):
        theirs = functional.affine(
            image, angle[number].item(), [part[number].item() for part in shift],
            zoom[number].item(), [0.0, 0.0], InterpolationMode.BILINEAR, fill=0,
        )  # fmt: skip
        assert_close(ours[number], theirs, levels=1)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("size", [8, 24, 70])
def test_resized_crop(size: int, bicubic: bool) -> None:
    """Smaller and larger; the 16-bit weights of torchvision's kernel decide what lies halfway.

    It rounds after each direction: two such pixels on the way may make a second level.
    """
    images = pictures(20, (40, 31))
    stream = torch.Generator().manual_seed(size)
    high, wide = (torch.randint(3, end + 1, (20,), generator=stream) for end in (40, 31))
    top, left = (torch.rand(20, generator=stream) * (end - part + 1) for end, part in
                 ((40, high), (31, wide)))  # fmt: skip
    parts = [torch.stack((a.floor(), b), 1).float() for a, b in ((top, high), (left, wide))]
    flip = torch.arange(20) % 2 == 0
    ours = image_batches.resized_crop(images, *parts, size, bicubic, flip)
    distances = []
    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    for number, image in enumerate(images):
        (first_row, rows), (first_column, columns) = (part[number].int().tolist() for part in parts)
        theirs = functional.resized_crop(
            image, first_row, first_column, rows, columns, [size, size], mode, antialias=True
        )
        theirs = functional.horizontal_flip(theirs) if flip[number] else theirs
        assert_close(ours[number], theirs, levels=2)
        distances.append((ours[number].int() - theirs.int()).abs().flatten())
    distance = torch.cat(distances)
    assert (distance > 0).float().mean() < 0.05
    assert (distance > 1).float().mean() < 0.001


def test_erase() -> None:
    images = pictures(6, (10, 12)).float() + 1
    edges = torch.tensor(
        [[0, 0, 10, 12], [2, 3, 4, 9], [-5, -2, 3, 4], [8, 9, 20, 20], [5, 5, 5, 9], [4, 4, 0, 9]]
    ).double()
    ours = erase(images.clone(), *edges.unbind(1))
    for number, (top, left, bottom, right) in enumerate(edges.int().tolist()):
        theirs = images[number].clone()
        theirs[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 0
        assert torch.equal(ours[number], theirs)


def test_matrices_are_torchvisions() -> None:
    """Against the plain formula: shear, turn, zoom, shift, each around the center."""
    angle, shear, zoom = math.radians(25.0), math.radians(10.0), 1.3
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    slant = torch.tensor([[1, -math.tan(shear)], [0, 1]])
    forward = zoom * turn @ slant
    matrix = image_batches.inverse_matrices(
        *(torch.tensor([angle]),),
        (torch.tensor([3.0]), torch.tensor([-2.0])),
        torch.tensor([zoom]),
        (torch.tensor([shear]), torch.tensor([0.0])),
    )[0]
    position = torch.tensor([4.0, 7.0])
    moved = forward @ position + torch.tensor([3.0, -2.0])
    torch.testing.assert_close(matrix[:, :2] @ moved + matrix[:, 2], position)
