"""Images in memory: the same samples at any batch size, in any process, and after a resume."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from attention_vision.classification import (
    CIFARAugmentation,
    ClassificationData,
    Digits,
    ImageFolder,
    ImageNetAugmentation,
)
from attention_vision.classification.sources import LabeledFiles, TensorImages
from attention_vision.data import resident
from attention_vision.data.loading import EpochSampler, TrainLoader
from attention_vision.data.resident import ResidentLoader
from attention_vision.errors import InputError
from attention_vision.training.steps import SeedEveryStep

RECIPE = CIFARAugmentation(padding=2, rotation=10.0, autoaugment="cifar10", erasing=0.5, cutout=4)


def digits(**options: Any) -> Digits:
    data = Digits(
        **{
            "recipe": RECIPE,
            "image_size": 16,
            "batch_size": 32,
            "seed": 3,
            "per_class": 40,
            **options,
        }
    )
    data.setup("fit")
    return data


def loader_of(data: ClassificationData, epoch: int = 0) -> ResidentLoader:
    loader = data.train_dataloader()
    assert isinstance(loader, ResidentLoader)
    loader.sampler.set_epoch(epoch)
    return loader


def joined(batches: Iterable[Any]) -> list[Tensor]:
    images, labels = zip(*batches, strict=True)
    return [torch.cat(images), torch.cat(labels)]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_samples_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = joined(loader_of(digits()))
    assert whole[0].shape == (384, 3, 16, 16)
    assert whole[0].dtype == torch.float32
    for batch_size, at_once in ((32, 1), (48, 10**6), (192, 10**9)):
        monkeypatch.setitem(resident.CHUNK, "cpu", at_once)
        loader = loader_of(digits(batch_size=batch_size))
        batches = list(loader)
        assert len(batches) == len(loader) == 384 // batch_size
        assert_same(joined(batches), whole)
    assert not torch.equal(joined(loader_of(digits(), epoch=1))[0], whole[0])
    assert not torch.equal(joined(loader_of(digits(seed=4)))[0], whole[0])


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_together_have_the_samples_of_one(processes: int) -> None:
    data = digits()
    held = loader_of(data)
    alone = dict(zip(held.sampler.order(), joined(held)[0], strict=False))
    seen = 0
    for rank in range(processes):
        sampler = EpochSampler(data.train_images, processes, rank, seed=3)
        part = ResidentLoader(data.train_images, held.images, held.steps, 16, sampler, 3)
        for index, image in zip(sampler.order(), joined(part)[0], strict=False):
            seen += 1
            assert index not in alone or torch.equal(image, alone[index])
    assert seen == processes * (400 // processes // 16 * 16)


@pytest.mark.parametrize("batches", [0, 1, 5, 8, 12])
def test_resumes_inside_an_epoch(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(resident.CHUNK, "cpu", 4 * 32 * 4 * 3 * 16 * 16)  # four batches at once
    whole = list(loader_of(digits(), epoch=2))
    first, part = loader_of(digits(), epoch=2), []
    for batch in first:
        if len(part) == batches:
            break
        part.append(batch)
    state = {"epoch": 2, "batches": batches} if batches in (0, 12) else first.state_dict()
    if 0 < batches < 12:
        assert state.pop("batches") == batches + 1  # one more was asked for
        state["batches"] = batches
    resumed = loader_of(digits())
    resumed.load_state_dict(state)
    resumed.sampler.set_epoch(2)
    rest = list(resumed)
    assert len(rest) == 12 - batches
    for one, other in zip(part + rest, whole, strict=True):
        assert_same(one, other)
    resumed.load_state_dict(state)
    resumed.sampler.set_epoch(3)  # which the position is not of
    assert len(list(resumed)) == 12


def test_a_position_of_the_other_kind_of_loader_is_refused() -> None:
    held, read = loader_of(digits()), digits(resident_gib=0.0).train_dataloader()
    next(iter(read))
    with pytest.raises(InputError, match=r"not held in memory: resume with the data.resident_gib"):
        held.load_state_dict(read.state_dict())
    assert isinstance(read, TrainLoader)
    with pytest.raises(InputError, match=r"were held in memory: resume with the data.resident_gib"):
        read.load_state_dict(held.state_dict())


@pytest.mark.parametrize("options", [{}, {"repeats": 3}, {"balanced": True}, {"cluttered": 20}])
def test_the_order_is_that_of_the_loader_that_reads(options: dict[str, Any]) -> None:
    plain = CIFARAugmentation(padding=0, flip=0.0)  # nothing is random: the images are equal too
    held = loader_of(digits(recipe=plain, **options))
    read = digits(recipe=plain, resident_gib=0.0, **options).train_dataloader()
    assert_same(joined(held), joined(read))


def test_repeats_are_augmented_each_in_its_own_way() -> None:
    images, labels = next(iter(loader_of(digits(repeats=3, batch_size=12))))
    assert len(set(labels[:3].tolist())) == 1
    assert len({tuple(image.flatten().tolist()) for image in images}) == 12


@pytest.mark.parametrize("recipe", [RECIPE, ImageNetAugmentation()])
def test_evaluation_is_that_of_the_loader_that_reads(recipe: Any) -> None:
    held, read = (
        digits(recipe=recipe, batch_size=100, resident_gib=gib).val_dataloader() for gib in (1, 0)
    )
    assert isinstance(held, ResidentLoader)
    assert [len(batch[1]) for batch in held] == [100, 100, 100, 55]
    assert len(held) == len(read) == 4
    assert_same(joined(held), joined(read))
    parts = [
        joined(ResidentLoader(held.dataset, held.images, held.steps, 60, share=(3, rank)))
        for rank in range(3)
    ]
    whole = joined(held)
    for rank, part in enumerate(parts):
        assert_same(part, [one[rank::3] for one in whole])


def folder(root: Path, sizes: list[tuple[int, int]]) -> Path:
    for split, label in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")):
        (root / split / label).mkdir(parents=True)
        for number, (width, height) in enumerate(sizes):
            pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3))
            file = root / split / label / f"{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    return root


def kinds(data: ClassificationData) -> tuple[bool, bool]:
    """Whether the training and the validation are held in memory."""
    data.setup("fit")
    loaders = data.train_dataloader(), data.val_dataloader()
    return tuple(isinstance(one, ResidentLoader) for one in loaders)


def test_folders_are_held_where_their_images_are_equally_large(tmp_path: Path) -> None:
    equal = folder(tmp_path / "equal", [(20, 18)] * 3)
    unequal = folder(tmp_path / "unequal", [(20, 18), (18, 20), (20, 18)])
    options: dict[str, Any] = {"image_size": 12, "batch_size": 2, "num_workers": 0}
    assert kinds(ImageFolder(str(equal), **options)) == (True, True)
    # Their parts differ in size, what is evaluated does not.
    assert kinds(ImageFolder(str(unequal), **options)) == (False, True)
    assert kinds(ImageFolder(str(unequal), CIFARAugmentation(), **options)) == (True, True)
    options["resident_gib"] = 7000 / 2**30  # 6 images of 20 x 18 need 6,480 bytes, of 12 x 12 2,592
    assert kinds(ImageFolder(str(equal), **options)) == (True, True)
    options["resident_gib"] = 6000 / 2**30
    assert kinds(ImageFolder(str(equal), **options)) == (False, True)
    options["resident_gib"] = 0.0
    assert kinds(ImageFolder(str(equal), **options)) == (False, False)
    with pytest.raises(InputError, match="resident_gib is -1"):
        ImageFolder(str(equal), resident_gib=-1.0)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path, [(20, 18)] * 3)
    (root / "train" / "b" / "1.png").write_bytes(b"no png")
    data = ImageFolder(str(root), CIFARAugmentation(), 12, batch_size=2, num_workers=0)
    data.setup("fit")
    with pytest.raises(InputError, match=r"b/1\.png"):
        data.train_dataloader()


class Trembling(TensorImages):
    """A user's source, which never reads the same image twice."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        return (image + torch.randint(0, 2, image.shape)).byte(), label


class TremblingDigits(Digits):
    def source(self, split: str) -> Any:
        whole = super().source(split)
        return Trembling(whole.images, whole.targets)


class Negative(CIFARAugmentation):
    """A user's recipe."""

    def train(self, *args: Any, **options: Any) -> Any:
        transform = super().train(*args, **options)
        return lambda image: -transform(image)


def test_sources_and_recipes_of_others_are_read_one_by_one() -> None:
    assert kinds(TremblingDigits()) == (False, False)
    assert kinds(Digits(Negative())) == (False, True)
    assert kinds(Digits()) == (True, True)


def test_runs_that_began_with_streams_go_on_with_them(tmp_path: Path) -> None:
    seeds, data = SeedEveryStep(), digits()
    trainer = Trainer(callbacks=[seeds], accelerator="cpu", logger=False, barebones=False,
                      default_root_dir=tmp_path)  # fmt: skip
    data.trainer = trainer
    assert isinstance(data.train_dataloader(), ResidentLoader)
    key = seeds.state_key
    states = ({key: seeds.state_dict()}, {key: {"order": "mixed"}}, {})
    for state, draws in zip(states, ("counter", "streams", "streams"), strict=True):
        seeds.on_load_checkpoint(trainer, None, {"callbacks": state})
        assert seeds.draws == draws
        held = isinstance(data.train_dataloader(), ResidentLoader)
        assert held == (draws == "counter")


def test_overfitting_keeps_the_trainers_own_order(tmp_path: Path) -> None:
    data = digits()
    data.trainer = Trainer(overfit_batches=2, accelerator="cpu", logger=False,
                           default_root_dir=tmp_path)  # fmt: skip
    assert isinstance(data.train_dataloader(), TrainLoader)


def test_files_that_are_measured_once_are_not_held(tmp_path: Path) -> None:
    root = folder(tmp_path, [(20, 18)] * 3)
    data = ImageFolder(str(root), CIFARAugmentation(), 12, batch_size=2, num_workers=0)
    data.setup("validate")
    data.trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    assert not isinstance(data.val_dataloader(), ResidentLoader)
    assert resident.is_fixed(LabeledFiles([], ()))


def test_one_copy_is_held_of_what_is_in_memory() -> None:
    images = torch.randint(0, 256, (600, 3, 8, 8), dtype=torch.uint8)
    source = TensorImages(images, [0] * 600)
    held = resident.held_images(source, lambda one: one.clone(), 1.0, 1)
    assert held is not None
    assert held.data_ptr() == images.data_ptr()
    brighter = resident.held_images(source, lambda one: one + 1, 1.0, 1)
    assert brighter is not None
    assert torch.equal(brighter, images + 1)
