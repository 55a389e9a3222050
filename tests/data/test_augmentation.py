"""Steps for batches have the distribution of torchvision's transforms of one image."""

import pytest
import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from attention_vision.classification.transforms import (
    CIFARAugmentation,
    ImageNetAugmentation,
    batched_form,
)
from attention_vision.data import augmentation
from attention_vision.data.counter import uniforms
from attention_vision.errors import InputError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
DRAWS = 500
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


def picture() -> Tensor:
    """A blurred scene without a symmetry, (3, 16, 16) uint8."""
    noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(2))
    down, across = torch.linspace(0, 1, 16)[:, None], torch.linspace(0, 1, 16)
    scene = torch.stack((0.7 * across + 0 * down, 0.8 * down + 0 * across, across * down))
    return ((0.1 + 0.8 * scene + 0.1 * noise) * 255).byte()


def features(images: Tensor) -> Tensor:
    """Of each image 15 numbers: means of parts of each channel, spreads, least and largest."""
    parts = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
    flat = images.flatten(1)
    return torch.cat((parts, flat.std(1)[:, None], flat.amin(1)[:, None], flat.amax(1)[:, None]), 1)


@pytest.mark.parametrize("name", RECIPES)
def test_distribution(name: str) -> None:
    """Means and spreads of the numbers of an image agree within the error of both samples."""
    recipe, size = RECIPES[name], 12 if name == "resized crop" else 16
    one_by_one = recipe.train(size, MEAN, STD)
    torch.manual_seed(5)
    theirs = features(torch.stack([one_by_one(picture()) for _ in range(DRAWS)]))
    form = batched_form(recipe, "train")(size, MEAN, STD)
    assert form is not None
    numbers = uniforms(1, 2, torch.arange(4 * DRAWS), form.steps.draws)
    images = form.pixels(picture())[None].repeat(4 * DRAWS, 1, 1, 1)
    ours = features(form.steps(images, numbers))
    assert ours.shape == (4 * DRAWS, 15)
    assert ours.std(0).sum() > 0
    for power in (1, 2):
        center = theirs.mean(0) if power == 2 else 0.0
        a, b = ((part - center) ** power for part in (ours, theirs))
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt() + 2e-3  # of rounding
        assert ((a.mean(0) - b.mean(0)).abs() < 4.5 * error).all()


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
