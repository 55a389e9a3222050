"""Loaders, recipes and the one clear line for each kind of bad data."""

import re
import struct
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from PIL import Image

from attention_vision.classification import (
    CIFAR10,
    CIFAR100,
    CIFARAugmentation,
    ClassificationData,
    Digits,
    FashionMNIST,
    ImageFolder,
    ImageNet,
    ImageNetAugmentation,
)
from attention_vision.classification.data import EpochSampler, RepeatedSampler
from attention_vision.config.parser import ArgumentParser, parse_words
from attention_vision.detection.data import GroupedSampler
from attention_vision.errors import ConfigError, InputError, one_line
from attention_vision.training.steps import mix

STRONG = CIFARAugmentation(
    padding=2, rotation=10.0, shift=0.1, zoom=0.1, randaugment=2, erasing=0.5
)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, four training and two validation images each; one of them grey."""
    for number in range(4):
        for name in ("cat", "dog"):
            picture(tmp_path / "train" / name / f"{number}.png", number)
            if number < 2:
                picture(tmp_path / "val" / name / f"{number}.png", number, mode="L")
    return tmp_path


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """Fashion-MNIST's four files with 30 training and 11 test images."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 11)):
        images = np.arange(count * 784).astype(np.uint8)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = struct.pack(">II", 2049, count)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return tmp_path


def epoch(data: ClassificationData, number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return [tuple(batch) for batch in loader]


def test_order_and_augmentation_do_not_depend_on_workers_or_the_global_stream() -> None:
    runs = []
    for num_workers in (0, 2):
        data = Digits(STRONG, 16, batch_size=500, num_workers=num_workers, seed=5, resident_gib=0.0)
        data.setup("fit")
        torch.manual_seed(num_workers)
        runs.append([*epoch(data, 0), *epoch(data, 1)])
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert not torch.equal(runs[0][0][1], runs[0][2][1])  # another order in the next epoch


@pytest.mark.parametrize(("saved", "resumed"), [(0, 1), (1, 0), (2, 1)])
def test_another_number_of_workers_is_refused_inside_an_epoch(saved: int, resumed: int) -> None:
    loaders = []
    for num_workers in (saved, resumed):
        data = Digits(image_size=8, batch_size=500, num_workers=num_workers, resident_gib=0.0)
        data.setup("fit")
        loaders.append(data.train_dataloader())
    next(iter(loaders[0]))
    with pytest.raises(InputError, match=f"with data.num_workers {saved}, not {resumed}"):
        loaders[1].load_state_dict(loaders[0].state_dict())


def test_each_image_has_a_stream_of_its_own() -> None:
    images = []
    for seed in (0, 1):
        data = Digits(STRONG, image_size=16, seed=seed)
        data.setup("fit")
        before = torch.get_rng_state()
        images += [data.train_images[(number, 7)][0] for number in (0, 1)]
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(data.train_images[(1, 7)][0], images[-1])
    assert all(not torch.equal(a, b) for a, b in combinations(images, 2))


def of_deit(images: int, replicas: int, rank: int, seed: int, repeats: int = 3) -> list[int]:
    """Images of a process as facebookresearch/deit, samplers.py, draws them; counted by hand."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(images, generator=generator).repeat_interleave(repeats)
    return order[rank::replicas][: images // 256 * 256 // replicas].tolist()


@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_repeated_augmentation_draws_as_deit(replicas: int) -> None:
    """As many samples as images, down to a multiple of 256; of a third of them, three each."""
    parts = [RepeatedSampler(range(1442), replicas, rank, 7, 3) for rank in range(replicas)]
    for epoch in (0, 4):
        drawn = []
        for rank, part in enumerate(parts):
            part.set_epoch(epoch)
            samples = list(part)
            assert len(samples) == len(part) == 1280 // replicas
            assert {number for number, _ in samples} == {epoch}
            images = [sample // 3 for _, sample in samples]
            assert images == of_deit(1442, replicas, rank, mix(7, epoch))
            drawn += [sample for _, sample in samples]
        assert len(set(drawn)) == len(drawn)
        times = Counter(sample // 3 for sample in drawn)
        assert 427 <= len(times) <= 429
        assert sum(count == 3 for count in times.values()) >= 425


def test_repeats_of_an_image_are_augmented_each_in_its_own_way() -> None:
    data = Digits(STRONG, image_size=16, batch_size=12, repeats=3, seed=1)
    data.setup("fit")
    images, labels = epoch(data, 0)[0]
    for first in range(0, 12, 3):
        assert len(set(labels[first : first + 3].tolist())) == 1
        assert all(not torch.equal(a, b) for a, b in combinations(images[first : first + 3], 2))
    plain = Digits(image_size=16, batch_size=12, repeats=3)
    assert plain.num_classes == 10
    plain.setup("validate")
    assert len(plain.val_images) == 355  # evaluation takes each once
    assert int(plain.val_images[354][1]) == int(plain.val_images.source.targets[354])


def test_a_place_among_repeats_is_resumed() -> None:
    whole = RepeatedSampler(range(600), 2, 1, seed=0, repeats=3)
    whole.set_epoch(2)
    samples, place = [], None
    for number, sample in enumerate(whole):
        samples.append(sample)
        if number == 9:
            place = whole.state_dict()
    resumed = RepeatedSampler(range(600), 2, 1, seed=0, repeats=3)
    resumed.load_state_dict(place)
    resumed.set_epoch(2)
    assert list(resumed) == samples[10:]


@pytest.mark.parametrize(
    "kind",
    [
        EpochSampler,
        partial(RepeatedSampler, repeats=3),
        partial(GroupedSampler, groups=[0, 1] * 150, batch_size=4),
    ],
)
def test_every_seed_and_epoch_has_an_order_of_its_own(kind: Callable) -> None:
    """A sum of both would give five seeds of 60 epochs 64 orders."""
    samplers = [kind(range(300), 1, 0, seed) for seed in range(5)]
    orders = set()
    for sampler, number in product(samplers, range(60)):
        sampler.set_epoch(number)
        orders.add(tuple(sampler.order()))
    assert len(orders) == 300


def test_processes_share_an_epoch_without_overlap() -> None:
    parts = [list(EpochSampler(range(101), 2, rank, seed=0)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [50, 50]
    assert len({index for part in parts for _, index in part}) == 100


def test_evaluation_counts_every_image_once() -> None:
    parts = [
        list(UnrepeatedDistributedSampler(range(101), 2, rank, shuffle=False)) for rank in (0, 1)
    ]
    assert sorted(parts[0] + parts[1]) == list(range(101))


@pytest.mark.parametrize(
    "recipe", [ImageNetAugmentation(randaugment=2, erasing=1.0), ImageNetAugmentation(area=0.5)]
)
def test_image_folder(folder: Path, recipe: ImageNetAugmentation) -> None:
    data = ImageFolder(str(folder), recipe, image_size=24, batch_size=4, num_workers=0)
    assert data.class_names == ("cat", "dog")
    assert data.num_classes == 2
    data.setup("fit")
    for loader, count in ((data.train_dataloader(), 2), (data.val_dataloader(), 1)):
        batches = list(loader)
        assert len(batches) == count
        for images, labels in batches:
            assert images.shape == (4, 3, 24, 24)
            assert images.dtype == torch.float32
            assert labels.dtype == torch.int64


def test_fashion_mnist_is_normalised_rgb(fashion: Path) -> None:
    data = FashionMNIST(str(fashion), batch_size=8, num_workers=0)
    data.setup("fit")
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (8, 3, 28, 28)
    assert labels.tolist() == list(range(8))
    expected = (torch.arange(784).remainder(256).reshape(28, 28) / 255 - 0.2860) / 0.3530
    torch.testing.assert_close(images[0], expected.expand(3, 28, 28))
    data = FashionMNIST(str(fashion), image_size=32, batch_size=8, num_workers=0)
    data.setup("fit")
    assert next(iter(data.train_dataloader()))[0].shape == (8, 3, 32, 32)


def test_the_first_images_of_each_class(fashion: Path) -> None:
    few = FashionMNIST(str(fashion), num_workers=0, per_class=2)
    source = few.source("train")
    assert sorted(source.targets) == sorted([*range(10)] * 2)
    whole = FashionMNIST(str(fashion), num_workers=0).source("train")
    assert all(torch.equal(source[i][0], whole[i][0]) for i in range(20))  # labels go round
    assert len(few.source("val")) == 11
    with pytest.raises(InputError, match="per_class is 0: it has to be"):
        FashionMNIST(str(fashion), per_class=0)


def test_a_torchvision_set_from_folders_of_its_classes(tmp_path: Path) -> None:
    for split, count in (("train", 2), ("test", 1)):
        for name in CIFAR10.class_names:
            for number in range(count):
                picture(tmp_path / split / name / f"{number}.png", number, size=(32, 32))
    data = CIFAR10(str(tmp_path), batch_size=10, num_workers=0)
    data.setup("fit")
    images, labels = next(iter(data.val_dataloader()))
    assert labels.tolist() == list(range(10))
    pixels = np.asarray(Image.open(tmp_path / "test/cat/0.png"))
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (data.mean, data.std))
    torch.testing.assert_close(images[3], (torch.tensor(pixels).movedim(-1, 0) / 255 - mean) / std)
    assert len(CIFAR10(str(tmp_path)).source("train")) == 20
    assert len(CIFAR10(str(tmp_path), per_class=1).source("train")) == 10
    (tmp_path / "train/cat").rename(tmp_path / "train/kitten")
    wrong = r"does not have the 10 classes of CIFAR10 .*: 'cat' is in"
    with pytest.raises(InputError, match=wrong):
        data.source("train")


def test_the_first_scans_of_each_digit() -> None:
    few, whole = Digits(image_size=8, per_class=3), Digits(image_size=8)
    source, scans = few.source("train"), whole.source("train")
    assert sorted(source.targets) == sorted([*range(10)] * 3)
    for digit in range(10):
        mine, theirs = (
            torch.stack([one[i][0] for i, label in enumerate(one.targets) if label == digit])
            for one in (source, scans)
        )
        assert torch.equal(mine, theirs[:3])
    assert len(few.source("val")) == len(whole.source("val"))
    with pytest.raises(InputError, match="per_class is 0: it has to be"):
        Digits(per_class=0)


@pytest.mark.parametrize("data", [Digits, CIFAR10, CIFAR100, FashionMNIST, ImageNet])
def test_classes_are_known_before_there_is_data(data: type[ClassificationData]) -> None:
    built = data() if data is Digits else data("nowhere")
    assert built.num_classes == {CIFAR100: 100, ImageNet: 1000}.get(data, 10)
    assert len(set(built.class_names)) == built.num_classes


def test_predict_reads_every_image_below_a_folder(tmp_path: Path) -> None:
    picture(tmp_path / "b.JPG")
    picture(tmp_path / "deep" / "er" / "a.png", mode="L")
    (tmp_path / "notes.txt").write_text("no image")
    data = Digits(image_size=16, images=str(tmp_path))
    data.setup("predict")
    images, paths = next(iter(data.predict_dataloader()))
    assert images.shape == (2, 3, 16, 16)
    assert list(paths) == [str(tmp_path / "b.JPG"), str(tmp_path / "deep" / "er" / "a.png")]


def missing_root(folder: Path) -> None:
    ImageFolder(str(folder / "nowhere")).setup("fit")


def missing_cifar(folder: Path) -> None:
    CIFAR10(str(folder / "nowhere")).setup("fit")


def missing_fashion(folder: Path) -> None:
    FashionMNIST(str(folder / "nowhere")).setup("fit")


def missing_imagenet(folder: Path) -> None:
    ImageNet(str(folder / "nowhere")).setup("fit")


def part_of_imagenet(folder: Path) -> None:
    ImageNet(str(folder)).setup("fit")


def imagenet_of_words(folder: Path) -> None:
    words = ImageNet(str(folder))
    names = tuple(sorted(f"word {number}" for number in range(1000)))
    words._folders = lambda _: names
    words.setup("validate")


def unknown_class(folder: Path) -> None:
    picture(folder / "val" / "emu" / "0.png")
    ImageFolder(str(folder)).setup("fit")


def empty_val(folder: Path) -> None:
    for path in (folder / "val").rglob("*.png"):
        path.unlink()
    ImageFolder(str(folder)).setup("validate")


def unreadable(folder: Path, num_workers: int = 0) -> None:
    (folder / "train" / "cat" / "1.png").write_bytes(b"no png")
    data = ImageFolder(str(folder), image_size=8, batch_size=8, num_workers=num_workers)
    data.setup("fit")
    list(data.train_dataloader())


def unreadable_in_worker(folder: Path) -> None:
    unreadable(folder, num_workers=1)


def truncated(folder: Path) -> None:
    file = folder / "train" / "cat" / "1.png"
    file.write_bytes(file.read_bytes()[:900])
    unreadable_file = ImageFolder(str(folder), image_size=8, batch_size=8, num_workers=0)
    unreadable_file.setup("fit")
    list(unreadable_file.train_dataloader())


def label_out_of_range(folder: Path) -> None:
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels = struct.pack(">IIII", 2051, 3, 28, 28) + bytes(3 * 784)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(pixels)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 2049, 3) + bytes([1, 2, 12])
        )
    FashionMNIST(str(folder)).setup("fit")


def large_batch(folder: Path) -> None:
    data = ImageFolder(str(folder), batch_size=9)
    data.setup("fit")
    data.train_dataloader()


def few_to_repeat(folder: Path) -> None:
    data = ImageFolder(str(folder), repeats=3, batch_size=2)
    data.setup("fit")
    data.train_dataloader()


def nothing_to_predict(folder: Path) -> None:
    Digits(images=str(folder / "nowhere")).setup("predict")


def no_images_to_predict(folder: Path) -> None:
    (folder / "empty").mkdir()
    Digits(images=str(folder / "empty")).setup("predict")


def predict_without_folder(folder: Path) -> None:
    Digits().setup("predict")


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (missing_root, r"no class folders in .*nowhere/train: set data.root"),
        (missing_cifar, r"CIFAR10: no readable data in .*nowhere; set data.root"),
        (missing_fashion, r"FashionMNIST: no readable data in .*nowhere; set data.root"),
        (missing_imagenet, r"no class folders in .*nowhere/train"),
        (part_of_imagenet, r"train has 2 class folders, not the 1,000 of ImageNet"),
        (imagenet_of_words, r"val/word 0 is not named as n01440764"),
        (unknown_class, r"val/emu: train has no class emu"),
        (empty_val, r"no images in the class folders of .*val, such as cat"),
        (unreadable, r"cannot read the image .*cat/1.png: repair or remove it"),
        (unreadable_in_worker, r"cannot read the image .*cat/1.png: repair or remove it"),
        (truncated, r"cannot read the image .*cat/1.png: repair or remove it"),
        (label_out_of_range, r"FashionMNIST: label 12 of train image 2 is outside 0..9"),
        (large_batch, r"batch_size 9 is larger than the 8 training images"),
        (few_to_repeat, r"data.repeats 3: an epoch is a multiple of 256 images, and there are 8"),
        (nothing_to_predict, r"no folder .*nowhere: set data.images"),
        (no_images_to_predict, r"no images in .*empty: it has no files"),
        (predict_without_folder, r"nothing to predict: set data.images"),
    ],
)
def test_bad_data_is_one_clear_line(folder: Path, bad, line: str) -> None:
    with pytest.raises(InputError) as caught:
        bad(folder)
    message = one_line(caught.value)
    assert re.search(line, message)
    assert "\n" not in message


def test_folders_without_images_and_hidden_files_are_no_classes(folder: Path) -> None:
    (folder / "train" / "emu").mkdir()
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    picture(folder / "train" / ".ipynb_checkpoints" / "0.png")
    picture(folder / "train" / "__MACOSX" / "cat" / "0.png")
    (folder / "train" / "cat" / "._1.png").write_bytes(b"a companion")
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    data = ImageFolder(str(folder))
    data.setup("fit")
    assert data.class_names == ("cat", "dog")
    assert len(data.train_images) == 8
    left_out = data.findings["train"].left_out
    assert {kind: len(paths) for kind, paths in left_out.items()} == {
        "hidden or of the system": 3,
        "*.txt": 1,
        "folders without images": 1,
    }


def test_class_folders_as_cameras_and_archives_leave_them(tmp_path: Path) -> None:
    """16 bits and 8, EXIF, links and any ending: the network sees the same picture."""
    levels = np.linspace(0, 255, 64).reshape(8, 8).round()
    for split in ("train", "val"):
        (tmp_path / split / "scan").mkdir(parents=True)
    (tmp_path / "store").mkdir()
    (tmp_path / "train" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "val" / "scan" / "more").symlink_to(tmp_path / "store")
    plain = Image.fromarray(levels.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    plain.save(tmp_path / "store" / "a.BMP")
    plain.convert("RGB").save(tmp_path / "store" / "b.gif")
    Image.fromarray((levels * 257).astype(np.uint16)).save(tmp_path / "store" / "c.png")
    plain.rotate(90).save(tmp_path / "store" / "d.tiff", exif=exif)
    plain.save(tmp_path / "train" / "scan" / "e.webp", lossless=True)
    (tmp_path / "train" / "scan" / "f.heic").write_bytes(b"of a phone")
    recipe = CIFARAugmentation()
    data = ImageFolder(str(tmp_path), recipe, image_size=8, batch_size=2, num_workers=0)
    assert data.class_names == ("linked", "scan")
    data.setup("fit")
    assert [label for _, label in data.val_images] == [1] * 4
    assert len(data.train_images) == 5
    first = data.val_images[0][0]
    for image, _ in data.val_images:
        torch.testing.assert_close(image, first, atol=0.05, rtol=0)
    assert any(kind.startswith("*.heic") for kind in data.findings["train"].left_out)


RECIPES = {
    "{area: 0.9}": (ImageNetAugmentation(area=0.9), None),
    "{flip: 0.2}": (ImageNetAugmentation(flip=0.2), CIFARAugmentation(flip=0.2)),
    "{padding: 2}": (None, CIFARAugmentation(padding=2)),
    "{class_path: CIFARAugmentation, init_args: {padding: 1}}": (CIFARAugmentation(padding=1),) * 2,
    "{class_path: ImageNetAugmentation, init_args: {flip: 0}}": (ImageNetAugmentation(flip=0.0),)
    * 2,
    "CIFARAugmentation": (CIFARAugmentation(),) * 2,
    "{class_path: SmallImages}": (CIFARAugmentation(),) * 2,  # its name in 0.1
}


@pytest.mark.parametrize("text", RECIPES)
@pytest.mark.parametrize("place", [0, 1], ids=["ImageFolder", "CIFAR10"])
def test_any_recipe_goes_with_any_data(text: str, place: int) -> None:
    expected = RECIPES[text][place]
    words = [f"--data={('ImageFolder', 'CIFAR10')[place]}", "--data.root=nowhere"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ClassificationData, "data")
    words.append(f"--data.recipe={text}")
    parse = partial(parse_words, parser, words, {"data": ClassificationData})
    if expected is None:
        with pytest.raises(ConfigError, match=r"there is no key data.recipe.(area|padding)"):
            parse()
        return
    config = parse()
    assert parser.instantiate(config).data.recipe == expected
    again = parser.parse_string(parser.dump(config))
    assert parser.instantiate(again).data.recipe == expected


def test_other_layouts_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "voc" / "JPEGImages" / "0.png")
    (tmp_path / "voc" / "Annotations").mkdir()
    xml = "<annotation><filename>0.png</filename><object><name>cat</name></object></annotation>"
    (tmp_path / "voc" / "Annotations" / "0.xml").write_text(xml)
    with pytest.raises(InputError, match=r"looks like Pascal VOC: use data.class_path VOCFolder"):
        ImageFolder(str(tmp_path / "voc")).setup("fit")


def test_names_of_folders_may_be_capitals_and_stray_images_are_counted(folder: Path) -> None:
    (folder / "train").rename(folder / "Train")
    (folder / "val").rename(folder / "Validation")
    picture(folder / "Train" / "stray.png")
    (folder / "Train" / "cat").rename(folder / "Train" / "dog-like")  # sorts before dog/ in paths
    (folder / "Validation" / "cat").rename(folder / "Validation" / "dog-like")
    data = ImageFolder(str(folder))
    data.setup("fit")
    assert data.class_names == ("dog", "dog-like")
    assert data.train_images.targets == [0] * 4 + [1] * 4
    left_out = data.findings["train"].left_out
    assert left_out == {"images beside the class folders": [str(folder / "Train" / "stray.png")]}
