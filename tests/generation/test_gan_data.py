"""A GAN's data: folders, order, balance, what is drawn; and the augmentation of both kinds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_gan import few_digits

from attention_vision.data.loading import BalancedSampler
from attention_vision.data.resident import ResidentLoader
from attention_vision.errors import InputError
from attention_vision.generation import CIFAR10Images, DiffAugment, DigitImages, FolderImages
from attention_vision.generation.gan.data import BatchesInTurn, NoiseIndices
from attention_vision.training.labels import Labels


def write(path: Path, mode: str = "RGB", size: tuple[int, int] = (20, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path)


def test_a_folder_of_classes_grey_ones_among_them(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "deep" / "1.png")
    write(tmp_path / "cat" / "2.png", "L")
    write(tmp_path / "dog" / "1.png")
    data = FolderImages(str(tmp_path), size=16, flip=0.0)
    assert (data.num_classes, data.class_names, data.size) == (2, ("cat", "dog"), 16)
    images = data.dataset("train", 0)
    assert [images[index][1] for index in range(3)] == [0, 0, 1]
    grey = images[0][0]  # 2.png comes before deep/1.png
    assert grey.shape == (3, 16, 16)
    assert grey.dtype == torch.float32
    assert -1 <= grey.min() < -0.5 < 0.5 < grey.max() <= 1
    assert torch.equal(grey[0], grey[1])

    (tmp_path / "all" / "Train").mkdir(parents=True)  # in letters of any case
    for name in ("cat", "dog"):
        (tmp_path / name).rename(tmp_path / "all" / "Train" / name)
    assert FolderImages(str(tmp_path / "all")).class_names == ("cat", "dog")


def test_a_folder_without_classes_is_unconditional(tmp_path: Path) -> None:
    write(tmp_path / "1.png")
    data = FolderImages(str(tmp_path), size=16)
    assert data.num_classes == 0
    assert data.dataset("train", 0)[0][1] == 0


def test_what_is_not_a_class_is_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(3):
            write(tmp_path / name / f"{number}.png")
        (tmp_path / "__MACOSX" / name).mkdir(parents=True)
        (tmp_path / "__MACOSX" / name / "._0.png").write_bytes(b"Mac OS X")
        (tmp_path / name / "._0.png").write_bytes(b"Mac OS X")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "beside.png")
    (tmp_path / "cat" / "notes.txt").write_text("")
    write(tmp_path / "store" / "more.png")
    (tmp_path / "dog" / "more").symlink_to(tmp_path / "store", target_is_directory=True)
    data = FolderImages(str(tmp_path), size=16)
    data.setup("fit")
    assert data.class_names == ("cat", "dog", "store")
    assert data.facts("train") == {
        "images": 8, "images of a class": {"cat": 3, "dog": 4, "store": 1},
    }  # fmt: skip
    counts = {kind: len(paths) for kind, paths in data.findings["train"].left_out.items()}
    assert counts == {
        "*.txt": 1,
        "hidden or of the system": 3,
        "beside class folders": 1,
        "folders without images": 1,
    }
    assert data.findings["train"].warnings == [
        "8 of 8 images that were looked at are smaller than data.size 16 and are enlarged, such as"
        f" {tmp_path}/cat/0.png"
    ]


def test_broken_images_are_named_or_left_out(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / "train" / "cat" / f"{number}.png")
    broken = tmp_path / "train" / "cat" / "2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    data = FolderImages(str(tmp_path), size=8, on_bad_image="skip")
    data.setup("fit")
    assert data.facts("train")["images"] == 3
    assert list(data.findings["train"].broken) == [str(broken)]
    assert len(data.dataset("train", 0)) == 3  # as the scorer opens them
    stopping = FolderImages(str(tmp_path), size=8).dataset("train", 0)
    with pytest.raises(InputError, match=r"cannot read the image .*cat/2.png"):
        [stopping[index] for index in range(4)]


def test_labels_are_those_of_the_weights(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write(tmp_path / name / "0.png")
    data = FolderImages(str(tmp_path), size=8)
    data.use_labels(Labels(("dog", "cow", "cat")))
    assert data.num_classes == 3
    assert data.dataset("train", 0).targets == [2, 0]
    write(tmp_path / "elk" / "0.png")
    data = FolderImages(str(tmp_path), size=8)
    data.use_labels(Labels(("dog", "cow", "cat")))
    with pytest.raises(InputError, match="elk is not among the 3 classes"):
        data.dataset("train", 0)
    nowhere = FolderImages("nowhere", size=8)  # predict needs no data
    nowhere.use_labels(Labels(("dog", "cow", "cat")))
    nowhere.setup("predict")
    assert next(batch[1].tolist() for batch in nowhere.predict_dataloader())[:4] == [0, 1, 2, 0]


def test_a_gan_has_no_test_split() -> None:
    with pytest.raises(InputError, match="no test split: a GAN is scored against its training"):
        DigitImages().setup("test")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: FolderImages(f"{root}/no").num_classes, "/no: set data.root to one that"),
        (lambda root: FolderImages(root).dataset("train", 0), "no images in"),
        (lambda root: CIFAR10Images(root).dataset("train", 0), "no readable data in"),
        (lambda root: DigitImages(size=0), "size is 0: it has to be"),
        (lambda root: DigitImages(flip=1.5), "flip is 1.5: it has to be"),
        (lambda root: DigitImages(count=0), "count is 0: it has to be"),
        (lambda root: DigitImages(batch_size=0), "batch_size is 0: it has to be"),
    ],
)
def test_refuses_what_is_not_there(make, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        make(str(tmp_path))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_training_images_are_mirrored_by_epoch_and_index_alone() -> None:
    images = few_digits().dataset("train", 5)
    plain = [images[index][0] for index in range(60)]
    first, again, second = ([images[e, i][0] for i in range(60)] for e in (0, 0, 1))
    mirrored = [not torch.equal(one, other) for one, other in zip(first, plain, strict=True)]
    assert 15 < sum(mirrored) < 45
    for one, other, is_mirrored in zip(first, plain, mirrored, strict=True):
        assert torch.equal(one, other.flip(-1) if is_mirrored else other)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_balanced_batches_hold_all_classes_alike() -> None:
    class Labels(list):
        targets = [0] * 80 + [1] * 15 + [2] * 5

    def order(epoch: int, processes: int = 1, rank: int = 0) -> list[int]:
        sampler = BalancedSampler(Labels(range(100)), processes, rank, seed=1)
        sampler.set_epoch(epoch)
        return sampler.order()

    whole = order(0)
    counts = np.bincount(np.array(Labels.targets)[whole[:99]].reshape(-1, 9).flatten())
    assert counts.tolist() == [33, 33, 33]
    for start in range(0, 99, 9):
        batch = [Labels.targets[index] for index in whole[start : start + 9]]
        assert sorted(batch) == [0] * 3 + [1] * 3 + [2] * 3
    large = [index for index in whole if index < 80]
    assert len(set(large)) == len(large)  # none twice while there are others
    assert whole != order(1)
    halves = order(0, 2, 0), order(0, 2, 1)
    assert [index for pair in zip(*halves, strict=True) for index in pair] == whole


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_batches_to_draw_are_the_same_at_any_number_of_processes(processes: int) -> None:
    drawn = NoiseIndices(23, 10)
    parts = [list(BatchesInTurn(drawn, processes, rank, 4)) for rank in range(processes)]
    batches = [part[place : place + 4] for part in parts for place in range(0, len(part), 4)]
    assert sorted(batches) == [list(range(start, min(start + 4, 23))) for start in range(0, 23, 4)]
    assert [drawn[index] for index in (0, 9, 10)] == [(0, 0), (9, 9), (10, 0)]


def test_diff_augment() -> None:
    images = (torch.rand(64, 3, 16, 16) * 2 - 1).requires_grad_()
    assert DiffAugment()(images) is images
    for part in ("colour", "translation", "cutout"):
        augmented = DiffAugment([part])(images)
        assert augmented.shape == images.shape
        (gradient,) = torch.autograd.grad(augmented.sum(), images)
        assert gradient.abs().sum() > 0, part
        assert not torch.equal(augmented, DiffAugment([part])(images)), part
    with pytest.raises(InputError, match="no part 'color' of DiffAugment"):
        DiffAugment(["color"])


def test_translation_moves_and_cutout_cuts() -> None:
    image = torch.zeros(200, 3, 16, 16)
    image[:, :, 8, 8] = 1.0
    moved = DiffAugment(["translation"])(image).amax(1).flatten(1).argmax(1)
    assert set((moved // 16).tolist()) == set((moved % 16).tolist()) == set(range(6, 11))
    cut = DiffAugment(["cutout"])(torch.ones(200, 3, 16, 16))
    gone = (cut == 0).sum((1, 2, 3)) // 3
    assert gone.max() == 64  # half of each side
    assert gone.min() >= 16  # the centre lies inside, so a quarter of it at least


def test_colour_keeps_what_it_should() -> None:
    grey = torch.rand(4, 1, 8, 8).expand(-1, 3, -1, -1)
    augmented = DiffAugment(["colour"])(grey)
    assert torch.allclose(augmented, augmented.mean(1, keepdim=True).expand_as(grey), atol=1e-5)


def test_images_in_memory_are_those_that_are_read(tmp_path: Path) -> None:
    """Mirrored by numbers of their own; nothing else differs."""
    for number in range(8):
        write(tmp_path / f"{number}.png", size=(20 + number, 20))
    for kind in (few_digits, lambda **options: FolderImages(str(tmp_path), size=8, **options)):
        for flip in (0.0, 0.5):
            batches = []
            for gib in (1.0, 0.0):
                data = kind(flip=flip, seed=2, batch_size=4, num_workers=0, resident_gib=gib)
                data.setup("fit")
                data.batches_per_step = 2
                loader = data.train_dataloader()
                assert isinstance(loader, ResidentLoader) == bool(gib)
                batches.append(list(loader))
            mirrored = []
            for (held, label), (read, same) in zip(*batches, strict=True):
                assert held.shape == read.shape
                assert len(label) == 8
                assert torch.equal(label, same)
                for image, other in zip(held, read, strict=True):
                    mirrored.append(not torch.equal(image, other))
                    assert not mirrored[-1] or torch.equal(image, other.flip(-1))
            assert any(mirrored) == bool(flip)
