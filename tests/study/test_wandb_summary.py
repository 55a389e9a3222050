"""Reports in W&B: offline without a key, in the group of the study, with tables and figures."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from study_folders import write_folder

WANDB = shutil.which("wandb") or shutil.which("wandb", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(WANDB is None, reason="the wandb command is not installed")
def test_a_report_is_a_run_of_the_studys_group(tmp_path):
    folder = write_folder(tmp_path / "channel_attention")
    known = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    report = [sys.executable, "-m", "attention_vision", "study", "report", str(folder), "--wandb"]
    ended = subprocess.run(report, env=known | home, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert f"W&B: {log.parent}" in ended.stdout

    inspect = [WANDB, "leet", "inspect", str(log), "--json"]
    lines = subprocess.run(inspect, env=known | home, capture_output=True, text=True).stdout
    records = [json.loads(line) for line in lines.splitlines()]
    (start,) = (record["run"] for record in records if record["type"] == "run")
    assert start["run_group"] == "channel_attention"
    assert start["display_name"] == "channel_attention-report"

    inspect.append("--summary")
    output = subprocess.run(inspect, env=known | home, capture_output=True, text=True).stdout
    summary = json.loads(output)["summary"]
    assert summary["verdict/se > none"] == "undecided"
    assert summary["mean/se"] == pytest.approx(0.94)
    for key in ("cells", "verdicts", "page", "differences", "curves"):
        assert (log.parent / "files" / summary[f"report/{key}"]["path"]).is_file()
    assert summary["report/cells"]["nrows"] == 3
