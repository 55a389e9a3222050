"""Number of runs that share a machine or a GPU best, found by trials of some seconds."""

import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol, cast

from attention_vision.errors import InputError
from attention_vision.study.folder import Run, last_error, write_config
from attention_vision.yaml_json import Config

GROWTH = 1.1  # of the steps per second, without which more runs at a time are not worth it
WARM_UP = 3  # steps of a run before it counts
SECONDS = 5.0  # that steps are counted for
PATIENCE = 300.0  # seconds until the first steps of all runs of a trial


@dataclass(frozen=True)
class Trial:
    """What a number of runs at a time did.

    Attributes:
        rate: steps per second of all of them together.
        memory: bytes that one of them needs at most.
        total: bytes that all of them may need; 0 where it is not known.
    """

    rate: float
    memory: int = 0
    total: int = 0


class Memory(Protocol):
    """The memory that runs share, asked from inside of one."""

    def used(self) -> int:
        """Bytes that this run has needed so far."""
        ...

    def total(self) -> int:
        """Bytes for all runs together; 0 where it is not known."""
        ...


class DeviceMemory:
    """Memory of the GPU that this process trains on, else of the machine.

    What others have on the GPU counts as the run's, of which all are then thought to have as much.
    """

    def used(self) -> int:
        import torch

        if torch.cuda.is_initialized():
            free, total = torch.cuda.mem_get_info()
            return total - free
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def total(self) -> int:
        import torch

        if torch.cuda.is_initialized():
            return torch.cuda.mem_get_info()[1]
        with suppress(OSError):
            for line in Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024 + self.used()
        return 0


def best_jobs(measure: Callable[[int], Trial], most: int) -> tuple[int, dict[int, Trial]]:
    """Double the runs at a time while their throughput grows and their memory suffices.

    Args:
        measure: tries a number of runs at a time; an InputError for more than one ends the search.
        most: runs at a time.

    Returns:
        The number of runs, and all trials by theirs.
    """
    jobs, trials = 1, {1: measure(1)}
    while (more := min(2 * jobs, most)) > jobs:
        if trials[1].total and more * trials[1].memory > trials[1].total:
            break
        try:
            trials[more] = measure(more)
        except InputError:
            break
        if trials[more].rate < GROWTH * trials[jobs].rate:
            break
        jobs = more
    return jobs, trials


def in_words(jobs: int, trials: dict[int, Trial]) -> str:
    """The result of `best_jobs` in a line."""
    tried = ", ".join(f"{number}: {trial.rate:.1f}" for number, trial in trials.items())
    gib = trials[1].memory / 2**30
    memory = f"; a run needs {gib:.1f} of {trials[1].total / 2**30:.1f} GiB"
    at_a_time = "run" if jobs == 1 else "runs"
    return (
        f"--jobs auto: {jobs} {at_a_time} at a time (steps per second of so many runs: {tried}"
        f"{memory if trials[1].total else ''})"
    )


def try_runs(
    run: Run,
    configs: Sequence[Config],
    environment: dict[str, str],
    memory: Memory | None = None,
    seconds: float = SECONDS,
) -> Trial:
    """Train copies of a run at a time, in folders that are removed, and count their steps.

    Args:
        run: of a study; its own folder is left alone.
        configs: complete config of each copy.
        environment: variables of the processes, such as their GPU.
        memory: that they share; of their device where none is given.
        seconds: that steps are counted for, once all copies have begun.

    Raises:
        InputError: a copy fails, or does not begin.
    """
    context = multiprocessing.get_context("fork")
    steps: Any = context.RawArray("q", len(configs))
    folder = Path(tempfile.mkdtemp(prefix="trial_of_a_study_"))
    processes: dict[Connection, Any] = {}
    copies, launched = [], time.monotonic()
    try:
        for number, config in enumerate(configs):
            copy = replace(run, folder=folder / f"{number}")
            copies.append(copy)
            copy.folder.mkdir()
            write_config(copy, config)
            reader, writer = context.Pipe(duplex=False)
            arguments = (
                copy, steps, number, writer, environment, memory or DeviceMemory(), os.getpid()
            )  # fmt: skip
            process = context.Process(target=trial_process, args=arguments)
            process.start()
            writer.close()
            processes[reader] = process
        needs = [begun(reader, copy) for reader, copy in zip(processes, copies, strict=True)]
        before, start = sum(steps), time.monotonic()
        wait([process.sentinel for process in processes.values()], seconds)  # or until one ends
        if sum(steps) == before:  # a copy has ended before others began
            before, start = 0, launched
        rate = (sum(steps) - before) / (time.monotonic() - start)
        return Trial(rate, max(used for used, _ in needs), needs[0][1])
    finally:
        for process in processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # where it does not lead a group yet
            process.join()
        shutil.rmtree(folder, ignore_errors=True)


def begun(reader: Connection, run: Run) -> tuple[int, int]:
    """Wait for the first steps of a copy; return the memory that it needs, and that there is."""
    try:
        if reader.poll(PATIENCE):
            return cast(tuple[int, int], reader.recv())
    except EOFError:
        reason = last_error(run) if run.error.is_file() else "its process died"
        raise InputError(f"--jobs auto: a trial of {run} failed: {reason}") from None
    raise InputError(
        f"--jobs auto: a trial of {run} did not begin in {PATIENCE:.0f} s: give a number of jobs"
    )


def trial_process(
    run: Run,
    steps: Any,
    number: int,
    writer: Connection,
    environment: dict[str, str],
    memory: Memory,
    parent: int,
) -> None:
    """Entry point of a copy: train, count the steps, and send the memory after the first."""
    from lightning.pytorch import Callback, LightningModule, Trainer

    from attention_vision.errors import one_line
    from attention_vision.runs.command import fit, prepare
    from attention_vision.study.worker import end_with, redirect_output
    from attention_vision.training.progress import quiet

    class Count(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
            steps[number] += 1
            if steps[number] == WARM_UP:
                writer.send((memory.used(), memory.total()))

    end_with(parent)
    os.environ.update(environment)
    redirect_output(run.folder / "log.txt")
    quiet()
    try:
        words = ["-c", str(run.config), "--run", str(run.folder)]
        fit(prepare(run.task, "fit", words, [Count()], hold_on=False))
        if steps[number] < WARM_UP:
            writer.send((memory.used(), memory.total()))
    except BaseException as error:
        text = one_line(error) if isinstance(error, InputError) else repr(error)
        run.error.write_text(f"{text}\n")
    writer.close()
