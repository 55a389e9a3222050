"""`study run --jobs auto`: how many runs share a machine, by trials."""

import multiprocessing
import os
from pathlib import Path

import pytest
from studies import ONE_SEED, outcome, run, workers_left, write_study

from attention_vision.__main__ import main
from attention_vision.errors import InputError
from attention_vision.study import runner
from attention_vision.study.definition import read_definition
from attention_vision.study.folder import runs_of
from attention_vision.study.sharing import Trial, begun, best_jobs, in_words


@pytest.mark.parametrize(
    ("rates", "most", "expected", "tried"),
    [
        ({1: 10, 2: 19, 4: 30, 8: 31}, 16, 4, [1, 2, 4, 8]),
        ({1: 10, 2: 10.9}, 16, 1, [1, 2]),
        ({1: 10, 2: 11}, 2, 2, [1, 2]),
        ({1: 10, 2: 19, 3: 28}, 3, 3, [1, 2, 3]),
        ({1: 10}, 1, 1, [1]),
        ({1: 10, 2: 19, 4: None}, 16, 2, [1, 2]),  # four fail, perhaps out of memory
    ],
)
def test_more_runs_while_they_are_faster_together(rates, most, expected, tried) -> None:
    def measure(jobs: int) -> Trial:
        if rates[jobs] is None:
            raise InputError("a trial failed")
        return Trial(rates[jobs])

    jobs, trials = best_jobs(measure, most)
    assert (jobs, list(trials)) == (expected, tried)


@pytest.mark.parametrize(("memory", "expected"), [(11, 8), (25, 4), (26, 2), (51, 1), (101, 1)])
def test_no_more_runs_are_tried_than_the_memory_holds(memory, expected) -> None:
    jobs, trials = best_jobs(lambda jobs: Trial(10.0 * jobs, memory, 100), 8)
    assert jobs == expected == max(trials)


def test_one_run_that_fails_is_an_error() -> None:
    def measure(jobs: int) -> Trial:
        raise InputError(f"a trial of {jobs} failed")

    with pytest.raises(InputError, match="a trial of 1 failed"):
        best_jobs(measure, 4)


def test_the_result_in_a_line() -> None:
    gib = 2**30
    assert in_words(2, {1: Trial(10, gib, 4 * gib), 2: Trial(19.04, gib, 4 * gib)}) == (
        "--jobs auto: 2 runs at a time (steps per second of so many runs: 1: 10.0, 2: 19.0; a run"
        " needs 1.0 of 4.0 GiB)"
    )


@pytest.fixture
def waiting(tmp_path: Path) -> tuple:
    study = read_definition(write_study(tmp_path))
    configs = {name: cell.config for name, cell in study.cells.items()}
    return list(runs_of(study, tmp_path / "folder", range(8), configs)), configs


def test_each_gpu_is_shared_by_as_many(waiting, monkeypatch, capsys) -> None:
    runs, configs = waiting
    for config in configs.values():
        config["trainer"] = config["trainer"] | {"accelerator": "gpu"}
    tried = []

    def try_runs(first, copies, environment) -> Trial:
        tried.append((first, len(copies), environment["CUDA_VISIBLE_DEVICES"]))
        assert all(copy["trainer"]["logger"] is False for copy in copies)
        return Trial(min(len(copies), 2), 1, 100)

    monkeypatch.setattr(runner, "try_runs", try_runs)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert runner.measured_jobs(runs, configs) == 4
    assert tried == [(runs[0], 1, "3"), (runs[0], 2, "3"), (runs[0], 4, "3")]
    assert "2 runs at a time" in capsys.readouterr().out


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is not divided")
def test_a_study_tries_and_runs(whole, tmp_path) -> None:
    """The trials leave nothing, and the runs have the numbers of any other number of jobs."""
    file, folder = write_study(tmp_path, ONE_SEED), tmp_path / "folder"
    code, printed = run(file, "--folder", folder, "--jobs", "auto", output=tmp_path / "printed")
    assert code == 0, printed
    (line,) = [line for line in printed.splitlines() if line.startswith("--jobs auto: ")]
    assert "at a time (steps per second of so many runs: 1: " in line
    assert ", 2: " in line
    assert "GiB)" in line
    found, expected = outcome(folder), outcome(whole)
    assert {name: metrics for name, (metrics, _) in found.items()} == {
        name: metrics for name, (metrics, _) in expected.items()
    }
    assert workers_left(folder) == []


@pytest.mark.parametrize(("error", "reason"), [("no such file", "no such file"), (None, "died")])
def test_a_trial_that_fails_is_one_line(error, reason, waiting) -> None:
    first = waiting[0][0]
    first.folder.mkdir(parents=True)
    if error:
        first.error.write_text(f"{error}\n")
    reader, writer = multiprocessing.Pipe(duplex=False)
    writer.close()
    with pytest.raises(InputError, match=f"--jobs auto: a trial of none seed 0 failed: .*{reason}"):
        begun(reader, first)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--jobs", "many"], "'many' is neither a number nor auto"),
        (["--jobs", "auto", "--launcher", "slurm"], "--jobs auto tries this machine"),
    ],
)
def test_a_mistake_about_auto_is_one_line(words, line, tmp_path, capsys) -> None:
    file = write_study(tmp_path)
    try:
        code = main(["study", "run", str(file), "--folder", str(tmp_path / "folder"), *words])
    except SystemExit as stop:
        code = stop.code
    assert code in (1, 2)
    printed = capsys.readouterr().err
    assert line in printed
    assert printed.count("\n") == 1
