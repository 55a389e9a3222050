"""Results belong to a configuration, a profile, data and code; nothing of another counts."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from studies import ONE_SEED, write_study
from study_folders import VALUES, write_folder

from attention_vision.__main__ import main
from attention_vision.errors import InputError
from attention_vision.report.results import read_study
from attention_vision.report.summary import Report
from attention_vision.study import runner
from attention_vision.study.definition import read_definition, with_profile
from attention_vision.study.exit_code import ExitCode
from attention_vision.study.folder import finished_result, runs_of, write_config
from attention_vision.study.preflight import Preflight
from attention_vision.study.runner import run_config
from attention_vision.study.worker import train
from attention_vision.yaml_json import read_yaml, to_json, write_atomically

PROFILES = Path(__file__).parents[2] / "experiments/profiles"
DATA = {"classes": {"count": 2, "names": "a"}, "train": {"samples": 9, "labels": "b"}}
COST = {"parameters": 1, "macs": 1, "images_per_second": 1.0, "peak_memory": None}


class Launcher:
    """Finishes each run at once, with the value that `value` gives it."""

    value = staticmethod(lambda run: 0.5)
    data = DATA

    def __init__(self):
        self.done = []

    def free(self) -> bool:
        return True

    def start(self, run, cost) -> None:
        result = {
            "study": run.study, "cell": run.cell, "seed": run.seed, "config_sha256": run.sha256,
            "metrics": {run.metric: self.value(run), "val/loss": 1.0}, "seconds": 1.0,
            "cost": COST, "data": self.data, "versions": {"torch": "2"}, "commit": "c" * 40,
            "hardware": "one core", "finished": "2026-01-01T00:00:00+00:00",
        }  # fmt: skip
        write_atomically(run.result, to_json(result))
        self.done.append((run, ExitCode.FINISHED))

    def ended(self, timeout: float) -> list:
        ended, self.done = self.done, []
        return ended

    def stop(self) -> None: ...


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Runs `study run WORDS` on a file in this folder without training; returns what it prints."""
    file = write_study(tmp_path)
    launcher = Launcher()
    preflight = SimpleNamespace(data=DATA)
    measured: list[str] = []

    def preflights(study, configs, *_, **__):
        measured.extend(configs)
        one = Preflight(1, 1, 7, None, 32, None, None, preflight.data, call.evaluated)
        return dict.fromkeys(configs, one), {"commit": "c" * 40}

    monkeypatch.setattr(runner, "preload", lambda *_: None)
    monkeypatch.setattr(runner, "make_launcher", lambda *_: launcher)
    monkeypatch.setattr(runner, "run_preflights", preflights)
    monkeypatch.chdir(tmp_path)

    def call(capsys, *words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["study", "run", str(file), "--folder", "folder", *words]) == code
        printed = capsys.readouterr()
        return printed.out + printed.err

    call.launcher, call.preflight, call.file, call.measured = launcher, preflight, file, measured
    call.evaluated = None
    return call


def edit(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def values(folder: str = "folder") -> dict[str, list[float]]:
    report = Report.of(read_study(folder))
    return {row.cell: list(row.values.values()) for row in report.rows}


def remarks(folder: str | Path = "folder") -> list[str]:
    return Report.of(read_study(folder)).remarks


# Profiles

LAPTOP = {
    "trainer.max_epochs": 2, "trainer.check_val_every_n_epoch": 1,
    "trainer.limit_train_batches": 20, "trainer.limit_val_batches": 10,
    "trainer.limit_test_batches": 10,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ddp", {}), ("slurm", {}), ("wandb", {}), ("gpu", {"trainer.precision": "bf16-mixed"}),
        ("laptop", LAPTOP),
    ],
)  # fmt: skip
def test_what_a_profile_changes_in_the_training(name, changes, tmp_path):
    plain = read_definition(write_study(tmp_path))
    study = with_profile(plain, read_yaml(PROFILES / f"{name}.yaml"))
    assert study.profile == changes
    for cell in plain.cells:
        assert (study.cells[cell].sha256 == plain.cells[cell].sha256) is not bool(changes)
    assert set(read_yaml(PROFILES / f"{name}.yaml")) <= set(study.cells["se"].config)


@pytest.mark.parametrize(
    ("profile", "changes"),
    [
        ({"trainer": {"devices": 4}}, {"trainer.devices": 4}),  # batch_size is per process
        ({"trainer": {"devices": 1, "num_nodes": 1}}, {}),
        ({"data": {"init_args": {"root": "/else", "num_workers": 9}}}, {}),
        ({"data": {"init_args": {"images_folder": "a", "masks_folder": "b", "val_csv": "c"}}}, {}),
        ({"data": {"init_args": {"batch_size": 9}}}, {"data.batch_size": 9}),
        ({"threads": 9, "compile": "inductor", "pictures": False}, {}),
        ({"attention_backend": "fp8"}, {"attention_backend": "fp8"}),
        ({"trainer": {"limit_train_batches": 3}}, {}),  # as the base has it
    ],
)
def test_hardware_and_places_do_not(profile, changes, tmp_path):
    plain = read_definition(write_study(tmp_path))
    study = with_profile(plain, profile)
    assert study.profile == changes
    assert (study.cells["se"].sha256 == plain.cells["se"].sha256) is not bool(changes)


def test_hardware_of_a_base_is_no_other_cell(tmp_path):
    file = write_study(tmp_path)
    before = read_definition(file).cells["se"].sha256
    edit(tmp_path / "base.yaml", "threads: 1", "threads: 2")
    assert read_definition(file).cells["se"].sha256 == before
    edit(tmp_path / "base.yaml", "mixup: 0.2", "mixup: 0.3")
    assert read_definition(file).cells["se"].sha256 != before


def test_trial_runs_do_not_count(study, capsys):
    """Runs under a profile of one batch, then in earnest in the same folder, and back."""
    Path("trial.yaml").write_text("trainer: {limit_train_batches: 1}")
    study.launcher.value = lambda run: 0.1
    printed = study(capsys, "--profile", "trial.yaml")
    assert "changes the training, which the report says: trainer.limit_train_batches 1" in printed
    profile = "run with a profile, not as the study file says: trainer.limit_train_batches 1"
    assert remarks()[0] == profile
    study.launcher.value = lambda run: 0.9
    printed = study(capsys)
    line = (
        "none seed 0, se seed 0, none seed 1, se seed 1: another configuration"
        " (trainer.limit_train_batches 1, not 3); kept in folder/earlier\n"
    )
    assert printed.startswith(line)
    assert values() == {"none": [0.9, 0.9], "se": [0.9, 0.9]}
    assert profile not in remarks()
    assert len(list(Path("folder/earlier").glob("*/*/seed*/result.json"))) == 4

    study.launcher.value = lambda run: pytest.fail("nothing is to be run")
    assert "none seed 0, none seed 1: back from folder/earlier" in study(
        capsys, "--profile", "trial.yaml", "--only", "none"
    )
    assert values() == {"none": [0.1, 0.1], "se": []}
    assert any(
        one.startswith("left out: se, seeds 0, 1 was run with another conf") for one in remarks()
    )
    assert "back from folder/earlier" in study(capsys)
    assert values() == {"none": [0.9, 0.9], "se": [0.9, 0.9]}
    assert "all 4 runs of study are finished" in study(capsys)


def test_one_tried_cell_is_run_again(study, capsys):
    Path("trial.yaml").write_text("trainer: {max_epochs: 1}")
    study(capsys, "--profile", "trial.yaml", "--only", "se")
    printed = study(capsys)
    assert printed.startswith("se seed 0, se seed 1: another configuration (trainer.max_epochs 1,")
    assert "4 of 4 runs finished" in printed


def test_trial_runs_of_version_0_1_are_found_by_their_config(study, capsys):
    """Their hash was that of the cell, whatever the profile."""
    study(capsys)
    cells = read_definition(study.file).cells
    for place in Path("folder/cells").glob("*/seed*"):
        result = json.loads((place / "result.json").read_text())
        result["config_sha256"] = cells[place.parent.name].earlier_sha256
        (place / "result.json").write_text(json.dumps(result))
        config = yaml.safe_load((place / "cell.yaml").read_text())
        if place.parent.name == "se":
            config["trainer"]["limit_train_batches"] = 1
        (place / "cell.yaml").write_text(yaml.safe_dump(config))
    printed = study(capsys)
    assert printed.startswith("se seed 0, se seed 1: another configuration")
    assert "none seed" not in printed.partition("\n")[0]


# The study file


def test_a_finished_study_follows_its_file(study, capsys):
    study.launcher.value = lambda run: {"none": 0.2, "se": 0.4}[run.cell]
    study(capsys)
    assert Report.of(read_study("folder")).study.baseline == "none"
    edit(study.file, "baseline: none", "baseline: se")
    edit(study.file, "expect: [se > none]", "expect: [none < se]")
    edit(study.file, "metric: val/top1", "metric: val/loss\n  higher_is_better: false")
    (line,) = (one for one in remarks() if "has changed since" in one)
    assert "metric is val/loss, not val/top1; " in line
    assert "; baseline is se, not none" in line
    study.launcher.value = lambda run: pytest.fail("no run is needed")
    printed = study(capsys)
    assert printed.startswith("the study file asks for metric val/loss (was val/top1), ")
    assert ", baseline se (was none)" in printed
    assert "all 4 runs of study are finished" in printed
    report = Report.of(read_study("folder"))
    assert (report.study.metric, report.study.baseline) == ("val/loss", "se")
    assert str(report.findings[0].expectation) == "none < se"
    assert not any("has changed since" in one for one in report.remarks)


def test_exactly_the_changed_cells_are_run_again(study, capsys):
    study(capsys)
    kept = (Path("folder/cells/none/seed0/result.json")).stat().st_mtime_ns
    edit(study.file, "reduction: 1", "reduction: 2")
    printed = study(capsys)
    assert printed.startswith(
        "se seed 0, se seed 1: another configuration (model.network.attention.reduction 1, not 2);"
    )
    assert printed.count("started") == 2
    assert (Path("folder/cells/none/seed0/result.json")).stat().st_mtime_ns == kept
    edit(study.file, "seeds: [0, 1]", "seeds: [0, 1, 2]")
    printed = study(capsys)
    assert printed.count("started") == 2
    assert "another configuration" not in printed


def test_a_run_in_the_middle_of_another_configuration_is_not_resumed(study, capsys):
    study(capsys, "--only", "none")
    for place in Path("folder/cells/none").glob("seed*"):
        (place / "result.json").unlink()
        write_atomically(place / "checkpoints/last.ckpt", "weights")
    edit(study.file, "budget: {steps: 7}", "budget: {steps: 9}")
    printed = study(capsys)
    assert printed.startswith("none seed 0, none seed 1: another configuration (trainer.max_steps")
    assert not list(Path("folder/cells").glob("*/*/checkpoints"))
    assert len(list(Path("folder/earlier").glob("*/none/*/checkpoints/last.ckpt"))) == 2


def test_a_metric_that_was_not_measured_is_measured(study, capsys):
    study(capsys)
    edit(study.file, "metric: val/top1", "metric: test/top1")
    assert study(capsys).count("started") == 4


def test_a_cell_that_was_begun_is_not_measured_again(study, capsys, monkeypatch):
    """One cell of a data set is opened anew; all are where the code has changed."""
    study(capsys, "--seeds", "0")
    study(capsys)
    assert study.measured == ["none", "se", "none"]
    monkeypatch.setattr(runner, "code", lambda: {"torch": "3"})
    study(capsys, "--seeds", "4")
    assert study.measured == ["none", "se", "none", "none", "se"]
    Path("folder/preflights/se.json").write_text("{")
    study(capsys, "--seeds", "5")
    assert study.measured[-2:] == ["none", "se"]
    cost = json.loads(Path("folder/cells/se/seed5/result.json").read_text())["cost"]
    assert cost["parameters"] == 1


# Runs that diverged


@pytest.mark.parametrize("gone", ["val/top1", "val/loss"])
def test_a_result_without_a_number_is_a_failed_run(study, capsys, gone):
    study(capsys)
    file = Path("folder/cells/se/seed1/result.json")
    content = json.loads(file.read_text())
    content["metrics"][gone] = None
    file.write_text(json.dumps(content))
    assert values() == {"none": [0.5, 0.5], "se": [0.5]}
    assert f"left out: se, seed 1 has no finite {gone}: it failed" in remarks()
    assert study(capsys).count("started   se seed 1") == 1


def test_a_run_that_diverges_has_no_result(tmp_path, monkeypatch):
    """It is a failed run, in this attempt and in the next one."""
    optimizer = "{model.optimizer: {class_path: torch.optim.SGD, init_args: {lr: 1.0e+18}}}"
    changes = ("    none:", f"    huge: {optimizer}\n    none:"), ("steps: 7", "steps: 6")
    definition = read_definition(write_study(tmp_path, ONE_SEED, *changes))
    (huge, *_) = runs_of(definition, tmp_path / "folder", [0], ["huge"])
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        write_config(huge, run_config(definition.cells["huge"].config, huge, 1))
        with pytest.raises(InputError, match="finite"):
            train(huge, {})
        assert not huge.result.exists()
        assert finished_result(huge) is None


# Data and code


def test_runs_on_other_data_are_refused(study, capsys):
    study(capsys, "--only", "none")
    study.preflight.data = DATA | {"train": {"samples": 8, "labels": "b"}}
    printed = study(capsys, code=1)
    assert printed.count("\n") == 1
    assert (
        "cell se: the data is not that of finished runs (none seed 0, none seed 1): train has 8"
        " samples, not 9; restore it, or give another --folder" in printed
    )


def test_runs_on_other_data_are_not_averaged(study, capsys):
    study(capsys)
    file = Path("folder/cells/se/seed1/result.json")
    content = json.loads(file.read_text())
    content["data"] = DATA | {"train": {"samples": 9, "labels": "x"}}
    file.write_text(json.dumps(content))
    assert values() == {"none": [0.5, 0.5], "se": [0.5]}
    assert (
        "left out: se, seed 1 is of other data than 3 other runs: train has other labels"
        in remarks()
    )
    assert main(["study", "export", "folder", "--results", "out.json"]) == 0
    exported = json.loads(Path("out.json").read_text())
    assert len(exported["runs"]) == 3
    assert any("se seed 1 is of other data" in note for note in exported["notes"])


def test_data_may_be_an_axis(study, capsys):
    """Cells of different data are compared because the study says so."""
    edit(study.file, "    se: {model", "    se: {data.init_args.batch_size: 16, model")
    study(capsys)
    for seed in (0, 1):
        file = Path(f"folder/cells/se/seed{seed}/result.json")
        file.write_text(file.read_text().replace('"samples": 9', '"samples": 5'))
    assert values() == {"none": [0.5, 0.5], "se": [0.5, 0.5]}


def test_other_code_is_said(study, capsys):
    study(capsys)
    file = Path("folder/cells/se/seed1/result.json")
    text = file.read_text().replace("c" * 40, "d" * 40 + "-dirty")
    file.write_text(text.replace('"torch": "2"', '"torch": "3"'))
    (line,) = (one for one in remarks() if one.startswith("code: "))
    assert line == (
        "code: se seed 1 of 4 runs: torch 3, not 2; commit dddddddddd-dirty, not cccccccccc as the"
        " others"
    )
    assert values()["se"] == [0.5, 0.5]


def test_a_job_whose_config_was_replaced_ends(study, capsys):
    """A queued job starts after the study was given another configuration."""
    study(capsys)
    edit(study.file, "reduction: 1", "reduction: 2")
    definition = read_definition(study.file)
    (later, *_) = runs_of(definition, Path("folder"), [0], ["se"])
    assert finished_result(later) is None
    with pytest.raises(InputError, match="has another configuration by now: run the study again"):
        train(later, {})


def test_a_cell_that_the_study_lost_is_left_out(tmp_path):
    folder = write_folder(tmp_path / "channel_attention")
    (folder / "cells/eca/seed0").mkdir(parents=True)
    line = f"left out: cells/eca is not a cell of {folder / 'study.json'}"
    assert line in remarks(folder)
    assert values(folder).keys() == VALUES.keys()


# The plan


def test_a_verdict_waits_for_the_plan_and_goes_with_the_results(study, capsys):
    edit(study.file, "[se > none]", "[se > none, se < none by 0.2]")
    edit(study.file, "seeds: [0, 1]", "seeds: [0, 1, 2, 3]\n  effect: 0.5\n  looks: [3, 4, 6]")
    study.launcher.value = lambda run: (run.cell == "se") * (1 + run.seed / 100)
    outcomes = []
    for seeds in (["0", "1"], ["2"], ["3"], ["7"]):
        study(capsys, "--seeds", *seeds)
        Path("out.json").unlink(missing_ok=True)
        assert main(["study", "export", "folder", "--results", "out.json"]) == 0
        both = [Report.of(read_study(source)) for source in ("folder", "out.json")]
        assert both[0].findings == both[1].findings
        assert both[0].study.plan == both[1].study.plan
        finding = both[0].findings[0]
        (looks,) = [one for one in both[0].remarks if one.startswith("verdicts")] or [""]
        outcomes.append((len(finding.difference.values), finding.verdict, looks))
        assert finding.difference.level == pytest.approx(1 - 0.05 / 3)
    later = "verdicts are those of the first 4 of 5 seeds: the next look is at 6"
    assert outcomes == [
        (2, "undecided", ""), (3, "supported", ""), (4, "supported", ""), (4, "supported", later)
    ]  # fmt: skip
    assert Report.of(read_study("folder")).findings[1].verdict == "contradicted"
    assert study(capsys, "--only", "none").startswith("all 4 runs of study are finished")
    edit(study.file, "looks: [3, 4, 6]", "looks: [4, 5]")
    edit(study.file, "seeds: [0, 1, 2, 3]", "seeds: [0, 1, 2, 3, 4]")
    (line,) = (one for one in remarks() if "has changed since" in one)
    assert "looks is 4, 5, not 3, 4, 6; seeds is 0, 1, 2, 3, 4, not 0, 1, 2, 3" in line


# The power


def test_the_dry_run_says_what_the_study_can_decide(study, capsys):
    edit(study.file, "seeds: [0, 1]", "seeds: [0, 1, 2, 3, 4]\n  effect: 0.01")
    study.evaluated = 400
    printed = study(capsys, "--dry-run")
    assert "2 x the binomial floor of 400 images, error 0.1 assumed" in printed
    assert "this study cannot decide what it expects" in printed
    study.launcher.value = lambda run: 0.5 + run.seed / 10 + run.seed**2 * (run.cell == "se") / 1e4
    assert "this study cannot decide what it expects" in study(capsys, "--seeds", "0", "1", "2")
    printed = study(capsys, "--dry-run")
    assert "(3 seeds of 2 cells in folder, 2 degrees of freedom)" in printed
    assert "cannot decide" not in printed
    assert "+0.000167" in printed  # the difference of the pilot

    # The same runs as a committed results file, for a folder that is empty.
    for path, text in {"results": "", "ablations": study.file.read_text()}.items():
        Path("experiments", path).mkdir(parents=True)
        Path("experiments", path, "study.yaml").write_text(text)
    Path("experiments/ablations/base.yaml").write_text(Path("base.yaml").read_text())
    assert main(["study", "export", "folder", "--results", "experiments/results/old.json"]) == 0
    content = json.loads(Path("experiments/results/old.json").read_text())
    content["what"]["experiment"] = "experiments/ablations/study.yaml"
    write_atomically(Path("experiments/results/old.json"), to_json(content))
    assert main(["study", "run", "experiments/ablations/study.yaml", "--dry-run"]) == 0
    assert "3 seeds of 2 cells in experiments/results/old.json" in capsys.readouterr().out


def test_a_plan_that_grows_may_need_looks(study, capsys):
    study(capsys)
    edit(study.file, "seeds: [0, 1]", "seeds: [0, 1, 2]")
    assert (
        "planned_seeds 0, 1, 2 (was 0, 1), which are more: if its report was read before, state"
        in (study(capsys))
    )
    edit(study.file, "seeds: [0, 1, 2]", "seeds: [0, 1, 2, 3]\n  looks: [3, 4]")
    printed = study(capsys)
    assert "looks 3, 4 (was nothing), planned_seeds 0, 1, 2, 3 (was 0, 1, 2): the report" in printed
