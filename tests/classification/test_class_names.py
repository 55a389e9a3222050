"""Runs of folders as people have them: what a label means, what is read, what is predicted."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from attention_vision.__main__ import main
from attention_vision.runs.load import load_run

CONFIG = {
    "task": "classification",
    "trainer": {"max_epochs": 8, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
    "data": {
        "class_path": "ImageFolder",
        "init_args": {
            "root": "data",
            "image_size": 16,
            "batch_size": 4,
            "num_workers": 0,
            "recipe": {"area": 0.9, "flip": 0.0},
        },
    },
    "model": {
        "network": {
            "class_path": "ResNet",
            "init_args": {"depth": 8, "width": 8, "stem": "cifar"},
        },
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
    },
}
COLORS = {"cat": (200, 40, 40), "dog": (40, 200, 40), "fox": (40, 40, 200)}


def draw(file: Path, kind: str, number: int) -> None:
    """A field of the kind's color, a little different in each image."""
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(-20, 20, (16, 16, 3))
    Image.fromarray((np.array(COLORS[kind]) + noise).clip(0, 255).astype(np.uint8)).save(file)


def folders(root: Path, kinds: dict[str, str], count: int = 4) -> None:
    """ROOT/{train,val}/NAME/*.png of the colors that each name has."""
    for split, first in (("train", 0), ("val", 100)):
        for name, kind in kinds.items():
            for number in range(count):
                draw(root / split / name / f"{number}.png", kind, first + number)


def run(verb: str, *words: str) -> int:
    return main(["classification", verb, *words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows its three colors; its data is gone."""
    root = tmp_path_factory.mktemp("trained")
    (root / "my.yaml").write_text(yaml.safe_dump(CONFIG))
    folders(root / "data", {name: name for name in COLORS})
    words = ("-c", str(root / "my.yaml"), "--run", str(root / "run"))
    assert run("fit", *words, "--data.root", str(root / "data")) == 0
    shutil.rmtree(root / "data")
    return root / "run"


def config_of(trained: Path) -> tuple[str, str]:
    return "-c", str(trained / "config.yaml")


def test_predict_needs_the_run_and_the_photographs_alone(trained: Path, tmp_path: Path) -> None:
    for kind in COLORS:
        draw(tmp_path / "photos" / f"{kind}.png", kind, 7)
    words = ("--data.root", "elsewhere", "--data.images", str(tmp_path / "photos"))
    assert run("predict", *config_of(trained), *words) == 0
    with (trained / "predictions.csv").open() as file:
        found = {Path(row["file"]).stem: row["class_1"] for row in csv.DictReader(file)}
    assert found == {kind: kind for kind in COLORS}
    assert load_run(trained).class_names == ("cat", "dog", "fox")


def test_data_in_another_order_is_measured_by_name(trained: Path, tmp_path: Path, capsys) -> None:
    folders(tmp_path, {"dog": "dog", "fox": "fox"})
    assert run("validate", *config_of(trained), "--data.root", str(tmp_path)) == 0
    metrics = json.loads((trained / "validate.json").read_text())["metrics"]
    assert metrics["val/top1"] == 1
    assert metrics.keys() >= {"val/top1_of/dog", "val/top1_of/fox"}
    folders(tmp_path, {"alpaca": "cat"})
    capsys.readouterr()
    for verb, more in (("validate", ()), ("fit", ("--ckpt_path", "last"))):
        assert run(verb, *config_of(trained), "--data.root", str(tmp_path), *more) == 1
        error = capsys.readouterr().err
        assert "alpaca is not among the 3 classes" in error
        assert "(cat, dog, fox)" in error


def test_a_head_is_fine_tuned_by_name(trained: Path, tmp_path: Path, capsys) -> None:
    """The names are shifted by one and a new one: what was learned goes with its name."""
    folders(tmp_path / "data", {"bat": "cat", "cat": "cat", "dog": "dog"})
    flags = {
        "run": tmp_path / "run",
        "weights": trained,
        "data.root": tmp_path / "data",
        "trainer.max_epochs": 1,
        "model.optimizer.lr": 1e-60,  # rounded to a step of nothing; 0 is refused
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    assert run("fit", *config_of(trained), *words) == 0
    assert (
        "classes of the head by name: 2 kept, 1 new ones start at zero" in capsys.readouterr().out
    )
    (old, new) = (load_run(folder).network.head for folder in (trained, tmp_path / "run"))
    assert new.weight[1:].equal(old.weight[:2])
    assert new.bias[1:].equal(old.bias[:2])
    assert not new.weight[0].any()
