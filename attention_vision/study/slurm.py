"""Launcher of study runs as cluster jobs, through submitit."""

import time
from pathlib import Path
from typing import Any

from attention_vision.errors import InputError
from attention_vision.study.exit_code import ExitCode
from attention_vision.study.folder import Run, last_error
from attention_vision.yaml_json import write_atomically


class RunJob:
    """Job of one run; submitit queues it again after a preemption or the time limit."""

    def __call__(self, run: Run, cost: dict[str, Any]) -> int:
        from attention_vision.study.worker import run_worker

        return run_worker(run, cost, {})

    def checkpoint(self, run: Run, cost: dict[str, Any]) -> Any:
        """Return the submission that replaces an interrupted job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, run, cost)


class SubmititLauncher:
    """Launcher (`runner.Launcher`) that submits all jobs at once; the cluster queues them.

    `stop` does not cancel SLURM jobs: this process may end, another call finds the results, and
    the lock of a run prevents a second job.

    Args:
        folder: folder for submitit's scripts and logs.
        launcher: "slurm", or "submitit" for jobs on this machine.
        jobs: runs at a time; None is unlimited.
        submit: KEY=VALUE pairs for submitit's executor.

    Raises:
        InputError: submitit is not installed, or rejects a parameter.
    """

    def __init__(self, folder: Path, launcher: str, jobs: int | None, submit: tuple[str, ...]):
        try:
            from submitit import AutoExecutor
        except ImportError:
            raise InputError(
                f'--launcher {launcher} needs submitit: pip install "attention-vision[slurm]"'
            ) from None
        self.local = launcher == "submitit"
        self.jobs = jobs
        parameters = {"timeout_min": 24 * 60, **dict(map(parse_parameter, submit))}
        try:
            self.executor = AutoExecutor(str(folder), cluster="local" if self.local else "slurm")
            self.executor.update_parameters(**parameters)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise InputError(f"--launcher {launcher}: {' '.join(str(error).split())}") from error
        self.running: dict[Any, Run] = {}

    def free(self) -> bool:
        return self.jobs is None or len(self.running) < self.jobs

    def start(self, run: Run, cost: dict[str, Any]) -> None:
        self.running[self.executor.submit(RunJob(), run, cost)] = run

    def ended(self, timeout: float) -> list[tuple[Run, int]]:
        ended = []
        time.sleep(timeout)
        for job in [job for job in self.running if job.done()]:
            run = self.running.pop(job)
            error = job.exception()
            if error is not None and not last_error(run):
                write_atomically(run.error, f"job {job.job_id}: {' '.join(str(error).split())}\n")
            ended.append((run, ExitCode.FAILED if error is not None else job.result()))
        return ended

    def stop(self) -> None:
        if self.local:
            for job in self.running:
                job.cancel(check=False)


def parse_parameter(word: str) -> tuple[str, int | str]:
    """Parse KEY=VALUE; digits become an integer."""
    key, equals, value = word.partition("=")
    if not equals:
        raise InputError(f"--submit {word}: give KEY=VALUE, such as timeout_min=240")
    return key, int(value) if value.isdecimal() else value
