"""The last step of a run is validated, whatever the intervals say."""

import csv
import sys
from pathlib import Path

import pytest
import torch

from attention_vision.__main__ import main

EXPERIMENT = """
threads: 1
trainer: {accelerator: cpu, devices: 1, limit_train_batches: 4, limit_val_batches: 1,
  num_sanity_val_steps: 0, log_every_n_steps: 1, max_epochs: -1}
data: {class_path: Digits, init_args: {image_size: 16, batch_size: 8}}
model:
  mixup: 0.4
  schedule: {class_path: torch.optim.lr_scheduler.ConstantLR, init_args: {factor: 1}}
  network:
    class_path: ViT
    init_args: {image_size: 16, patch_size: 8, width: 16, depth: 1, heads: 2}
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["attention-vision"])
    Path("experiment.yaml").write_text(EXPERIMENT)


def fit(run: str, flags: str) -> list[dict[str, str]]:
    """The rows of metrics.csv of a run with these flags of the trainer."""
    words = [f"--trainer.{flag}" for flag in flags.split()]
    if Path(run).exists():
        words += ["--ckpt_path", str(sorted(Path(run).glob("checkpoints/*.ckpt"))[0])]
    assert main(["classification", "fit", "-c", "experiment.yaml", "--run", run, *words]) == 0
    with open(f"{run}/metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def validated(rows: list[dict[str, str]]) -> list[int]:
    return [int(row["step"]) for row in rows if row.get("val/top1")]


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ("max_epochs=3 check_val_every_n_epoch=2", [7, 11]),
        ("max_steps=6 check_val_every_n_epoch=3", [5]),
        ("max_epochs=2 check_val_every_n_epoch=null val_check_interval=3", [2, 5, 7]),
        ("max_epochs=1 check_val_every_n_epoch=2 limit_val_batches=0", []),
    ],
)
def test_the_last_step_is_validated(flags, steps):
    assert validated(fit("run", flags)) == steps
    assert Path("run/checkpoints/best.ckpt").is_file() == bool(steps)


def test_a_run_that_its_time_ends_is_validated():
    rows = fit("run", "max_epochs=9999 max_time=00:00:00:01 check_val_every_n_epoch=9999")
    assert validated(rows) == [int(rows[-1]["step"])]


def test_a_longer_run_is_the_same_but_for_that_validation():
    """From best.ckpt, which is saved inside the validation; Lightning would count a step less."""
    interval = "check_val_every_n_epoch=4 max_steps="
    whole = fit("whole", f"{interval}12")
    assert validated(fit("run", f"{interval}6")) == [5]
    Path("run/checkpoints/last.ckpt").unlink()
    rows = fit("run", f"{interval}12")
    keys = ("epoch", "step", "train/loss_step", "train/lr")
    assert [[row[key] for key in keys] for row in rows] == [
        [row[key] for key in keys] for row in whole
    ]
    states = [
        torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("run", "whole")
    ]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
