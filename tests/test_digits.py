"""The embedded digits: one split for all time, images in range."""

import sys

import pytest
import torch

from attention_vision.classification import Digits
from attention_vision.data.digits import (
    CLASS_NAMES,
    cluttered_digits,
    held_out,
    scans,
    single_digits,
)
from attention_vision.errors import InputError


def test_split_is_stratified_and_does_not_depend_on_a_seed() -> None:
    torch.manual_seed(1)
    images, labels = single_digits("val", 16)
    torch.manual_seed(2)
    again, _ = single_digits("val", 16)
    assert torch.equal(images, again)
    train, train_labels = single_digits("train", 16)
    assert (len(train), len(images)) == (1442, 355)
    for label in range(len(CLASS_NAMES)):
        of_class = (train_labels == label).sum() + (labels == label).sum()
        assert (labels == label).sum() == of_class // 5
    # The split is part of every published accuracy: it may never move.
    assert held_out(scans()[1]).nonzero().flatten()[:5].tolist() == [33, 36, 37, 40, 44]


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_images_keep_range_and_brightness(size: int) -> None:
    images, labels = single_digits("train", size)
    assert images.shape == (1442, 1, size, size)
    assert images.min() >= 0
    assert images.max() <= 1
    assert labels.dtype == torch.int64
    assert images.mean() == pytest.approx(0.3055, abs=2e-3)


def test_cluttered_digits_are_drawn_by_split_index_and_seed() -> None:
    images, labels = cluttered_digits("train", 40)
    assert images.shape == (40, 3, 32, 32)
    assert labels.dtype == torch.int64
    assert 0 <= images.min() < 0.2 < 0.6 < images.max() <= 1
    assert set(labels.tolist()) == set(range(10))
    fewer, of_fewer = cluttered_digits("train", 5)
    assert torch.equal(fewer, images[:5])
    assert torch.equal(of_fewer, labels[:5])
    for others in (cluttered_digits("val", 5), cluttered_digits("train", 5, seed=1)):
        assert not torch.equal(others[0], fewer)
    assert cluttered_digits("train", 0)[0].shape == (0, 3, 32, 32)


def test_digits_train_among_clutter_and_validate_on_clean_scans() -> None:
    data = Digits(cluttered=30, image_size=16)
    assert (len(data.source("train")), len(data.source("val"))) == (1442 + 30, 355)
    clean, cluttered = data.source("train")[0][0], data.source("train")[1450][0]
    assert clean.shape == cluttered.shape == (3, 16, 16)
    with pytest.raises(InputError, match=r"cluttered is -1: it has to be at least 0"):
        Digits(cluttered=-1)


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r'pip install "attention-vision\[demo\]"'):
        single_digits("train")
