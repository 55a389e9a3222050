"""Results and checkpoints know the checkpoint, the code and the data that they belong to."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from attention_vision import identity
from attention_vision.__main__ import main
from attention_vision.identity import checkpoint_id, code, code_difference, data_difference

EXPERIMENT = """
task: classification
trainer: {max_epochs: 1, num_sanity_val_steps: 0, accelerator: cpu, log_every_n_steps: 1}
threads: 1
data:
  class_path: ImageFolder
  init_args: {root: data, image_size: 8, batch_size: 2, num_workers: 0}
model:
  network:
    class_path: ResNet
    init_args: {depth: 8, width: 2, stem: cifar, attention: SqueezeExcite}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with data/ and a run of one epoch."""
    place = tmp_path_factory.mktemp("trained")
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                file = place / "data" / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (label * 200, number * 9, 0)).save(file)
    (place / "experiment.yaml").write_text(EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["classification", "fit", "-c", "experiment.yaml", "--run", "run"]) == 0
    return place


@pytest.fixture
def place(trained, tmp_path, monkeypatch) -> Path:
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def command(*words: str) -> None:
    assert main(["classification", *words]) == 0


def read(name: str) -> dict:
    return json.loads(Path("run", name).read_text())


def test_a_result_names_its_checkpoint_code_and_data(place, capsys):
    command("validate", "-c", "run/config.yaml")
    first = read("validate.json")
    best = checkpoint_id("run/checkpoints/best.ckpt")
    assert (first["checkpoint_id"], first["step"]) == (best, 3)
    assert first["code"] == code()
    assert first["data"] == {
        k: v for k, v in read("data.json")["fingerprint"].items() if k != "train"
    }
    command("validate", "-c", "run/config.yaml", "--ckpt_path", "last")
    assert read("validate.json")["checkpoint_id"] == checkpoint_id("run/checkpoints/last.ckpt")
    assert "data: WARNING" not in capsys.readouterr().out

    command("fit", "-c", "run/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert read("validate.json")["checkpoint_id"] != checkpoint_id("run/checkpoints/last.ckpt")
    command("validate", "-c", "run/config.yaml", "--ckpt_path", "last")
    assert read("validate.json")["step"] == 7


def test_predictions_and_pictures_name_their_checkpoint(place):
    command("predict", "-c", "run/config.yaml", "--data.images", "data/val")
    best = checkpoint_id("run/checkpoints/best.ckpt")
    assert (read("predict.json")["checkpoint_id"], read("predict.json")["images"]) == (
        best,
        "data/val",
    )
    assert main(["explain", "run", "--count", "1"]) == 0
    command("fit", "-c", "run/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    shutil.copy("run/checkpoints/last.ckpt", "run/checkpoints/best.ckpt")
    assert main(["explain", "run", "--images", "data/val/dog", "--count", "1"]) == 0
    origin = read("explained/explain.json")
    assert {name: one["step"] for name, one in origin.items()} == {"val_00000": 3, "0": 7}


def test_a_prediction_that_fails_has_no_origin(place, capsys):
    command("predict", "-c", "run/config.yaml", "--data.images", "data/val")
    words = ["classification", "predict", "-c", "run/config.yaml", "--data.images", "nowhere"]
    assert main(words) == 1
    assert not Path("run/predict.json").exists()


def test_other_data_than_that_of_the_run_is_said(place, capsys):
    shutil.move("data/val/cat/0.png", "data/val/dog/7.png")
    command("validate", "-c", "run/config.yaml")
    line = "data: WARNING: not that of run: val has files of other names and other labels"
    assert line in capsys.readouterr().out
    assert main(["explain", "run", "--count", "1"]) == 0
    assert line in capsys.readouterr().out
    words = ["fit", "-c", "run/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    assert main(["classification", *words]) == 1
    assert "the data is not that of the checkpoint: val has files of" in capsys.readouterr().err


def test_a_measurement_with_other_arguments_than_the_training_is_said(place, capsys):
    command("validate", "-c", "run/config.yaml", "--data.batch_size", "1", "--trainer.devices", "1")
    command("validate", "-c", "experiment.yaml", "--run", "run")
    assert "WARNING: not as" not in capsys.readouterr().out
    assert "changed" not in read("validate.json")
    command("validate", "-c", "run/config.yaml", "--data.image_size", "16")
    line = "WARNING: not as run/checkpoints/best.ckpt was trained: data.image_size 8 -> 16"
    assert line in capsys.readouterr().out
    assert read("validate.json")["changed"] == {"data.image_size": "8 -> 16"}
    words = ["--data.images", "data/val", "--data.image_size", "16"]
    command("predict", "-c", "run/config.yaml", *words)
    assert read("predict.json")["changed"] == {"data.image_size": "8 -> 16"}


def test_a_checkpoint_knows_the_code_and_the_data(place, capsys, monkeypatch):
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["code"] == code()
    assert checkpoint["ImageFolder"]["fingerprint"] == read("data.json")["fingerprint"]
    newer = {**code(), "lightning": "3.0"}
    monkeypatch.setattr("attention_vision.runs.data_summary.code", lambda: newer)
    command("fit", "-c", "run/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert f"code: lightning 3.0, not {code()['lightning']} as where" in capsys.readouterr().out


def test_the_id_of_a_checkpoint_is_that_of_its_content(tmp_path):
    files = {name: tmp_path / f"{name}.ckpt" for name in ("a", "b", "c")}
    for name, file in files.items():
        torch.save({"weight": torch.ones(3), "step": 1 if name < "c" else 2}, file)
    found = {name: checkpoint_id(file) for name, file in files.items()}
    assert found["a"] == found["b"] != found["c"]
    torch.save({"weight": torch.tensor([1.0, 1.0, 1.5]), "step": 1}, files["a"])
    assert checkpoint_id(files["a"]) != found["b"]
    files["a"].rename(tmp_path / "moved.ckpt")
    assert checkpoint_id(tmp_path / "moved.ckpt") != found["b"]
    (tmp_path / "text").write_text("x")
    assert checkpoint_id(tmp_path / "text") is None
    assert checkpoint_id(tmp_path / "nothing") is None


def test_the_commit_is_that_of_the_package(tmp_path, monkeypatch):
    """A package in an ignored folder of another repository has no commit."""

    def git(*words: str) -> str:
        options = ["-c", "user.name=n", "-c", "user.email=n@n"]
        return subprocess.run(
            ["git", *options, "-C", tmp_path, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    package = tmp_path / "env/package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(identity, "__file__", str(package / "identity.py"))
    assert identity.commit() is None
    git("init", "-q")
    (tmp_path / ".gitignore").write_text("env\n")
    git("add", ".gitignore")
    git("commit", "-qm", "the user's own")
    assert identity.commit() is None
    git("add", "-f", "env")
    git("commit", "-qm", "the package")
    head = git("rev-parse", "HEAD")
    assert identity.commit() == head
    (package / "__init__.py").write_text("changed = True\n")
    assert identity.commit() == f"{head}-dirty"


def test_differences_in_words():
    there = {"torch": "2.1", "commit": "a" * 40, "python": "3.11"}
    here = {"torch": "2.2", "commit": "b" * 40 + "-dirty", "python": "3.11"}
    words = "torch 2.1, not 2.2; commit aaaaaaaaaa, not bbbbbbbbbb-dirty"
    assert code_difference(there, here) == words
    assert code_difference({}, here) == code_difference(here, {}) == ""
    assert data_difference({"train": {"samples": 1}, "test": {}}, {"val": {"samples": 2}}) == ""
    assert data_difference({"train": "damaged"}, {"train": {"samples": 2}}) == ""
