"""Hugging Face data sets on disk, read by the one reader of images."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from attention_vision.classification import HuggingFaceImages
from attention_vision.data.splits import SplitShares
from attention_vision.errors import InputError
from attention_vision.training.labels import Labels

datasets = pytest.importorskip("datasets")
NAMES = ["cat", "dog", "fox"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def stored(number: int, turned: bool = False) -> dict[str, object]:
    """An image that is white on top, with its EXIF orientation."""
    image = Image.new("RGB", (8, 8), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 8, 4))
    exif = Image.Exif()
    if turned:
        image, exif[0x0112] = image.rotate(180), 3
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    return {"bytes": buffer.getvalue(), "path": f"{number}.png"}


def rows(labels: list[int], typed: bool = True):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    if not typed:
        labels = [NAMES[label] for label in labels]
        features = {
            "picture": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "class": datasets.Value("string"),
        }
    columns = [[stored(n, turned=n == 1) for n in range(len(labels))], labels]
    return datasets.Dataset.from_dict(
        dict(zip(features, columns, strict=True)), features=datasets.Features(features)
    )


def parquet(root: Path, **parts) -> Path:
    for name, part in parts.items():
        file = root / f"{name.replace('__', '/')}-00000-of-00001-0a1b.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        part.to_parquet(file)
    return root


def opened(root: Path, **more: object) -> HuggingFaceImages:
    return HuggingFaceImages(str(root), image_size=8, batch_size=2, num_workers=0, **more)


def test_parquet_files(tmp_path: Path) -> None:
    root = parquet(tmp_path / "set", data__train=rows([0, 1, 2, 1]), data__validation=rows([2, 0]))
    data = opened(root)
    assert data.class_names == tuple(NAMES)
    data.setup("fit")
    assert [label for _, label in (data.train_images[n] for n in range(4))] == [0, 1, 2, 1]
    upright, turned = (data.val_images[n][0] for n in range(2))  # as their EXIF says
    torch.testing.assert_close(upright, turned)
    assert data.val_images[0][0][:, 0].mean() > data.val_images[0][0][:, 7].mean()
    with pytest.raises(InputError, match=r"HuggingFaceImages has no test split here"):
        data.setup("test")
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (2, 3, 8, 8)
    assert labels.tolist() == [2, 0]


@pytest.mark.parametrize("name", ["train", "valid", "testing"])
def test_folders_of_splits(tmp_path: Path, name: str) -> None:
    parts = {"default__train__0000": rows([0, 1]), f"default__{name}__0001": rows([1, 1, 0])}
    found = opened(parquet(tmp_path / "set", **parts)).opened
    counts = {split: len(part) for split, part in found.items()}
    assert counts == {
        "train": {"train": 5}, "valid": {"train": 2, "val": 3}, "testing": {"train": 2, "test": 3},
    }[name]  # fmt: skip


def test_parquet_of_bytes_and_words(tmp_path: Path) -> None:
    root = parquet(tmp_path / "set", images=rows([2, 0, 2, 0, 2, 0, 2, 0], typed=False))
    data = opened(root / "images-00000-of-00001-0a1b.parquet", split=SplitShares(val=0.25))
    assert data.class_names == ("cat", "fox")
    data.setup("fit")
    assert sorted(data.train_images.targets) == [0] * 3 + [1] * 3
    assert sorted(data.val_images.targets) == [0, 1]
    assert set(data.division["val"]) <= {f"row {n}" for n in range(8)}  # wherever the file lies


def test_saved_to_disk(tmp_path: Path) -> None:
    whole = datasets.DatasetDict({"train": rows([0, 2]), "test": rows([1, -1])})
    whole.save_to_disk(tmp_path / "whole")
    data = opened(tmp_path / "whole")
    data.setup("test")
    assert data.test_images.targets == [1]
    left_out = data.findings["test"].left_out["images without a label"]
    assert left_out == [f"{tmp_path / 'whole'}, test, row 1"]
    with pytest.raises(InputError, match=r"has no val split, only train, test: hold out"):
        data.setup("validate")
    rows([0, 2]).save_to_disk(tmp_path / "one")
    assert opened(tmp_path / "one").source("train").targets == [0, 2]


def test_labels_of_trained_weights_are_kept(tmp_path: Path) -> None:
    data = opened(parquet(tmp_path / "set", validation=rows([0, 2, 1])))
    data.use_labels(Labels(("emu", "fox", "dog", "cat")))
    data.setup("validate")
    assert [label for _, label in data.val_images] == [3, 1, 2]


def test_images_that_do_not_decode(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    cells = [stored(0), {"bytes": b"no image", "path": None}, stored(2)]
    part = datasets.Dataset.from_dict({"image": cells, "label": [7, 9, 9]}, features=features)
    root = parquet(tmp_path / "set", train=part, validation=part)
    with pytest.raises(InputError, match=r"cannot read the image .*set, val, row 1: repair"):
        opened(root).source("val")[1]
    data = opened(root, on_bad_image="skip")
    assert data.source("train").targets == [0, 1]
    assert data.class_names == ("7", "9")
    assert list(data.findings["train"].broken) == [f"{root}, train, row 1"]


def several(root: Path) -> None:
    _ = opened(parquet(root, full__train=rows([0, 1]), mini__train=rows([0]))).class_names


def several_converted(root: Path) -> None:
    for name in ("full", "mini"):
        (root / name / "train").mkdir(parents=True)
        rows([0, 1]).to_parquet(root / name / "train/0000.parquet")
    _ = opened(root).class_names


def missing(root: Path) -> None:
    _ = opened(root / "nowhere").class_names


def empty(root: Path) -> None:
    _ = opened(root).class_names


def damaged(root: Path) -> None:
    (root / "train.parquet").write_bytes(b"no parquet")
    _ = opened(root).class_names


def no_label(root: Path) -> None:
    _ = opened(parquet(root, train=rows([0]).remove_columns("label"))).class_names


def no_such_column(root: Path) -> None:
    _ = opened(parquet(root, train=rows([0])), label_column="kind").class_names


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (several, r"set has several data sets, .*/full and .*/mini: set data.root to one of"),
        (several_converted, r"several data sets, .*full/train and .*mini/train: set data.root"),
        (missing, r"no folder .*nowhere: set data.root"),
        (empty, r"no parquet files in .*, and nothing that save_to_disk wrote"),
        (damaged, r"cannot read the data set "),
        (no_label, r"which column is the label\? Set data.label_column to one of image"),
        (no_such_column, r"data.label_column kind: .* has no such column; it has image, label"),
    ],
)
def test_bad_data_sets_are_one_clear_line(tmp_path: Path, bad, line: str) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match=line) as caught:
        bad(tmp_path / "set")
    assert "\n" not in str(caught.value)
