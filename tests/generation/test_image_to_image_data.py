"""Data of restoration and segmentation: randomness from the seed, one line for a bad folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from image_to_image_folders import balls, discs
from PIL import Image

from attention_vision.data.loading import random_stream
from attention_vision.errors import InputError
from attention_vision.generation import (
    DegradedDigits,
    DegradedFolder,
    DigitMasks,
    Holes,
    LowResolution,
    MaskFolder,
    Noise,
    VolumeFolder,
)


def disc_data(folder: Path, **arguments) -> MaskFolder:
    images, masks = discs(folder)
    given = {"val_names": ["3"], "size": 16, "patches_per_image": 3, "num_workers": 0}
    return MaskFolder(images, masks, **given | arguments)


def ball_data(folder: Path, **arguments) -> VolumeFolder:
    images, masks = balls(folder)
    given = {"val_names": ["2"], "class_names": ("none", "liver", "spleen"), "patch": (8, 8, 8)}
    return VolumeFolder(images, masks, window=(-20.0, 140.0), num_workers=0, **given | arguments)


MAKE = {
    "noise": lambda folder: DegradedDigits(Noise(25), size=16),
    "holes": lambda folder: DegradedDigits(Holes(), size=16),
    "low resolution": lambda folder: DegradedDigits(LowResolution(2), size=16),
    "folder": lambda folder: DegradedFolder(
        discs(folder)[0], Noise(25), discs(folder / "val")[0], size=16, num_workers=0
    ),
    "digit masks": lambda folder: DigitMasks(size=16),
    "masks": disc_data,
    "masks, shrunk": lambda folder: disc_data(folder, shrink=1.5, size=12, in_memory=True),
    "volumes": ball_data,
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_samples_follow_from_seed_epoch_and_index(make, tmp_path):
    data = make(tmp_path)

    def equal(a, b) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    train, again, other = (data.dataset("train", seed) for seed in (0, 0, 1))
    torch.manual_seed(5)
    sample = train[3, 1]
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(5))
    assert equal(sample, again[3, 1])
    samples = [train[epoch, 1] for epoch in range(6)] + [other[epoch, 1] for epoch in range(6)]
    if data.__class__ is not DegradedDigits or not isinstance(data.degradation, LowResolution):
        assert not all(equal(sample, one) for one in samples)
    # Evaluation: neither the run's seed nor the epoch moves it.
    val, of_other_seed = data.dataset("val", 0), data.dataset("val", 1)
    assert equal(val[0], of_other_seed[0])

    inputs, target = sample
    assert inputs.shape[0] == data.channels
    assert inputs.dtype == torch.float32
    if data.num_classes:
        assert target.dtype == torch.int64
        assert target.shape == inputs.shape[1:]
        assert 0 <= target.min() <= target.max() < data.num_classes
    else:
        assert target.shape == (3, *inputs.shape[1:])
        assert 0 <= target.min() <= target.max() <= 1


def test_image_and_mask_are_cut_and_flipped_together(tmp_path):
    train = disc_data(tmp_path).dataset("train", 0)
    assert len(train) == 9
    whole = {}
    for epoch in range(20):
        image, mask = train[epoch, 4]
        assert image.shape == (3, 16, 16)
        inside, outside = image[:, mask == 1], image[:, mask == 0]
        assert inside.numel() == 0 or inside.min() > outside.max() - 0.1  # the disc is brighter
        whole[image.sum().item()] = True
    assert len(whole) > 10


def test_volumes_are_cut_with_their_masks(tmp_path):
    train = ball_data(tmp_path).dataset("train", 0)
    volume, mask = train[0, 0]
    assert volume.shape == (1, 8, 8, 8)
    means = [volume[0][mask == label].mean() for label in range(3)]
    expected = [20 / 160, 80 / 160, 140 / 160]
    assert means == pytest.approx(expected, abs=0.05)
    volume, mask = ball_data(tmp_path / "whole").dataset("val", 0)[0]
    assert volume.shape == (1, *mask.shape) == (1, 9, 12, 10)


def test_split_by_names_and_by_folders(tmp_path):
    images, masks = discs(tmp_path)
    data = MaskFolder(images, masks, val_names=["[12]", "3"], num_workers=0)
    assert [Path(image).stem for image, _ in data.pairs("train")] == ["0"]
    assert [Path(image).stem for image, _ in data.pairs("val")] == ["1", "2", "3"]
    data = MaskFolder(images, masks, images, masks)
    assert len(data.pairs("train")) == len(data.pairs("val")) == 4


def test_noise_has_its_strength():
    image = torch.full((3, 64, 64), 0.5)
    assert (Noise(25)(image) - image).std() == pytest.approx(25 / 255, rel=0.05)
    strengths = [(Noise(0, 50)(image) - image).std().item() for _ in range(20)]
    assert min(strengths) < 15 / 255
    assert max(strengths) > 35 / 255
    assert torch.equal(Noise(0)(image), image)


def test_holes_are_told():
    image = torch.rand(3, 20, 30)
    with random_stream(0):
        degraded = Holes(3)(image)
    hole = degraded[3] == 1
    assert 0 < hole.sum() < hole.numel()
    assert (degraded[:3, hole] == 0.5).all()
    assert torch.equal(degraded[:3, ~hole], image[:, ~hole])


@pytest.mark.parametrize("size", [(16, 16), (17, 9), (1, 5)])
def test_low_resolution_keeps_the_size(size):
    image = torch.rand(3, *size)
    degraded = LowResolution(2)(image)
    assert degraded.shape == image.shape
    assert LowResolution(2).undegraded(image).shape == (3, 2 * size[0], 2 * size[1])


def test_a_shrunk_mask_has_the_class_that_covers_most(tmp_path):
    folders = [tmp_path / name for name in ("images", "masks")]
    mask = np.zeros((4, 4), np.uint8)
    mask[:2, :2], mask[0, 2], mask[2:, 2:] = 9, 9, 9
    mask[3, 3] = 0
    for folder, pixels in zip(folders, (np.zeros((4, 4, 3), np.uint8), mask), strict=True):
        folder.mkdir()
        Image.fromarray(pixels).save(folder / "a.png")
    images, masks = map(str, folders)
    data = MaskFolder(images, masks, images, masks, values=(0, 9), shrink=2.0)
    assert data.dataset("val", 0)[0][1].tolist() == [[1, 0], [0, 1]]


def save(pixels: np.ndarray, file: str) -> None:
    Image.fromarray(pixels.astype(np.uint8)).save(file)


MISTAKES = {
    "image without a mask": (lambda i, m: Path(m, "2.png").unlink(), "2.png has no mask"),
    "mask without an image": (lambda i, m: Path(i, "2.png").unlink(), "2.png is a mask without"),
    "unequal sizes": (lambda i, m: save(np.zeros((9, 9)), f"{m}/2.png"), "20x26, its mask .* 9x9"),
    "unknown value": (
        lambda i, m: save(np.full((20, 26), 7), f"{m}/2.png"),
        "gray levels 7 are no",
    ),
    "coloured mask": (
        lambda i, m: save(np.eye(20, 26)[..., None] * [9, 0, 0], f"{m}/2.png"),
        "a colored mask of 2 colors",
    ),
    "no image": (lambda i, m: Path(i, "2.png").write_text("none"), "cannot read the image .*2.png"),
    "no mask": (lambda i, m: Path(m, "2.png").write_text("none"), "cannot read the mask .*2.png"),
    "two of a name": (lambda i, m: save(np.zeros((20, 26, 3)), f"{i}/2.jpg"), "the same name"),
}


@pytest.mark.parametrize(("spoil", "words"), MISTAKES.values(), ids=MISTAKES)
def test_bad_folders_are_one_line(spoil, words, tmp_path):
    data = disc_data(tmp_path)
    spoil(*data.folders["train"])
    with pytest.raises(InputError, match=words) as error:
        data.dataset("train", 0)[0, 6]
    assert "\n" not in str(error.value)


def test_bad_volumes_are_one_line(tmp_path):
    data = ball_data(tmp_path)
    images, masks = data.folders["train"]
    for array, words in (
        (np.full((9, 12, 10), 3), "from 3 to 3; a mask has whole numbers 0..2"),
        (np.zeros((9, 12, 10), np.float32), "float32 from"),
        (np.zeros((9, 12, 9), np.uint8), "9x12x10, its mask .* 9x12x9"),
        (np.zeros((9, 12), np.uint8), "9x12: a volume has three axes"),
    ):
        np.savez(f"{masks}/0.npz", array)
        with pytest.raises(InputError, match=words):
            data.dataset("train", 0)[0, 0]
    Path(images, "0.npy").write_text("none")
    with pytest.raises(InputError, match="cannot read the volume"):
        data.dataset("train", 0)[0, 0]


def read(folder: Path, **arguments) -> None:
    """A training and an evaluation set of the discs in a folder, and a sample."""
    images, masks = str(folder / "images"), str(folder / "masks")
    data = MaskFolder(images, masks, **{"val_names": ["1"], "num_workers": 0} | arguments)
    data.dataset("val", 0)
    data.dataset("train", 0)[0, 0]


def refuse(folder: Path, words: str, **arguments) -> None:
    with pytest.raises(InputError, match=words) as error:
        read(folder, **arguments)
    assert "\n" not in str(error.value)


def test_bad_settings_are_one_line(tmp_path):
    refuse(tmp_path, "no folder .*images: set data.train_images")
    discs(tmp_path)
    refuse(tmp_path, "val_names x: none of the 4 images", val_names=["x"])
    refuse(tmp_path, r"val_names \*: all of the 4", val_names=["*"])
    refuse(tmp_path, "what to validate on", val_names=[])
    refuse(tmp_path, "give both", val_images="x")
    refuse(tmp_path, "one gray level for each", values=(0, 1, 2))
    refuse(tmp_path, "one gray level for each", values=(0, 0))
    refuse(tmp_path, "smaller than the patches of 64x64: lower data.size", size=64)
    refuse(tmp_path, "shrink is 0.5", shrink=0.5)
    refuse(tmp_path, "name the background", class_names=("background",))
    refuse(tmp_path, "disc is there twice", class_names=("background", "disc", "disc"))
    refuse(tmp_path, "patches_per_image is 0", patches_per_image=0)
    with pytest.raises(InputError, match="window"):
        VolumeFolder("a", "b", val_names=["1"], window=(3.0, 3.0))


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: Noise(-1), "sigma is -1"),
        (lambda: Noise(9, 3), "sigma_high 3"),
        (lambda: Holes(0), "count is 0"),
        (lambda: Holes(1, 0.5, 0.2), "least 0.5 is above most 0.2"),
        (lambda: LowResolution(1), "factor is 1"),
        (lambda: Holes().undegraded(torch.zeros(3, 4, 4)), "data.degrade"),
    ],
)
def test_bad_degradations_are_one_line(mistake, words):
    with pytest.raises(InputError, match=words):
        mistake()
