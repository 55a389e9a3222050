"""Attention in fp8 by the command: it trains, and says what it costs."""

import json
from pathlib import Path

import pytest

from attention_vision.__main__ import main
from attention_vision.training.metrics_csv import MetricsCSV

EXPERIMENT = """
trainer:
  {max_epochs: 2, limit_train_batches: 16, log_every_n_steps: 16, accelerator: cpu, devices: 1}
data: {class_path: Digits, init_args: {image_size: 16, batch_size: 64}}
model:
  network:
    class_path: ViT
    init_args: {image_size: 16, patch_size: 4, width: 32, depth: 2, heads: 2}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 3.0e-3}}
"""


def table(output: str) -> dict[str, list[float]]:
    """Metric -> its value in fp8, in fused attention, and their difference."""
    lines = output.splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith("attention in"))
    assert lines[start].split()[2:] == ["fp8", "fused", "difference"]
    rows = (line.split() for line in lines[start + 1 :] if line.startswith("val/"))
    return {key: [float(number) for number in numbers] for key, *numbers in rows}


def test_a_run_in_fp8_reports_what_it_costs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("experiment.yaml").write_text(EXPERIMENT)
    fp8, run = ["--attention_backend", "fp8"], Path("run")
    assert main(["classification", "fit", "-c", "experiment.yaml", "--run", "run", *fp8]) == 0
    after_training = table(capsys.readouterr().out)
    assert set(after_training) > {"val/loss", "val/top1", "val/top1_macro", "val/top5"}
    for rounded, exact, difference in after_training.values():
        assert difference == pytest.approx(rounded - exact, abs=2e-5)
    rounded, exact, _ = after_training["val/loss"]
    assert rounded != exact  # it was computed in two ways
    assert rounded == pytest.approx(exact, rel=0.05)
    rows = MetricsCSV(str(run)).file.read_text().splitlines()
    assert len(rows) == 1 + 2  # measuring has added nothing to the curves
    losses = [float(row.split(",")[rows[0].split(",").index("val/loss")]) for row in rows[1:]]
    assert losses[1] < losses[0]  # it learns
    saved = json.loads((run / "fp8.json").read_text())
    assert saved["metrics"]["val/loss"] == pytest.approx(losses[1])

    last = ["-c", "run/config.yaml", "--ckpt_path", "last"]
    assert main(["classification", "validate", *last]) == 0
    assert table(capsys.readouterr().out) == after_training  # config.yaml says fp8
    report = json.loads((run / "validate.json").read_text())
    assert {key: report[key] for key in ("step", "metrics", "metrics_fused")} == saved

    assert main(["classification", "validate", *last, "--attention_backend", "fused"]) == 0
    assert "attention in" not in capsys.readouterr().out
    report = json.loads((run / "validate.json").read_text())
    assert report["metrics"] == saved["metrics_fused"]
    assert "metrics_fused" not in report
