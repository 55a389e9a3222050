"""Studies of earlier versions: `before_0_2` was written by version 0.1.

A study folder outlives the code: its keys, file names and hashes stay readable.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest

from attention_vision.__main__ import main
from attention_vision.report.results import read_study
from attention_vision.study.definition import read_definition
from attention_vision.study.folder import check_same_study, read_result, runs_of

BEFORE = Path(__file__).with_name("before_0_2")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy without the study file, which a study folder does not contain."""
    folder = tmp_path / "channel_attention"
    folder.mkdir()
    shutil.copy(BEFORE / "study.json", folder)
    shutil.copytree(BEFORE / "cells", folder / "cells")
    return folder


def test_it_was_written_before():
    assert (
        json.loads((BEFORE / "study.json").read_text())["versions"]["attention_vision"] == "0.1.0"
    )
    assert sum(file.stat().st_size for file in BEFORE.rglob("*") if file.is_file()) < 60_000


def test_it_is_reported(folder, capsys):
    assert main(["study", "report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "se > none   +0.000 [-0.794, +0.794]   1.000" in printed
    assert "undecided: the interval spans zero" in printed  # no plan was recorded then
    none, se = csv.DictReader((folder / "report.csv").open())
    expected = {
        "none": {0: 0.0625, 1: 0.125},
        "se": {0: 0.125, 1: 0.0625},
    }
    study = read_study(folder)
    assert {cell: study.values(cell) for cell in study.cells} == expected
    assert (none["n"], float(none["mean"]), float(se["parameters"])) == ("2", 0.09375, 1616)
    assert [step for step, _ in study.curves("se", "val/top1")[0]] == [2, 5, 8]


def test_its_cells_have_the_same_hash(folder):
    study = read_definition(BEFORE / "channel_attention.yaml")
    written = json.loads((BEFORE / "study.json").read_text())
    cells = {name: cell["config_sha256"] for name, cell in written.pop("cells").items()}
    assert {name: cell.earlier_sha256 for name, cell in study.cells.items()} == cells
    described = study.describe()
    assert {key: described[key] for key in written if key in described} == {
        key: value for key, value in written.items() if key in described
    } | {"file": str(study.file)}
    check_same_study(study, folder)
    assert all(read_result(run) for run in runs_of(study, folder, study.seeds, study.cells))


def test_its_finished_runs_are_not_run_again(folder, capsys):
    words = ["study", "run", str(BEFORE / "channel_attention.yaml"), "--folder", str(folder)]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("all 4 runs of channel_attention are finished")


def test_it_is_exported(folder, tmp_path):
    file = tmp_path / "results.json"
    assert main(["study", "export", str(folder), "--results", str(file)]) == 0
    assert len(read_study(file).results) == 4


def test_an_export_without_all_cells_is_read(folder, tmp_path, capsys):
    """As of a study that ran with --only; its expectations name the other cell."""
    shutil.rmtree(folder / "cells" / "se")
    file = tmp_path / "study.json"  # a name like that of the folder's plan
    assert main(["study", "export", str(folder), "--results", str(file)]) == 0
    study = read_study(file)
    assert study.cells == ["none", "se"]
    assert set(study.waiting) == {("se", 0), ("se", 1)}
    assert main(["study", "report", str(file), "--out", str(tmp_path / "report")]) == 0
    assert "missing: se, seeds 0, 1" in capsys.readouterr().out
