"""Runs that version 0.1 wrote, one of each kind of module, load, validate and resume today.

old_runs/version_0_1.tar.xz holds their folders as 0.1 left them (commit b92dbc3): config.yaml,
metrics.csv, checkpoints/last.ckpt. `RESUMED` is what 0.1 itself logged for the step after resuming.
"""

import csv
import shutil
import sys
import tarfile
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from attention_vision.__main__ import main
from attention_vision.config.moved_paths import MOVED_PATHS, current_path, with_current_paths
from attention_vision.runs import load_run

CLASSES = (Path(__file__).parent / "old_runs" / "classes_0_1.txt").read_text().split()
ARCHIVE = Path(__file__).parent / "old_runs" / "version_0_1.tar.xz"
# Folder -> task, class, what is logged at a step after the resume. That of a GAN is what 0.1 logged
# at step 4; the others are of step 3, with the weights of the checkpoint: 0.1 did this step with
# the learning rate of the end of the shorter run.
RESUMED = {
    "classification": ("classification", "Classifier", {"train/loss_step": 2.347018241882324}),
    "detection": ("detection", "DETRDetector", {"train/loss_step": 17.405345916748047}),
    "gan": (
        "generation",
        "SAGAN",
        {"train/loss_discriminator": 8.2876558303833, "train/loss_generator": 2.22157883644104},
    ),
    "image_to_image": ("generation", "ImageToImage", {"train/loss_step": 0.5516617894172668}),
}


@pytest.fixture(autouse=True)
def unpacked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["attention-vision"])
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")


@pytest.mark.parametrize("folder", RESUMED)
def test_an_old_run_loads_validates_and_resumes(folder):
    task, name, expected = RESUMED[folder]
    assert type(load_run(folder, "last")).__name__ == name
    if folder != "gan":  # its judge is the run of classification beside it, see below
        assert main([task, "validate", "-c", f"{folder}/config.yaml"]) == 0
    words = [task, "fit", "-c", f"{folder}/config.yaml", "--ckpt_path", "last"]
    assert main([*words, "--trainer.max_epochs", "2"]) == 0
    with Path(folder, "metrics.csv").open(newline="") as file:
        step = "4" if folder == "gan" else "3"
        (row,) = [row for row in csv.DictReader(file) if row["step"] == step]
    assert {key: float(row[key]) for key in expected} == pytest.approx(expected, rel=1e-4)
    saved = yaml.safe_load(Path(folder, "config.yaml").read_text())
    assert saved == with_current_paths(saved)


def test_a_judge_of_before_is_found():
    shutil.rmtree("gan/checkpoints")
    assert main(["generation", "fit", "-c", "gan/config.yaml", "--run", "again"]) == 0
    with Path("again/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert any(row.get("val/score") for row in rows)


@pytest.mark.parametrize("old", MOVED_PATHS)
def test_every_moved_path_leads_somewhere(old):
    """A row of a module is checked with the module, one of a class with the class."""
    new = f"attention_vision.{MOVED_PATHS[old]}"
    module, _, name = new.rpartition(".")
    try:
        __import__(new)
    except ModuleNotFoundError:
        assert isinstance(getattr(__import__(module, fromlist=[name]), name), type)


@pytest.mark.parametrize("path", CLASSES)
def test_every_class_of_before_is_found(path):
    """All that a config of 0.1 could name: networks, data, callbacks, plugins, losses, loggers."""
    module, _, name = current_path(f"attention_vision.{path}").rpartition(".")
    assert isinstance(getattr(import_module(module), name), type)


def test_paths_move_wherever_they_stand():
    old = "attention_vision.optim.WarmupCosine"
    new = "attention_vision.training.optim.WarmupCosine"
    assert current_path(old) == new
    assert with_current_paths({"a": [{"class_path": old}], "b": old, "c": 1}) == {
        "a": [{"class_path": new}], "b": new, "c": 1,
    }  # fmt: skip
    for same in (new, "torch.optim.AdamW", "WarmupCosine", "attention_vision.optimum.X", ""):
        assert current_path(same) == same
