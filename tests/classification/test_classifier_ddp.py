"""Two processes measure what one measures, and resume the mean of an epoch that was cut."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import two_processes
from PIL import Image
from tiny_run import curves
from two_processes import evaluate


def test_two_processes_equal_one(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    command = [sys.executable, two_processes.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    one = evaluate(tmp_path / "one", tmp_path / "step=4.ckpt", tmp_path / "images", devices=1)
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    classes = {f"val/top1_of/{digit}" for digit in range(10)}
    keys = {"val/loss", "val/top1", "val/top1_macro", "val/top5"} | classes
    assert one.keys() == two.keys() == keys
    for key, value in one.items():
        assert two[key] == pytest.approx(value, abs=1e-6), key
    predictions = [(tmp_path / run / "predictions.csv").read_text() for run in ("one", "two")]
    assert predictions[0] == predictions[1]
    assert len(predictions[0].splitlines()) == 1 + 5
    assert [path.name for path in (tmp_path / "two").glob("predictions*")] == ["predictions.csv"]
    confusions = [(tmp_path / run / "confusion.csv").read_text() for run in ("one", "two")]
    assert confusions[0] == confusions[1]

    (resumed,) = curves(tmp_path / "resumed")  # one step and the end of its epoch
    whole = curves(tmp_path / "whole")[-1]
    for mean in ("train/loss", "train/loss_ce", "train/penalty"):  # summed in another order
        assert float(resumed.pop(mean)) == pytest.approx(float(whole.pop(mean)), rel=1e-6), mean
    assert resumed == whole
