"""Studies beyond one machine: submitit jobs, W&B sweeps, results files."""

import json
import pickle
from pathlib import Path

import pytest
import yaml
from studies import ONE_SEED, outcome, run, write_study

from attention_vision.__main__ import main
from attention_vision.errors import InputError
from attention_vision.study.definition import read_definition
from attention_vision.study.folder import runs_of
from attention_vision.study.slurm import RunJob, SubmititLauncher
from attention_vision.yaml_json import write_atomically


def test_a_job_of_submitit_gives_the_numbers_of_a_forked_worker(whole, tmp_path):
    pytest.importorskip("submitit")
    file, folder = write_study(tmp_path, ONE_SEED), tmp_path / "submitted"
    words = ["--only", "se", "--launcher", "submitit", "--submit", "timeout_min=5"]
    code, printed = run(file, "--folder", folder, *words, output=tmp_path / "printed")
    assert code == 0, printed
    assert "study: 1 of 1 runs finished" in printed
    assert outcome(folder) == {"se seed0": outcome(whole)["se seed0"]}
    config = "cells/se/seed0/cell.yaml"
    assert (folder / config).read_text() == (whole / config).read_text()


def test_a_preempted_job_is_queued_again_as_it_was(tmp_path):
    pytest.importorskip("submitit")
    (one,) = runs_of(read_definition(write_study(tmp_path)), tmp_path / "folder", [0], ["se"])
    again = pickle.loads(pickle.dumps(RunJob())).checkpoint(one, {"macs": 3})
    assert isinstance(again.function, RunJob)
    assert again.args == (one, {"macs": 3})


@pytest.mark.parametrize(
    ("launcher", "submit", "line"),
    [
        ("submitit", ["timeout_min"], "--submit timeout_min: give KEY=VALUE"),
        ("submitit", ["minutes=3"], "--launcher submitit: "),
        ("slurm", [], "--launcher slurm: "),  # there is no SLURM here
    ],
)
def test_a_mistake_about_jobs(launcher, submit, line, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError) as error:
        SubmititLauncher(tmp_path / "jobs", launcher, None, tuple(submit))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


# A sweep


def sweep(tmp_path: Path, capsys: pytest.CaptureFixture) -> dict:
    file = write_study(tmp_path)
    assert main(["study", "export", str(file), "--wandb-sweep"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_wandb_takes_the_sweep(tmp_path, capsys):
    from wandb.apis.public.sweeps import _validate_config_and_fill_distribution

    config = sweep(tmp_path, capsys)
    assert _validate_config_and_fill_distribution(config) == config
    # What W&B's server and `wandb.controller` ask, in a package of its own.
    sweeps = pytest.importorskip("sweeps")
    assert sweeps.schema_violations_from_proposed_config(config) == []


def test_an_agent_calls_study_run(tmp_path, capsys, monkeypatch):
    """The command that W&B builds from a job of the grid parses."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    config = sweep(tmp_path, capsys)
    assert config["metric"] == {"name": "val/top1", "goal": "maximize"}
    values = {name: parameter["values"] for name, parameter in config["parameters"].items()}
    assert values == {"seeds": [0, 1], "only": ["none", "se"]}
    job = {"args": {"seeds": {"value": 1}, "only": {"value": "se"}}}
    words = create_sweep_command(config["command"])
    filled = {"${env}": [], "${args}": create_sweep_command_args(job)["args"]}
    program, *arguments = [part for word in words for part in filled.get(word, [word])]
    assert program == "attention-vision"

    requests = []
    monkeypatch.setattr(
        "attention_vision.study.runner.run_study", lambda request, _: requests.append(request) or 0
    )
    assert main(arguments) == 0
    (request,) = requests
    assert (request.seeds, request.only, request.file) == ((1,), ("se",), tmp_path / "study.yaml")
    assert [path.name for path in request.profiles] == ["wandb.yaml"]


# Results


def finished(tmp_path: Path) -> Path:
    """A study folder with three of four results."""
    study, folder = read_definition(write_study(tmp_path)), tmp_path / "folder"
    write_atomically(folder / "study.json", json.dumps(study.describe() | {"commit": "abc"}))
    for number, one in enumerate(list(runs_of(study, folder, study.seeds, study.cells))[:3]):
        result = {
            "study": study.name, "cell": one.cell, "seed": one.seed, "config_sha256": one.sha256,
            "metrics": {"val/top1": number / 4}, "seconds": 2.5, "cost": {"parameters": 9},
            "versions": {"torch": "2.11"}, "hardware": "a slide rule",
            "finished": f"2026-01-0{number + 1}T00:00:00+00:00",
        }  # fmt: skip
        write_atomically(one.result, json.dumps(result))
        write_atomically(one.config, "data: {class_path: Digits}")
    return folder


def test_results_file(tmp_path, capsys):
    folder, file = finished(tmp_path), tmp_path / "results.json"
    assert main(["study", "export", str(folder), "--results", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["study"] == {
        "question": "Does it survive?", "task": "classification", "metric": "val/top1",
        "higher_is_better": True, "baseline": "none", "expect": ["se > none"],
        "seeds": [0, 1],
    }  # fmt: skip
    assert (content["date"], content["commit"]) == ("2026-01-03", "abc")
    assert content["what"]["data"] == "Digits"
    assert content["budget"] == {"steps": 7}
    runs = [(one["cell"], one["seed"], one["metrics"]["val/top1"]) for one in content["runs"]]
    assert runs == [("none", 0, 0), ("none", 1, 0.5), ("se", 0, 0.25)]
    assert content["runs"][0]["cost"] == {"parameters": 9}

    before = file.read_bytes()
    assert main(["study", "export", str(folder), "--results", str(file)]) == 1
    assert "exists: give a new file" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_results_of_nothing(tmp_path, capsys):
    words = ["--results", str(tmp_path / "new.json")]
    assert main(["study", "export", str(tmp_path), *words]) == 1
    assert "is not a study folder: give one that" in capsys.readouterr().err
    folder = finished(tmp_path)
    result = folder / "cells/none/seed0/result.json"
    result.write_text(result.read_text()[:50])
    assert main(["study", "export", str(folder), *words]) == 1
    assert "truncated or damaged" in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()
