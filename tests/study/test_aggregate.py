"""Several studies of one expectation: a stratified estimate, its verdict, and what is refused."""

import csv
import json

import numpy as np
import pytest
from scipy import stats
from study_folders import STUDY, VALUES, write_file

from attention_vision.__main__ import main
from attention_vision.report.aggregate import Aggregate, stratified_difference
from attention_vision.report.results import read_study
from attention_vision.report.summary import Report


def test_the_estimate_is_that_of_welch_for_two_samples():
    """The difference of two means has the variance and the degrees of freedom of their sum."""
    a, b = np.random.default_rng(0).normal(1, 1, 5), np.random.default_rng(1).normal(1, 3, 8)
    welch = stats.ttest_ind(a, -b, equal_var=False)
    low, high = welch.confidence_interval(0.97)
    found = stratified_difference([list(a), list(b)], 0.97)
    assert found.mean == pytest.approx((a.mean() + b.mean()) / 2)
    assert found.interval == pytest.approx((low / 2, high / 2))
    assert found.p == pytest.approx(welch.pvalue)


def test_data_sets_together_decide_what_none_does(tmp_path, capsys):
    better = {
        cell: {seed: one + 0.001 * seed for seed, one in VALUES[cell].items()} for cell in VALUES
    }
    study = STUDY | {"effect": 0.045, "expect": ["se > none", "cbam > none"]}
    files = [
        str(write_file(tmp_path / f"{name}.json", values, study=study))
        for name, values in {"first": VALUES, "second": better, "third": VALUES}.items()
    ]
    assert main(["study", "report", *files, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out/report.csv").open()))
    assert [row["data_set"] for row in rows] == ["first", "second", "third", "overall"] * 2
    assert [row["verdict"] for row in rows[:4]] == ["undecided"] * 3 + ["supported"]
    assert [row["verdict"] for row in rows[4:7]] == ["undecided"] * 3
    assert rows[7]["verdict"] == "no difference beyond 0.045"
    assert float(rows[3]["difference"]) == pytest.approx(0.03)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.txt", "report.csv", "report.md", "report.html",
    }  # fmt: skip
    for ending in ("txt", "md", "html"):
        text = (tmp_path / f"out/report.{ending}").read_text()
        assert text.count("overall") == 2
        assert "equally weighted" in text
    assert (tmp_path / "out/report.txt").read_text() in printed


def test_a_plan_that_is_not_done_is_undecided(tmp_path):
    first = write_file(tmp_path / "first.json")
    second = write_file(tmp_path / "second.json", study=STUDY | {"seeds": [0, 1, 2, 3]})
    found = Aggregate.of([Report.of(read_study(file)) for file in (first, second)]).findings
    assert {(one.verdict, one.reason) for one in found} == {
        ("undecided", "second: 3 of 4 seeds: verdicts count when the plan is done")
    }


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"metric": "val/loss"}, "other and first differ in metric or expectations: val/loss, se"),
        ({"expect": ["se > none"]}, "differ in metric or expectations"),
        ({"expect": []}, "other has no expectations: report it alone"),
        (None, "other has exact numbers: report it alone"),
    ],
)
def test_what_does_not_belong_together(changes, line, tmp_path, capsys):
    first, other = write_file(tmp_path / "first.json"), tmp_path / "other.json"
    write_file(other, study=STUDY | (changes or {}))
    if changes is None:
        content = json.loads(other.read_text())
        runs = {run["cell"]: run | {"seed": None} for run in content["runs"]}
        other.write_text(json.dumps(content | {"runs": list(runs.values())}))
    assert main(["study", "report", str(first), str(other), "--out", str(tmp_path / "out")]) == 1
    assert line in capsys.readouterr().err
    assert main(["study", "report", str(first), str(first), "--out", str(tmp_path / "out")]) == 1
    assert "two of the studies have the same name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
