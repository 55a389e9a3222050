"""Steps for batches have the distribution of torchvision's transforms of one image."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from attention_vision.classification.transforms import (
    CIFARAugmentation,
    ImageNetAugmentation,
    RandomCutout,
    batched_form,
)
from attention_vision.data import augmentation
from attention_vision.data.counter import uniforms
from attention_vision.data.image_batches import inverse_matrices
from attention_vision.errors import InputError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIZE = (24, 32)
RECIPES = {
    "crop": CIFARAugmentation(padding=3),
    "affine": CIFARAugmentation(padding=0, flip=0.0, rotation=30.0, shift=0.2, zoom=0.2),
    "erasing": CIFARAugmentation(padding=0, flip=0.0, erasing=0.7),
    "cutout": CIFARAugmentation(padding=0, flip=0.0, cutout=6),
    "randaugment": CIFARAugmentation(padding=0, flip=0.3, randaugment=2, magnitude=12),
    "trivialaugment": CIFARAugmentation(padding=0, flip=0.0, trivialaugment=True),
    "cifar10": CIFARAugmentation(padding=0, flip=0.0, autoaugment="cifar10"),
    "imagenet": ImageNetAugmentation(area=0.999, flip=0.5, autoaugment="imagenet"),
    "svhn": CIFARAugmentation(padding=0, flip=0.0, autoaugment="svhn"),
    "resized crop": ImageNetAugmentation(area=0.1),
}


def captured(step: augmentation.Step, part: Any, name: str, count: int) -> list[Any]:
    """What a step hands to a function of the operations, which leaves the images alone."""
    seen: list[Any] = []

    def note(images: Tensor, *parameters: Any, **_: Any) -> Tensor:
        seen.extend(parameters)
        return images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part, name, note)
        images = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(count, 1, *SIZE)
        step(images, uniforms(9, 1, torch.arange(count), step.draws))
    return seen


def drawn_by(transform: v2.Transform, names: list[str], count: int = 3000) -> Tensor:
    """Parameters of a transform of one image, (count, names)."""
    torch.manual_seed(4)
    image, rows = torch.zeros(1, *SIZE), []
    for _ in range(count):
        values = transform.make_params([image])
        pairs = {f"translate{n}": x for n, x in enumerate(values.get("translate", ()))}
        rows.append([float((values | pairs)[name]) for name in names])
    return torch.tensor(rows, dtype=torch.float64)


def assert_alike(ours: Tensor, theirs: Tensor) -> None:
    """Two samples of parameters (n, k) and (m, k): every column, and sums and products of pairs."""
    ours, theirs = ours.double(), theirs.double()
    columns = range(ours.shape[1])
    for a, b in [(k, k) for k in columns] + [(a, b) for a in columns for b in columns if a < b]:
        for combine in (torch.add, torch.mul):
            one, other = (combine(x[:, a], x[:, b]).sort().values for x in (ours, theirs))
            points = other.unique()
            shares = [
                torch.searchsorted(x, points, right=True).double() / len(x) for x in (one, other)
            ]
            # Kolmogorov's and Smirnov's distance; larger once in 10,000 times.
            assert (shares[0] - shares[1]).abs().max() < 2.23 * (
                1 / len(one) + 1 / len(other)
            ) ** 0.5


def test_crops_and_flips() -> None:
    padding, top, left, flip = captured(
        augmentation.Crop(3, 0.3), augmentation.batches, "crop", 30_000
    )
    assert padding == 3
    theirs = drawn_by(v2.RandomCrop(SIZE, padding=3), ["top", "left"])
    assert_alike(torch.stack((top, left), 1), theirs)
    assert abs(flip.float().mean() - 0.3) < 5 * 0.46 / 30_000**0.5
    assert abs(top[flip].float().mean() - top.float().mean()) < 5 * 2 / 9_000**0.5


def test_affine_parameters() -> None:
    seen: list[Any] = []

    def note(*parameters: Any) -> Tensor:
        seen.extend(parameters)
        return inverse_matrices(*parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "inverse_matrices", note)
        captured(augmentation.Affine(30.0, 0.2, 0.1), augmentation.batches, "affine", 30_000)
    angle, shift, zoom, _ = seen
    transform = v2.RandomAffine(30, (0.2, 0.2), (0.9, 1.1))
    theirs = drawn_by(transform, ["angle", "translate0", "translate1", "scale"])
    assert_alike(torch.stack((angle.rad2deg(), *shift, zoom), 1), theirs)


def test_rectangles_to_erase() -> None:
    """Of the images that are erased; the others have nothing."""
    top, left, bottom, right = captured(augmentation.Erase(0.7), augmentation, "erase", 30_000)
    erased = bottom > 0
    assert abs(erased.float().mean() - 0.7) < 5 * 0.46 / 30_000**0.5
    ours = torch.stack((top, left, bottom - top, right - left), 1)[erased]
    assert_alike(ours, drawn_by(v2.RandomErasing(1.0), ["i", "j", "h", "w"]))


def test_squares_to_cut_out() -> None:
    edges = torch.stack(captured(augmentation.Cutout(6), augmentation, "erase", 30_000), 1)
    top, left, bottom, right = edges.clamp(min=0).unbind(1)
    ours = torch.stack((top, left, bottom.clamp(max=SIZE[0]), right.clamp(max=SIZE[1])), 1)
    theirs = drawn_by(RandomCutout(6), ["i", "j", "h", "w"])
    theirs[:, 2:] += theirs[:, :2]
    assert_alike(ours, theirs)


@pytest.mark.parametrize("area", [0.1, 0.8])
def test_parts_of_photographs(area: float) -> None:
    rows, columns, *_, flip = captured(
        augmentation.ResizedCrop(8, area, False, 0.3), augmentation.batches, "resized_crop", 30_000
    )
    names = ["top", "left", "height", "width"]
    theirs = drawn_by(v2.RandomResizedCrop(8, (area, 1.0)), names)
    assert_alike(torch.stack((rows[:, 0], columns[:, 0], rows[:, 1], columns[:, 1]), 1), theirs)
    assert abs(flip.float().mean() - 0.3) < 5 * 0.46 / 30_000**0.5


@pytest.mark.parametrize(
    ("step", "transform"),
    [
        (augmentation.RandAugment(1, 12), v2.RandAugment(1, 12)),
        (augmentation.TrivialAugment(), v2.TrivialAugmentWide()),
        (augmentation.AutoAugment("svhn"), v2.AutoAugment(v2.AutoAugmentPolicy.SVHN)),
    ],
)
def test_operations_and_strengths(step: augmentation.Step, transform: v2.Transform) -> None:
    """How often each operation comes, how strong, and with which sign."""
    seen: list[tuple[int, float]] = []
    names = list(augmentation.OPERATIONS)

    def note(image: Tensor, name: str, magnitude: float, **_: Any) -> Tensor:
        seen.append((names.index(name), magnitude))
        return image

    torch.manual_seed(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transform, "_apply_image_or_video_transform", note)
        for _ in range(6000):
            transform(torch.zeros(1, *SIZE, dtype=torch.uint8))
    parts = captured(step, augmentation, "apply", 40_000)
    chosen, strength = torch.cat(parts[0::2]), torch.cat(parts[1::2])
    applied = chosen >= 0
    ours = torch.stack((chosen[applied].double(), strength[applied]), 1)
    theirs = torch.tensor(seen, dtype=torch.float64)
    rate, seen_rate = len(ours) / 40_000, len(theirs) / 6000
    assert abs(rate - seen_rate) < 5 * 0.7 / 6000**0.5 + 1e-9
    largest = torch.ones(len(names), dtype=torch.float64)
    for number in ours[:, 0].long().unique():  # all operations count alike
        largest[number] = ours[ours[:, 0] == number, 1].abs().amax().clamp(min=1e-9)
    for sample in (ours, theirs):
        sample[:, 1] /= largest[sample[:, 0].long()]
    assert_alike(ours, theirs)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_same_steps(name: str) -> None:
    """The mean picture of both forms, within the error of 150 pictures of torchvision's."""
    recipe = RECIPES[name]
    one_by_one, form = recipe.train(16, MEAN, STD), batched_form(recipe, "train")(16, MEAN, STD)
    assert form is not None
    down, across = torch.linspace(20, 200, 16)[:, None], torch.linspace(20, 240, 16)
    image = torch.stack((down + 0 * across, across + 0 * down, down * across / 240)).byte()
    torch.manual_seed(0)
    theirs = torch.stack([one_by_one(image) for _ in range(150)])
    numbers = uniforms(0, 0, torch.arange(3000), form.steps.draws)
    ours = form.steps(form.pixels(image)[None].repeat(3000, 1, 1, 1), numbers)
    for part in (lambda x: x, torch.square):
        a, b = part(ours), part(theirs)
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 5 * error + 0.02).all()


@pytest.mark.parametrize("policy", ["cifar10", "imagenet", "svhn"])
def test_pairs_of_operations(policy: str) -> None:
    """Each pair comes equally often, each operation with its probability, its level and sign."""
    step, seen = augmentation.AutoAugment(policy), []
    numbers = uniforms(0, 0, torch.arange(20_000), step.draws)
    known = transforms.AutoAugment(transforms.AutoAugmentPolicy(policy)).policies

    def note(images: Tensor, chosen: Tensor, strength: Tensor) -> Tensor:
        seen.append((chosen, strength))
        return images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "apply", note)
        step(torch.zeros(20_000, 3, 16, 16, dtype=torch.uint8), numbers)
    pair = (numbers[:, 0] * 25).long()
    assert pair.bincount(minlength=25).float().sub(800).abs().max() < 5 * 28
    levels, signed = augmentation.magnitudes(10, (16, 16))
    for row, operations in enumerate(known):
        for (name, probability, level), (chosen, strength) in zip(operations, seen, strict=True):
            mine = pair == row
            number = list(augmentation.OPERATIONS).index(name)
            applied = chosen[mine] == number
            assert ((chosen[mine] == -1) | applied).all()
            assert abs(applied.float().mean() - probability) < 5 * 0.5 / 25
            if level is not None:
                assert strength[mine].abs().unique().tolist() == [levels[number, level].abs()]
            negative = (strength[mine] < 0).float().mean()
            assert abs(negative - 0.5 * bool(signed[number] and level)) < 5 * 0.5 / 25


@pytest.mark.parametrize("name", RECIPES)
def test_an_image_is_the_same_in_every_batch(name: str) -> None:
    form = batched_form(RECIPES[name], "train")(16, MEAN, STD)
    assert form is not None
    images = torch.randint(0, 256, (37, 3, 16, 16), dtype=torch.uint8)
    numbers = uniforms(0, 1, torch.arange(37), form.steps.draws)
    whole = form.steps(images.clone(), numbers)
    parts = [
        form.steps(images[start:end].clone(), numbers[start:end])
        for start, end in ((0, 1), (1, 18), (18, 37))
    ]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("recipe", [CIFARAugmentation(), ImageNetAugmentation()])
@pytest.mark.parametrize("interpolation", [None, "bicubic"])
def test_evaluation_is_the_same_bit_by_bit(recipe, interpolation) -> None:
    for size, channels in (((20, 20), 3), ((31, 24), 1), ((16, 16), 3)):
        images = torch.randint(0, 256, (5, channels, *size), dtype=torch.uint8)
        one_by_one = recipe.evaluation(16, MEAN, STD, interpolation)
        form = batched_form(recipe, "evaluation")(16, MEAN, STD, interpolation)
        held = form.pixels(images)
        assert held.dtype == torch.uint8
        theirs = torch.stack([one_by_one(image) for image in images])
        assert torch.equal(form.steps(held, torch.empty(5, 0)), theirs)


def test_without_a_fit_the_middle_is_cut_as_torchvision_does() -> None:
    image = torch.randint(0, 256, (3, 8, 60), dtype=torch.uint8)
    step = augmentation.ResizedCrop(16, 1.0, False, 0.0)  # the whole area: no aspect fits
    ours = step(image[None], torch.full((1, step.draws), 0.5))
    theirs = v2.RandomResizedCrop(16, (1.0, 1.0), antialias=True)(image)
    assert (ours[0].int() - theirs.int()).abs().max() <= 2


def test_a_recipe_that_overrides_one_form_has_no_other() -> None:
    class Mine(CIFARAugmentation):
        def train(self, size, mean, std, interpolation=None):
            return v2.Identity()

    assert batched_form(Mine(), "train")(16, MEAN, STD) is None
    assert batched_form(Mine(), "evaluation")(16, MEAN, STD) is not None


@pytest.mark.parametrize("kind", [CIFARAugmentation, ImageNetAugmentation])
def test_two_policies_are_refused(kind) -> None:
    with pytest.raises(InputError, match="randaugment and autoaugment: leave one out"):
        kind(randaugment=2, autoaugment="svhn")
    with pytest.raises(InputError, match="autoaugment and trivialaugment: leave one out"):
        kind(trivialaugment=True, autoaugment="svhn")
