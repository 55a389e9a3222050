"""Runs of studies: by forked workers, after kills, by two runners at once, with mistakes."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

# Before rich, as in the command: typing caches rich's Union[float, int] as equal to the Trainer's
# Union[int, float], and jsonargparse would then read limit_val_batches 1 as 1.0, all batches.
import lightning.pytorch  # noqa: F401
import pytest
import yaml
from studies import ONE_SEED, attempts, command, kill_when, outcome, run, workers_left, write_study

from attention_vision.__main__ import main
from attention_vision.study.definition import read_definition
from attention_vision.study.folder import Run, runs_of
from attention_vision.study.progress_table import ProgressTable, clock
from attention_vision.study.runner import run_config, share_machine
from attention_vision.yaml_json import write_atomically


def test_what_a_study_leaves(whole):
    study = json.loads((whole / "study.json").read_text())
    assert (study["name"], study["metric"], study["seeds"]) == ("study", "val/top1", [0])
    assert {"versions", "hardware", "file"} <= study.keys()
    assert list(outcome(whole)) == ["none seed0", "se seed0"]
    result = json.loads((whole / "cells/se/seed0/result.json").read_text())
    assert (result["study"], result["cell"], result["seed"]) == ("study", "se", 0)
    assert result["config_sha256"] == study["cells"]["se"]["config_sha256"]
    assert result["cost"]["parameters"] > 0
    assert result["cost"]["macs"] > 0
    assert result["cost"]["images_per_second"] > 0
    assert result["seconds"] > 0
    of_all = {key for key in result["metrics"] if "_of/" not in key}
    assert of_all == {"val/loss", "val/top1", "val/top5", "val/top1_macro"}
    config = yaml.safe_load((whole / "cells/se/seed0/cell.yaml").read_text())
    assert (config["seed_everything"], config["threads"]) == (0, 1)
    assert config["trainer"]["max_steps"] == 7
    assert not list(whole.glob("**/*.part"))


def test_a_budget_in_steps_ends_with_a_validation(whole):
    for metrics, rows in outcome(whole).values():
        assert int(rows[-1]["step"]) == 6
        assert float(rows[-1]["val/loss"]) == metrics["val/loss"]


def test_cells_of_a_seed_see_the_same_images(whole):
    """Both cells of a seed have the same data, order and learning rate."""
    first = {name: rows[0]["train/lr"] for name, (_, rows) in outcome(whole).items()}
    assert len(set(first.values())) == 1
    batches = {
        name: (whole / "cells" / name.replace(" ", "/") / "cell.yaml").read_text()
        for name in ("none seed0", "se seed0")
    }
    configs = {name: yaml.safe_load(text) for name, text in batches.items()}
    assert configs["none seed0"]["data"] == configs["se seed0"]["data"]
    assert configs["none seed0"]["seed_everything"] == configs["se seed0"]["seed_everything"]


def test_killed_at_any_moment_it_goes_on(whole, tmp_path):
    """One worker, killed and restarted, gives the numbers of two uninterrupted ones."""
    file, folder = write_study(tmp_path, ONE_SEED), tmp_path / "killed"
    words = ("run", file, "--folder", folder, "--jobs", 1)

    def count(pattern: str) -> int:
        return len(list(folder.glob(f"cells/*/*/{pattern}")))

    moments = [
        lambda: count("log.txt") > 0,  # a run begins
        lambda: count("checkpoints/last.ckpt") > 0 and count("result.json") == 0,
        lambda: count("checkpoints/last.ckpt") > count("result.json") > 0,
    ]
    kept: dict[Path, int] = {}
    for moment in moments:
        kill_when(command(*words, output=tmp_path / "printed"), moment)
        assert workers_left(folder) == []
        assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
        kept = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*/result.json")}
    assert run(*words[1:], output=tmp_path / "printed")[0] == 0
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert outcome(folder) == outcome(whole)
    tries = attempts(folder)
    assert tries["none seed0"][0] >= 2
    assert sum(continued for _, continued in tries.values()) >= 2


def test_finished_runs_are_not_run_again(whole, capsys):
    before = outcome(whole), attempts(whole)
    file = whole.parent / "study.yaml"
    assert main(["study", "run", str(file), "--folder", str(whole)]) == 0
    assert capsys.readouterr().out == f"all 2 runs of study are finished: {whole}\n"
    assert (outcome(whole), attempts(whole)) == before


def test_two_runners_share_a_study(tmp_path):
    file, folder = write_study(tmp_path, ONE_SEED), tmp_path / "shared"
    words = ("run", file, "--folder", folder, "--jobs", 1)
    runners = [command(*words, output=tmp_path / name) for name in ("first", "second")]
    for runner in runners:
        runner.join()
        assert runner.exitcode == 0
    assert attempts(folder) == {"none seed0": (1, 0), "se seed0": (1, 0)}
    for name in ("first", "second"):
        assert "study: 2 of 2 runs finished" in (tmp_path / name).read_text()


def test_a_run_that_fails_stops_no_other(tmp_path):
    wrong = "{model.optimizer: {class_path: torch.optim.SGD, init_args: {lr: 1.0e30}}}"
    file = write_study(tmp_path, ONE_SEED, ("    none:", f"    wrong: {wrong}\n    none:"))
    folder = tmp_path / "failing"
    words = ("--folder", folder, "--jobs", 1, "--only", "wrong", "none")
    code, printed = run(file, *words, output=tmp_path / "printed")
    assert code == 1
    assert "Traceback" not in printed
    failed = [line for line in printed.splitlines() if line.startswith("failed: wrong seed 0")]
    assert len(failed) == 1
    assert "not finite" in failed[0]
    assert set(attempts(folder)) == {"wrong seed0", "none seed0"}
    assert len(list(folder.glob("cells/*/*/result.json"))) == 1
    assert len(list(folder.glob("cells/*/*/error.txt"))) == 1


# One-line errors: change of the study file, further words, and what is said

SE = ["--only", "se"]
WRONG = [
    (
        [("attention: {class_path: Squ", "atention: {class_path: Squ")],
        SE,
        "study.yaml: cell se (model.network.init_args.atention): there is no key"
        " model.network.atention.init_args.reduction; did you mean model.network.attention.",
    ),
    (
        [("SqueezeExcite", "SqueezeExite")],
        SE,
        "model.network.attention: there is no class SqueezeExite; did you mean SqueezeExcite?",
    ),
    ([("reduction: 1", "reduction: 0")], SE, "reduction is 0: it has to be"),
    ([("metric: val/top1", "metric: top1")], [], "study.metric 'top1' is not a logged key"),
    ([], ["--only", "sse"], "--only sse: "),
    ([], ["--seeds", "1", "1"], "--seeds: duplicate seed 1"),
    ([], ["--jobs", "0"], "--jobs 0 is not positive"),
    ([], ["--profile", "nowhere.yaml"], "no such file: nowhere.yaml"),
]


@pytest.mark.parametrize(("changes", "words", "line"), WRONG)
def test_a_mistake_before_anything_runs(changes, words, line, tmp_path):
    file, folder = write_study(tmp_path, *changes), tmp_path / "folder"
    code, printed = run(file, "--folder", folder, *words, output=tmp_path / "printed")
    assert code == (2 if "--profile" in words else 1)  # a config that cannot be read
    assert printed.startswith("attention-vision: error: ")
    assert printed.count("\n") == 1
    assert line in printed
    assert not folder.exists()


def test_a_metric_that_no_run_logs(tmp_path):
    file = write_study(tmp_path, ("metric: val/top1", "metric: val/topp1"))
    folder = tmp_path / "folder"
    words = ("--folder", folder, "--jobs", 1, "--only", "none")
    code, printed = run(file, *words, output=tmp_path / "printed")
    assert code == 1
    (line,) = [line for line in printed.splitlines() if "error" in line]
    assert "no run logs study.metric val/topp1: did you mean val/top1?" in line
    assert "val/loss, val/top1, val/top1_macro, val/top5" in line
    assert not list(folder.glob("cells/*/*/result.json"))
    assert workers_left(folder) == []


def test_a_result_cut_in_half(whole, capsys):
    result = whole / "cells/none/seed0/result.json"
    text = result.read_text()
    write_atomically(result, text[:100])
    try:
        words = ["study", "run", str(whole.parent / "study.yaml"), "--folder", str(whole)]
        assert main(words) == 1
        line = capsys.readouterr().err
        assert f"{result} is truncated or damaged: delete it" in line
        assert result.read_text() == text[:100]
    finally:
        write_atomically(result, text)


def test_a_run_that_was_trained_on_by_hand_is_no_result(whole, tmp_path):
    """Its checkpoint is of more steps than the cell's."""
    file, folder = write_study(tmp_path, ONE_SEED), tmp_path / "folder"
    shutil.copytree(whole, folder)
    place = folder / "cells/none/seed0"
    words = ["-c", str(place / "config.yaml"), "--ckpt_path", "last", "--trainer.max_steps", "9"]
    assert main(["classification", "fit", *words]) == 0
    (place / "result.json").unlink()
    code, printed = run(file, "--folder", folder, "--jobs", 1, output=tmp_path / "printed")
    assert code == 1, printed
    line = "was trained on outside of the study (trainer.max_steps 9 -> 7 in it): move it away"
    assert line in (place / "error.txt").read_text()
    assert not (place / "result.json").exists()
    place.rename(tmp_path / "away")
    code, printed = run(file, "--folder", folder, "--jobs", 1, output=tmp_path / "printed")
    assert code == 0, printed


def dry_run(file: Path) -> dict[str, list[str]]:
    """Return by cell: parameters, MACs, steps, images, and two times with their units."""
    folder = file.parent / "dry"
    code, printed = run(file, "--folder", folder, "--dry-run", output=file.parent / "printed")
    assert code == 0, printed
    assert not folder.exists()
    costs, _, power = printed.partition("\n\n")
    if power:
        assert "2 x the binomial floor of 32 images, error 0.1 assumed" in power  # of one batch
    _, *rows, _ = (line.replace(",", "").split() for line in costs.splitlines())
    return {name: numbers for name, *numbers in rows}


def test_cost_under_a_budget_in_flops(tmp_path):
    cells = dry_run(write_study(tmp_path, ("budget: {steps: 7}", "budget: {flops: 1.0e+8}")))
    for numbers in cells.values():
        parameters, macs, steps, images = map(int, numbers[:4])
        assert parameters > 0
        assert steps == round(1e8 / (6 * macs * 32))
        assert images == 32 * steps
    assert int(cells["se"][0]) > int(cells["none"][0])


def test_cost_without_a_budget(tmp_path):
    """Steps, images and time for each way in which a base can limit a run."""
    absent = "data: {class_path: CIFAR10, init_args: {root: nowhere, batch_size: 32}}"
    axes = f"""
axes:
  end:
    none: {{}}
    steps: {{trainer.max_steps: 7}}
    both: {{trainer.max_steps: 7, trainer.max_epochs: 2}}
    clock: {{trainer.max_time: 00:00:00:30}}
    absent: {{trainer.max_epochs: 2, {absent}}}
    absent_steps: {{trainer.max_steps: 7, {absent}}}
"""
    file = write_study(tmp_path, ("  budget: {steps: 7}", ""), ("[se > none]", "[]"))
    text = file.read_text()
    file.write_text(text[: text.index("\naxes:")] + axes)
    cells = dry_run(file)
    assert {name: numbers[2:4] for name, numbers in cells.items()} == {
        "none": ["3000", "96000"],  # Lightning ends at 1,000 epochs
        "steps": ["7", "224"],
        "both": ["6", "192"],
        "clock": ["-", "-"],
        "absent": ["-", "-"],
        "absent_steps": ["7", "224"],
    }
    assert cells["clock"][-2:] == ["30", "s"]
    assert cells["absent"][-1] == "-"
    assert "-" not in cells["absent"][4:6] + cells["absent_steps"][4:]


# What a run is given


@pytest.mark.parametrize(
    ("cores", "wish", "jobs", "runs", "expected"),
    [
        (8, None, None, 20, (8, 1)),
        (8, None, 2, 20, (2, 4)),
        (8, None, None, 3, (3, 2)),
        (8, 2, None, 20, (4, 2)),
        (8, 1, 2, 20, (2, 1)),  # more threads would change the last digits
        (8, 4, 8, 20, (8, 1)),
        (2, 4, None, 20, (1, 2)),
    ],
)
def test_cores_are_shared(cores, wish, jobs, runs, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    config = {"trainer": {"accelerator": "cpu"}} | ({"threads": wish} if wish else {})
    assert share_machine([config], jobs, runs) == (*expected, [])


def test_gpus_are_shared(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5")
    assert share_machine([{}], None, 20)[0] == 2
    assert share_machine([{}], 3, 20)[2] == ["2", "GPU-5"]
    assert share_machine([{"trainer": {"accelerator": "cpu"}}], 1, 20)[2] == []


def a_run(tmp_path: Path) -> Run:
    study = read_definition(write_study(tmp_path))
    return next(runs_of(study, tmp_path / "folder", [3], ["se"]))


def test_a_run_in_wandb_has_the_studys_name(tmp_path):
    logger = {
        "class_path": "attention_vision.training.wandb_logger.WeightsAndBiases",
        "init_args": {"project": "p"},
    }
    config = run_config({"trainer": {"logger": logger}}, a_run(tmp_path), threads=2)
    names = {"project": "p", "group": "study", "name": "se-seed3"}
    assert config["trainer"]["logger"]["init_args"] == names
    assert (config["seed_everything"], config["threads"]) == (3, 2)
    assert (
        run_config({"trainer": {"logger": False}}, a_run(tmp_path), 1)["trainer"]["logger"] is False
    )


def test_time_left(tmp_path, capsys):
    study = read_definition(write_study(tmp_path))
    runs = list(runs_of(study, tmp_path / "folder", (0, 1), study.cells))
    table = ProgressTable(study, runs, jobs=1)
    assert table.seconds_left() is None
    result = {"metrics": {"val/top1": 0.5}, "config_sha256": runs[0].sha256, "seconds": 10.0}
    write_atomically(runs[0].result, json.dumps(result))
    table.started(runs[0])
    table.finished(runs[0])
    assert table.seconds_left() == 30.0
    assert ProgressTable(study, runs, jobs=2).seconds_left() == 15.0
    write_atomically(runs[1].progress, json.dumps({"seconds": 20.0, "share": 0.5}))
    table.started(runs[1])
    assert table.seconds_left() == 25.0
    write_atomically(runs[2].error, "Traceback\n  ...\nValueError: no\n\n")
    table.failed(runs[2])
    table.close()
    printed = capsys.readouterr().out.splitlines()
    assert printed[-4:-1] == [
        "val/top1    seed 0    seed 1",
        "none           0.5    failed",
        "se             50%         .",
    ]
    assert printed[-1].startswith("failed: none seed 1: ValueError: no (see ")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [24, 80])
def test_the_live_table_fits_the_terminal(width, tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    for name, value in (("COLUMNS", str(width)), ("LINES", "40"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    study = read_definition(write_study(tmp_path))
    runs = list(runs_of(study, tmp_path / "folder", (0, 1), study.cells))
    threads = threading.active_count()
    table = ProgressTable(study, runs, jobs=1)
    table.started(runs[0])
    table.draw()
    drawn = terminal.getvalue()
    table.draw()
    assert terminal.getvalue() == drawn  # at most once a second
    result = {"metrics": {"val/top1": 0.5}, "config_sha256": runs[0].sha256, "seconds": 10.0}
    write_atomically(runs[0].result, json.dumps(result))
    table.finished(runs[0])
    assert threading.active_count() == threads  # workers are forked from this process
    table.close()
    frames = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue()).split("\r")
    lines = [line.rstrip() for frame in frames for line in frame.splitlines()]
    assert max(map(len, lines)) <= width
    if width == 80:
        assert "none           0.5         ." in lines
        assert "study: 1 of 4 runs finished, about 30 s left" in lines


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.44, "2.4 s"), (41, "41 s"), (719, "12 min"), (3 * 3600 + 1200, "3 h 20 min")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize("words", [[], ["run"], ["export"]])
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys\nfrom attention_vision.__main__ import main\n"
        f"try:\n    main(['study', *{words}, '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'lightning'} & set(sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "attention-vision study" in answer.stdout
