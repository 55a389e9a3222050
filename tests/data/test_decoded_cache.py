"""The cache of decoded images: equal pixels in all epochs, whoever fills it, whatever fails."""

import multiprocessing
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from attention_vision.classification import ImageFolder
from attention_vision.classification.sources import LabeledFiles
from attention_vision.data.decoded_cache import CachedImages
from attention_vision.data.encoded_image import EncodedImage
from attention_vision.errors import InputError

SIZES = [(90, 60), (50, 80), (30, 20), (64, 64)]  # width, height


@pytest.fixture
def files(tmp_path: Path) -> LabeledFiles:
    """Pictures of several sizes, one of them smaller than the cache keeps."""
    found = []
    for number, (width, height) in enumerate(SIZES):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        path = tmp_path / "data" / "train" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path)
        found.append((str(path), number % 2))
    return LabeledFiles(found, ("a", "b"))


def opened(files: LabeledFiles, folder: Path) -> CachedImages:
    return CachedImages(files, folder / "cache", "train", 40)


def refuse(*_, **__) -> None:
    raise AssertionError("decoded again")


def test_the_second_epoch_decodes_nothing(files, tmp_path, monkeypatch) -> None:
    first = [opened(files, tmp_path)[index] for index in range(4)]
    assert [image.shape[1:] for image, _ in first] == [(40, 60), (64, 40), (20, 30), (40, 40)]
    for (image, label), (path, of_file) in zip(first, files.files, strict=True):
        whole = EncodedImage(path).tensor()
        assert image.equal(functional.resize(whole, list(image.shape[1:]), antialias=True))
        assert label == of_file
    monkeypatch.setattr(EncodedImage, "region", refuse)
    again = opened(files, tmp_path)
    assert all(again[index][0].equal(first[index][0]) for index in range(4))


def test_other_files_make_it_anew(files, tmp_path, capsys) -> None:
    before = opened(files, tmp_path)[1][0]
    assert "for 4 images" in capsys.readouterr().out
    path = files.files[1][0]
    Image.open(path).transpose(Image.Transpose.ROTATE_180).save(path)
    found = opened(files, tmp_path)[1][0]
    assert "is of other files, and is made anew" in capsys.readouterr().out
    assert not found.equal(before)
    assert found.equal(opened(files, tmp_path)[1][0])
    assert capsys.readouterr().out == ""


def test_what_a_machine_lost_is_decoded_again(files, tmp_path) -> None:
    cache = opened(files, tmp_path)
    expected = [cache[index][0].clone() for index in range(4)]
    content = bytearray(cache.file.read_bytes())
    content[-3 * 40 * 40 - 3 * 20 * 30 :] = bytes(3 * 40 * 40 + 3 * 20 * 30)  # of the last two
    cache.file.write_bytes(content)
    cache.file.with_suffix(".part").write_bytes(b"half")  # of a process that was killed
    again = opened(files, tmp_path)
    assert all(again[index][0].equal(expected[index]) for index in range(4))
    for part in (b"half", content[:6000]):
        cache.file.write_bytes(part)
        again = opened(files, tmp_path)
        assert all(again[index][0].equal(expected[index]) for index in range(4))


def test_a_transform_that_writes_does_not_reach_the_file(files, tmp_path) -> None:
    opened(files, tmp_path)[0]
    cache = opened(files, tmp_path)
    kept = cache[0][0].clone()
    cache[0][0].zero_()
    assert opened(files, tmp_path)[0][0].equal(kept)


def test_several_processes_fill_it_together(files, tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    sums = context.Queue()

    def read(numbers) -> None:
        cache = opened(files, tmp_path)
        sums.put([int(cache[number][0].sum()) for number in numbers])

    orders = [[0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 1, 2]]
    processes = [context.Process(target=read, args=(order,)) for order in orders]
    for process in processes:
        process.start()
    found = [sums.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    alone = CachedImages(files, tmp_path / "other", "train", 40)
    expected = [int(alone[number][0].sum()) for number in range(4)]
    assert sorted(map(sorted, found)) == [sorted(expected)] * 3


@pytest.mark.parametrize("fault", ["full", "file"])
def test_a_disk_that_does_not_take_it_is_one_line(fault, files, tmp_path, monkeypatch) -> None:
    if fault == "full":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        line = r"data\.cache: .*train_40\.pixels needs 0\.0 GiB, and 0\.0 GiB are free"
    else:
        (tmp_path / "cache").write_text("a file")
        line = r"data\.cache: .*train_40\.pixels cannot be written"
    with pytest.raises(InputError, match=line):
        opened(files, tmp_path)[0]


def test_a_damaged_image_is_one_line(files, tmp_path) -> None:
    path = Path(files.files[0][0])
    path.write_bytes(path.read_bytes()[:200])
    cache = opened(files, tmp_path)
    with pytest.raises(InputError, match=r"cannot read the image .*0\.jpg"):
        cache[0]
    assert cache[1][0].shape == (3, 64, 40)


def test_workers_read_what_the_process_reads(files, tmp_path) -> None:
    shutil.copytree(tmp_path / "data" / "train", tmp_path / "data" / "val")
    batches = []
    for workers in (2, 0, 0):  # the first fills it
        data = ImageFolder(
            str(tmp_path / "data"), image_size=35, batch_size=2, num_workers=workers, seed=3,
            cache=str(tmp_path / "cache"),
        )  # fmt: skip
        data.setup("fit")
        batches.append(list(data.train_dataloader()))
    assert (tmp_path / "cache" / "train_40.pixels").is_file()
    for other in batches[1:]:
        for (images, labels), (of_other, more) in zip(batches[0], other, strict=True):
            assert images.equal(of_other)
            assert labels.equal(more)
    assert data.fingerprint()["train"]["samples"] == 4
    assert torch.equal(data.train_images[0, 1][0], data.train_images[0, 1][0])
