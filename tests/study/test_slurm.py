"""Runs and studies on a SLURM that the tests start: preempted, requeued, cancelled."""

import csv
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from slurm_cluster import Cluster, cluster, missing_daemons
from studies import BASE, ONE_SEED, command, outcome, write_study

pytestmark = pytest.mark.skipif(
    bool(missing_daemons()), reason=f"needs SLURM: {', '.join(missing_daemons())} not installed"
)
SECONDS = 180  # for a job to start, train and end
PROFILE = Path(__file__).parents[2] / "experiments/profiles/slurm.yaml"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster() as here:
        here.environment["PYTHONPATH"] = os.pathsep.join(sys.path)  # jobs find what the tests do
        yield here


def wait_until(moment: Callable[[], object], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not moment():
        assert time.monotonic() < end, f"in {SECONDS} s there was {what}"
        time.sleep(0.1)


def paused(folder: Path, steps: list[int]) -> str:
    """Return BASE with a Pause."""
    values = f"{{steps: {steps}, mark: {folder}/mark}}"
    callback = f"trainer:\n  callbacks: [{{class_path: pause.Pause, init_args: {values}}}]"
    return BASE.replace("trainer:", callback)


def curves(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.endswith("_per_second")} for row in rows]


def test_a_preempted_and_requeued_fit_is_the_run_that_was_not(slurm, tmp_path, monkeypatch):
    """Warned, as before its time is up; preempted for another job; requeued by an operator."""
    from attention_vision.__main__ import main

    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text(paused(tmp_path, [4, 7, 10]))
    words = f"classification fit -c one.yaml -c {PROFILE} --trainer.max_epochs 4"
    run = f"srun {sys.executable} -m attention_vision {words} --trainer.strategy auto"
    options = ["--partition=low", "--requeue", "--signal=SIGUSR1@60", "--time=10"]
    job = slurm.submit(*options, "--open-mode=append", "--output=job.txt", "--wrap", run)

    def log() -> str:
        return Path("job.txt").read_text() if Path("job.txt").exists() else "no output"

    wait_until(Path("mark.0").exists, "no fourth step")
    slurm.ask("scancel", "--signal=USR1", job)
    # Meanwhile, the same run without SLURM.
    words = words.replace(f"-c {PROFILE} ", "")
    assert main([*words.split(), "--run", "whole"]) == 0

    wait_until(Path("mark.1").exists, f"no second attempt: {log()}")
    slurm.submit("--partition=high", "--ntasks=4", "--output=other.txt", "--wrap", "sleep 1")
    wait_until(Path("mark.2").exists, f"no third attempt: {log()}")
    slurm.ask("scontrol", "requeue", job)
    wait_until(lambda: job not in slurm.jobs(), f"no end of the job: {log()}")
    folder = Path(f"runs/classification/slurm{job}_one")
    assert [path.name for path in Path("runs/classification").iterdir()] == [folder.name]
    assert log().count("Restored all states") == 3, log()
    assert "Traceback" not in log()
    assert curves(folder) == curves(Path("whole"))
    states = [
        torch.load(one / "checkpoints/last.ckpt", weights_only=True)
        for one in (folder, Path("whole"))
    ]
    assert states[0]["global_step"] == states[1]["global_step"] == 12
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)


def test_a_study_of_jobs_gives_the_numbers_of_one_of_this_machine(slurm, whole, tmp_path):
    """One job is warned and queued again, one is cancelled, as the line on it says."""
    file, folder, printed = write_study(tmp_path, ONE_SEED), tmp_path / "folder", tmp_path / "out"
    (tmp_path / "base.yaml").write_text(paused(tmp_path, [3]))
    words = ["--launcher", "slurm", "--submit", "timeout_min=5"]
    process = command(
        "run", file, "--folder", folder, *words, output=printed, environment=slurm.environment
    )
    wait_until(lambda: len(slurm.jobs()) == 2, "no two jobs")
    none, se = sorted(slurm.jobs(), key=int)
    slurm.ask("scancel", none)
    wait_until((tmp_path / "mark.0").exists, "no third step")
    slurm.ask("scancel", "--signal=USR2", se)
    process.join(SECONDS)
    lines = printed.read_text().splitlines()
    assert process.exitcode == 1  # of the run that was cancelled
    assert [line.partition(":")[0] for line in lines if "seed 0" in line][:4] == [
        *("started   none seed 0", "started   se seed 0"),
        *("failed    none seed 0", "finished  se seed 0"),
    ]
    assert f"job {none}: it left the queue without a result" in printed.read_text()
    assert len(lines) < 20
    assert "sacct" not in printed.read_text()
    log = (folder / "cells/se/seed0/log.txt").read_text()
    assert log.count("Restored all states") == 1
    shutil.rmtree(folder / "cells/none")
    assert outcome(folder) == {"se seed0": outcome(whole)["se seed0"]}
