"""`attention-vision data`, and what a run says of the data that it read."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from attention_vision.__main__ import main
from attention_vision.classification import Classifier, ImageFolder
from attention_vision.classification.batch_picture import title
from attention_vision.classification.module import mixing
from attention_vision.data.batch_picture import BatchPicture
from attention_vision.data.duplicates import shared_images
from attention_vision.runs import data_summary
from attention_vision.runs.data_summary import DataSummary, in_time, in_words, summarize
from attention_vision.runs.starter import batch_size, mask_classes

FAST = [
    "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "1",
    "--trainer.accelerator", "cpu", "--data.num_workers", "0", "--threads", "1",
]  # fmt: skip


def draw(file: Path, seed: int, size: tuple[int, int] = (40, 32)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*reversed(size), 3), np.uint8)
    Image.fromarray(pixels).save(file)


def class_folders(root: Path, count: int = 8) -> None:
    for number, name in enumerate(("cats", "dogs")):
        for n in range(count):
            draw(root / name / f"{n}.png", 100 * number + n)


def test_folder_leads_to_an_experiment_that_trains(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    class_folders(Path("photos"))
    Path("photos/cats/.DS_Store").write_text("")
    Path("photos/cats/notes.txt").write_text("")
    assert main(["data", "photos", "-o", "mine.yaml"]) == 0
    said = capsys.readouterr().out
    assert "photos: folders of classes" in said
    assert re.search(r"classes: cats +6 +2\nclasses: dogs +6 +2\n", said)  # 0.2 held out
    assert "left out: *.txt" in said
    assert "attention-vision classification fit -c mine.yaml" in said
    config = yaml.safe_load(Path("mine.yaml").read_text())
    assert config["data"]["init_args"] == {
        "root": "photos", "split": {"val": 0.2}, "image_size": 32, "batch_size": 2,
        "num_workers": 2, "recipe": {"class_path": "CIFARAugmentation"},
    }  # fmt: skip

    assert main(["classification", "fit", "-c", "mine.yaml", "--run", "run", *FAST]) == 0
    said = capsys.readouterr().out
    assert "classes: cats" in said
    assert "CIFARAugmentation: padding 4, flip 0.5" in said
    assert "6 steps of 6 an epoch" in said
    summary = json.loads(Path("run/data.json").read_text())
    assert summary["splits"]["train"]["classes"] == {"cats": 6, "dogs": 6}
    assert summary["splits"]["val"] == {
        "images": 4, "classes": {"cats": 2, "dogs": 2}, "image size": "40x32",
    }  # fmt: skip
    assert summary["left_out"]["train"] == {"hidden or of the system": 1, "*.txt": 1}
    assert summary["steps"] == 6
    assert any("6 steps in all are few" in line for line in summary["warnings"])
    with Image.open("run/pictures/train_batch_000000.png") as picture:
        assert picture.width > 300


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["missing"], "missing: there is no such folder or file"),
        (["photos", "-o", "there.yaml"], "-o there.yaml exists: remove it or name another file"),
        (["photos", "--class", "Photos"], "--class Photos: folders of classes is read by"
         " ImageFolder, FolderImages"),
        (["nothing"], "nothing: no data that is known here; see attention-vision data --help"),
        (["packed"], "packed is an archive: unpack a.zip first"),
        ([], "data: the following arguments are required: PATH; see attention-vision data --help"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(words, line, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    class_folders(Path("photos"), 1)
    Path("there.yaml").write_text("")
    Path("nothing").mkdir()
    Path("packed").mkdir()
    Path("packed/a.zip").write_text("")
    assert main(["data", *words]) in (1, 2)
    assert capsys.readouterr().err == f"attention-vision: error: {line}\n"


def test_the_first_experiment_of_a_gan_says_how_to_draw_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    class_folders(Path("photos"), 2)
    assert main(["data", "photos", "--class", "FolderImages", "-o", "gan.yaml"]) == 0
    assert "predict -c RUN/config.yaml --data.count 16\n" in Path("gan.yaml").read_text()


def data_of(root: Path, **options) -> ImageFolder:
    data = ImageFolder(str(root), image_size=32, num_workers=0, batch_size=2, **options)
    data.setup("fit")
    return data


def test_warnings_where_the_data_smell(tmp_path):
    class_folders(tmp_path / "train", 1)
    for n in range(1, 12):
        draw(tmp_path / f"train/dogs/{n}.png", n, (16, 16))
    class_folders(tmp_path / "val", 1)
    shutil.copy(tmp_path / "train/dogs/3.png", tmp_path / "val/dogs/other.png")
    draw(tmp_path / "val/cats/0.png", 77)
    draw(tmp_path / "val/dogs/0.png", 78)
    for n, white in enumerate((4095, 65535)):
        Image.fromarray(np.full((16, 16), white, np.uint16)).save(
            tmp_path / f"train/dogs/deep_{n}.png"
        )
    said = summarize(data_of(tmp_path)).warnings
    assert [line.split(":")[0] for line in said] == [
        f"1 images are in two splits, such as {tmp_path / 'train/dogs/3.png'} and"
        f" {tmp_path / 'val/dogs/other.png'}",
        "93% of the training images are dogs",
        "half of the images are at most 16 pixels wide or high, and are enlarged to 32",
        "gray images of more than 8 bits differ in their range",
    ]
    assert "data.image_size 16 and data.recipe.class_path CIFARAugmentation" in said[2]
    assert "4095 and 65535" in said[3]


def test_sound_data_are_not_warned_of(tmp_path):
    for split in ("train", "val"):
        for number, name in enumerate(("cats", "dogs")):
            draw(tmp_path / split / name / "0.png", number + (split == "val") * 2)
    assert summarize(data_of(tmp_path)).warnings == []


def test_shared_images_are_found_by_content_alone(tmp_path):
    content = {"a": b"x" * 9000, "b": b"x" * 8999 + b"y", "c": b"x" * 9000, "d": b"z" * 3}
    for name, text in content.items():
        (tmp_path / name).write_bytes(text)
    a, b, c, d = (str(tmp_path / name) for name in content)
    assert shared_images({"train": [a, b], "val": [c, d]}) == [(a, c)]
    assert shared_images({"train": [a, c], "val": [b, d]}) == []
    assert shared_images({"train": [a], "val": [a]}) == [(a, a)]
    assert shared_images({"train": [a, "missing"], "val": ["missing"]}) == []


def test_files_of_other_sizes_are_not_opened(tmp_path, monkeypatch):
    for n in range(20):
        (tmp_path / str(n)).write_bytes(b"x" * n)
    files = [str(tmp_path / str(n)) for n in range(20)]
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("opened"))
    assert shared_images({"train": files[:10], "val": files[10:]}) == []


def test_mixed_batch_is_named_by_its_shares():
    names = ["cat", "dog", "n0123456789_a_name_that_is_too_long"]
    assert title(torch.tensor(1), names) == "dog"
    assert title(torch.tensor(1), []) == "1"
    assert title(torch.tensor([0.3, 0.7, 0.0]), names) == "0.7 dog\n0.3 cat"
    assert title(torch.tensor([0.01, 0.0, 0.99]), names) == "1.0 n0123456789_a_name_that_is_t"


def test_batch_picture_leaves_the_run_as_it_is(tmp_path, monkeypatch):
    class_folders(tmp_path / "photos")
    config = tmp_path / "mine.yaml"
    assert main(["data", str(tmp_path / "photos"), "-o", str(config)]) == 0
    words = ["classification", "fit", "-c", str(config), "--model.mixup", "0.4", *FAST]
    states = []
    for name in ("with", "without"):
        assert main([*words, "--run", str(tmp_path / name)]) == 0
        drawn = (tmp_path / name / "pictures/train_batch_000000.png").exists()
        assert drawn == (name == "with")
        state = torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)
        states.append(state["state_dict"])
        monkeypatch.setattr(BatchPicture, "on_train_batch_start", lambda *_: None)
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_batch_augmentation_is_listed():
    module = Classifier.__new__(Classifier)
    torch.nn.Module.__init__(module)
    module.mix, module.mix_epochs = mixing(0.2, 1.0, 3), 10
    assert module.batch_augmentation() == [
        "MixUp: alpha 0.2, in the first 10 epochs", "CutMix: alpha 1.0, in the first 10 epochs",
    ]  # fmt: skip
    module.mix, module.mix_epochs = mixing(0.0, 0.0, 3), None
    assert module.batch_augmentation() == []


def test_words_of_the_table():
    many = {f"class_{n}": n for n in range(20)}
    lines = data_summary.table(DataSummary("", {"train": {"classes": many}})).splitlines()
    assert lines[-2].split() == ["classes:", "class_11", "11"]
    assert lines[-1].split() == ["classes:", "more", "8"]
    assert in_words(12345) == "12,345"
    assert [in_time(s) for s in (45, 600, 9000)] == ["45 s", "10 min", "2.5 h"]
    assert data_summary.table(DataSummary("Digits")) == "data"


def test_levels_of_masks_become_classes(tmp_path):
    for name, levels in (("binary", (0, 255)), ("numbers", (0, 1, 2)), ("noise", range(40))):
        (tmp_path / name).mkdir()
        mask = np.resize(np.array(levels, np.uint8), (8, 8))
        Image.fromarray(mask).save(tmp_path / name / "0.png")
    assert mask_classes(tmp_path / "binary", {}) == {}
    assert mask_classes(tmp_path / "numbers", {}) == {
        "class_names": ["background", "level_1", "level_2"], "values": [0, 1, 2],
    }  # fmt: skip
    assert mask_classes(tmp_path / "noise", {}) == {}
    (tmp_path / "objects").mkdir()
    for count in (2, 3, 4):
        mask = np.resize(np.arange(count, dtype=np.uint8), (8, 8))
        Image.fromarray(mask).save(tmp_path / f"objects/{count}_mask.png")
    Image.fromarray(mask + 100).save(tmp_path / "objects/4.png")
    assert mask_classes(tmp_path / "objects", {"mask_pattern": "{name}_mask.png"}) == {
        "values": [0, "rest"],
    }  # fmt: skip


def test_no_patch_of_a_first_experiment_is_larger_than_an_image(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, size in enumerate([(96, 80), (50, 70), *[(100, 100)] * 5]):
        draw(Path(f"set/images/{number}.png"), number, size)
        mask = Path(f"set/masks/{number}.png")
        mask.parent.mkdir(exist_ok=True)
        Image.fromarray(np.tri(*reversed(size), dtype=np.uint8) * 255).save(mask)
    assert main(["data", "set", "-o", "mine.yaml"]) == 0, capsys.readouterr().err
    assert yaml.safe_load(Path("mine.yaml").read_text())["data"]["init_args"]["size"] == 48


def test_batches_fit_the_number_of_images():
    assert [batch_size(count, 64) for count in (3, 40, 200, 10**6)] == [2, 4, 16, 64]


def test_many_files_are_summarized_at_little_cost(tmp_path):
    """Headers of a sample alone are read: as fast for many files as for few."""
    reads = []
    folder = tmp_path / "train" / "cats"
    draw(folder / "0.png", 0)
    for n in range(1, 3000):
        os.link(folder / "0.png", folder / f"{n}.png")
    draw(tmp_path / "train/dogs/0.png", 1)
    draw(tmp_path / "val/dogs/0.png", 2, (24, 20))
    data = data_of(tmp_path)
    opened = Image.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "open", lambda *a, **k: reads.append(a) or opened(*a, **k))
        summary = summarize(data)
    assert summary.splits["train"]["images"] == 3001
    assert len(reads) <= 3 * data_summary.HEADERS
