"""Runs and studies on a SLURM that the tests start: preempted, requeued, cancelled."""

import csv
import os
import re
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
SECONDS = 60  # for a job to start, train and end
PROFILE = Path(__file__).parents[2] / "experiments/profiles/slurm.yaml"
PAUSE = '''
"""Waits for the end of an attempt of a SLURM job, which the test or SLURM itself brings about."""
import os
import time
from pathlib import Path
from lightning.pytorch import Callback


class Pause(Callback):
    """In attempt n, wait behind step `steps[n]` until the callback that ends the run knows it."""

    def __init__(self, steps: list[int], mark: str):
        self.steps, self.mark = dict(enumerate(steps)), Path(mark)

    def on_train_batch_end(self, trainer, *_) -> None:
        attempt = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        if "SLURM_JOB_ID" not in os.environ or trainer.global_step != self.steps.get(attempt):
            return
        self.mark.with_suffix(f".{attempt}").touch()
        end = time.monotonic() + 60
        while not any(getattr(one, "received", None) for one in trainer.callbacks):
            assert time.monotonic() < end, "nobody ended this attempt"
            time.sleep(0.05)
'''


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster() as here:
        yield here


def wait_until(moment: Callable[[], object], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not moment():
        assert time.monotonic() < end, f"in {SECONDS} s there was {what}"
        time.sleep(0.1)


def paused(folder: Path, steps: list[int]) -> str:
    """Return BASE with a Pause; its module is written into the folder."""
    (folder / "pause.py").write_text(PAUSE)
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
    """One job is preempted, one cancelled; there is no word on the accounting that is off."""
    file, folder, printed = write_study(tmp_path, ONE_SEED), tmp_path / "folder", tmp_path / "out"
    words = ["run", file, "--folder", folder, "--launcher", "slurm"]
    words += ["--submit", "timeout_min=5"]
    process = command(*words, output=printed, environment=slurm.environment)
    process.join(SECONDS)
    print(printed.read_text())
    assert process.exitcode == 0
    assert outcome(folder) == outcome(whole)
