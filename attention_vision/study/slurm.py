"""Launcher of study runs as cluster jobs, through submitit."""

import subprocess
import time
from pathlib import Path
from typing import Any

from attention_vision.errors import InputError
from attention_vision.study.exit_code import ExitCode
from attention_vision.study.folder import Run, last_error
from attention_vision.yaml_json import write_atomically

QUEUE_SECONDS = 5.0  # between two looks into the queue


class RunJob:
    """Job of one run; submitit queues it again after a preemption or the time limit."""

    def __init__(self) -> None:
        self.is_requeued = False

    def __call__(self, run: Run, cost: dict[str, Any]) -> int:
        """Return the exit code of the worker; a job that is queued again has none."""
        from attention_vision.study.worker import run_worker

        code = run_worker(run, cost, {})
        if self.is_requeued:  # submitit has ended the worker by SystemExit, which is not a failure
            run.error.unlink(missing_ok=True)
            raise SystemExit(code)
        return code

    def checkpoint(self, run: Run, cost: dict[str, Any]) -> Any:
        """Return the submission that replaces an interrupted job."""
        from submitit.helpers import DelayedSubmission

        self.is_requeued = True
        return DelayedSubmission(RunJob(), run, cost)


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
        self.asked = 0.0  # when the queue was read
        self.left: set[Any] = set()  # jobs that were not in it

    def free(self) -> bool:
        return self.jobs is None or len(self.running) < self.jobs

    def start(self, run: Run, cost: dict[str, Any]) -> None:
        """Submit a run. Raises InputError with the cluster's words where it takes no such job."""
        from submitit.core.utils import FailedJobError

        try:
            job = self.executor.submit(RunJob(), run, cost)
        except FailedJobError as error:
            raise InputError(f"--submit: {' '.join(str(error).split())}") from error
        self.running[job] = run

    def ended(self, timeout: float) -> list[tuple[Run, int]]:
        time.sleep(timeout)
        codes = [(job, self._exit_code(job)) for job in self._ended_jobs()]
        return [(self.running.pop(job), code) for job, code in codes]

    def _ended_jobs(self) -> list[Any]:
        """Return jobs with a result, and those that have left the queue without one.

        submitit itself asks `sacct`, which knows nothing on a cluster without accounting: there a
        job that was cancelled would run forever.
        """
        if self.local:
            return [job for job in self.running if job.done()]
        left: set[Any] = set()
        if time.monotonic() - self.asked > QUEUE_SECONDS:
            self.asked, queued = time.monotonic(), queued_jobs()
            missing = {
                job for job in self.running if queued is not None and job.job_id not in queued
            }
            # Seen twice, since a shared disk may show a result late.
            left, self.left = missing & self.left, missing
        return [job for job in self.running if job in left or job.paths.result_pickle.exists()]

    def _exit_code(self, job: Any) -> int:
        """Return the code of a worker; of a job that failed outside of it, write the error too."""
        run = self.running[job]
        if self.local or job.paths.result_pickle.exists():
            error = job.exception()
        else:
            error = f"it left the queue without a result, see {job.paths.stderr}"
        if error is None:
            return job.result()
        if not last_error(run):
            write_atomically(run.error, f"job {job.job_id}: {' '.join(str(error).split())}\n")
        return ExitCode.FAILED

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


def queued_jobs() -> set[str] | None:
    """Return the numbers of the user's jobs that wait or run; None if SLURM does not answer."""
    command = ["squeue", "--me", "--noheader", "--format=%i"]
    answer = subprocess.run(command, capture_output=True, text=True)
    return None if answer.returncode else set(answer.stdout.split())
