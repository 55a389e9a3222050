"""Runs what of a study is not finished yet: forked workers, or jobs of a cluster.

The parent imports torch and Lightning once; whatever is done with them happens in forked children,
so that a run costs no start-up, and nothing that one run leaves in memory reaches another.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from attention_vision.errors import InputError
from attention_vision.study.definition import Study, merge, read_definition
from attention_vision.study.folder import (
    Run,
    check_same_study,
    last_error,
    read_result,
    runs_of,
    write_study,
)
from attention_vision.study.progress_table import Table, costs
from attention_vision.yaml_json import Config, read_yaml, write_atomically

if TYPE_CHECKING:
    from attention_vision.study.preflight import Inspection

WANDB = "WeightsAndBiases"
FINISHED, FAILED, NO_METRIC, ELSEWHERE = 0, 1, 3, 4  # exit codes of a worker
RETRY_SECONDS = 2.0  # until a run that another runner holds is asked for again


@dataclass(frozen=True)
class Order:
    """What a user asks of a study.

    Args:
        file: the study file.
        folder: of the study; None is runs/studies/NAME.
        jobs: runs at a time; None is one per GPU, or one per core that a run's threads leave.
        seeds: in place of the file's.
        only: names of cells; all where none is given.
        profiles: files that are merged into every config, as a second -c of fit.
        launcher: local, slurm, or submitit (its local executor).
        submit: parameters of submitit's executor.
    """

    file: Path
    folder: Path | None = None
    jobs: int | None = None
    seeds: tuple[int, ...] | None = None
    only: tuple[str, ...] | None = None
    profiles: tuple[Path, ...] = ()
    launcher: str = "local"
    submit: tuple[str, ...] = ()


class Launcher(Protocol):
    """Starts runs, somewhere, and hears of their ends."""

    def free(self) -> bool:
        """Whether one more can be started now."""

    def start(self, run: Run, cost: dict[str, Any]) -> None: ...

    def ended(self, timeout: float) -> list[tuple[Run, int]]:
        """Runs that ended, with a worker's exit code; waits for one up to `timeout` seconds."""

    def stop(self) -> None:
        """Ends all that are running; they go on from their last checkpoint in another call."""


class Forked:
    """Workers on this machine, forked from this process; each GPU's jobs see that GPU alone.

    Args:
        jobs: at a time.
        threads: CPU threads of each.
        gpus: names for CUDA_VISIBLE_DEVICES; none on a CPU.
    """

    def __init__(self, jobs: int, threads: int, gpus: list[str]):
        self.places = list(range(jobs))
        self.threads, self.gpus = threads, gpus
        self.running: dict[BaseProcess, tuple[Run, int]] = {}

    def free(self) -> bool:
        return bool(self.places)

    def start(self, run: Run, cost: dict[str, Any]) -> None:
        from attention_vision.study.worker import forked

        place = self.places.pop(0)
        environment = {"OMP_NUM_THREADS": str(self.threads)}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        arguments = (run, cost, environment, os.getpid())
        process = multiprocessing.get_context("fork").Process(target=forked, args=arguments)
        process.start()
        self.running[process] = run, place

    def ended(self, timeout: float) -> list[tuple[Run, int]]:
        ended = []
        sentinels = {process.sentinel: process for process in self.running}
        for sentinel in wait(list(sentinels), timeout):
            process = sentinels[sentinel]
            process.join()
            run, place = self.running.pop(process)
            self.places.append(place)
            if process.exitcode < 0:
                name = signal.Signals(-process.exitcode).name
                write_atomically(run.error, f"ended by {name}: out of memory, perhaps\n")
            ended.append((run, process.exitcode))
        return ended

    def stop(self) -> None:
        for process in self.running:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has no group of its own yet, or is gone
                process.kill()
        for process in self.running:
            process.join()


def run_study(order: Order, dry_run: bool = False) -> int:
    """Runs a study to its end; returns 0, or 1 where runs failed.

    Every config is parsed and built, and the folder compared with the study, before anything is
    written. Finished runs are never run again; others go on from their last checkpoint. A run that
    another runner is at is left to it.

    Raises:
        InputError: whatever is wrong with the study, its folder or the call.
    """
    study = read_definition(order.file)
    folder = order.folder or Path("runs/studies") / study.name
    check_same_study(study, folder)
    seeds, cells = chosen(study, order)
    runs = list(runs_of(study, folder, seeds, cells))
    waiting = [run for run in runs if read_result(run) is None]
    if not waiting and not dry_run:
        print(f"all {len(runs)} runs of {study.name} are finished: {folder}")
        return 0

    profile: Config = {}
    for file in order.profiles:
        profile = merge(profile, read_yaml(file))
    configs = {name: merge(study.cells[name].config, profile) for name in cells}
    jobs, threads, gpus = share_machine(configs.values(), order.jobs, len(waiting))
    preload(study.task, threads)
    needed = cells if dry_run else [name for name in cells if any(name == r.cell for r in waiting)]
    asked = {name: configs[name] for name in needed}
    inspections, facts = inspect_all(study, asked, jobs, without_data=dry_run)
    if dry_run:
        print(costs(study, needed, inspections, seeds, waiting, jobs))
        return 0

    known = {}
    for name, inspection in inspections.items():
        if "flops" in study.budget:
            configs[name]["trainer"] |= {"max_epochs": -1, "max_steps": inspection.steps}
        keys = ("parameters", "macs", "peak_memory")
        known[name] = {key: getattr(inspection, key) for key in keys}
    write_study(study, folder, seeds, facts)
    for run in waiting:
        config = of_run(configs[run.cell], run, threads)
        write_atomically(run.config, yaml.safe_dump(config, sort_keys=False))
    launcher = choose_launcher(order, folder, jobs, threads, gpus)
    code = work_through(launcher, Table(study, runs, jobs), waiting, known)
    print(f"tables, intervals, verdicts: attention-vision study report {folder}")
    return code


def chosen(study: Study, order: Order) -> tuple[tuple[int, ...], list[str]]:
    """The seeds and cells to run.

    Raises:
        InputError: an unknown cell, or a seed that is given twice.
    """
    seeds = order.seeds or study.seeds
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise InputError(f"--seeds: {twice[0]} is there twice")
    for name in order.only or ():
        if name not in study.cells:
            raise InputError(
                f"--only {name}: {study.file} has no such cell: {', '.join(study.cells)}"
            )
    return seeds, [name for name in study.cells if not order.only or name in order.only]


def share_machine(
    configs: Iterable[Config], jobs: int | None, runs: int
) -> tuple[int, int, list[str]]:
    """Runs at a time, threads of each, and the GPUs they take turns on.

    A base that sets `threads` keeps it where the cores allow it: more threads add up numbers in
    another order, and a study should not depend on `--jobs`.
    """
    configs = list(configs)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wish = max((config.get("threads") or 0 for config in configs), default=0)
    trainers = [config.get("trainer") or {} for config in configs]
    on_gpu = all(one.get("accelerator", "auto") in ("auto", "gpu", "cuda") for one in trainers)
    gpus = visible_gpus() if on_gpu else []
    if jobs is None:
        jobs = len(gpus) or max(1, cores // max(1, wish))
    if jobs < 1:
        raise InputError(f"--jobs {jobs} is not positive")
    jobs = max(1, min(jobs, runs))
    threads = max(1, cores // jobs)
    return jobs, min(threads, wish) if wish else threads, gpus


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES, found without a CUDA context: forked processes need that."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    devices = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(devices.glob("*"))))]


def preload(task: str, threads: int) -> None:
    """Imports what all workers need, before they are forked; no thread must be started here."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import_module("attention_vision.study.worker")
    import_module(f"attention_vision.{task}")
    with suppress(ImportError):
        import_module("sklearn.datasets")  # the embedded digits


def inspect_all(
    study: Study, configs: dict[str, Config], jobs: int, without_data: bool
) -> tuple[dict[str, "Inspection"], dict[str, Any]]:
    """Each cell parsed, built and counted in a process of its own, `jobs` at a time.

    The first is alone: it may download the data. Returns what was found by name of the cell, and
    with what it was found: versions, hardware.

    Raises:
        InputError: the first cell, in the order of the study, that does not parse or build.
    """
    context = multiprocessing.get_context("fork")
    answers: dict[str, Any] = {}
    waiting, running = list(configs), {}
    while waiting or running:
        while waiting and len(running) < (jobs if answers else 1):
            name = waiting.pop(0)
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(
                target=answer, args=(writer, study, configs[name], without_data)
            )
            process.start()
            writer.close()
            running[reader] = name, process
        for reader in wait(list(running)):
            name, process = running.pop(reader)
            try:
                answers[name] = reader.recv()
            except EOFError:
                answers[name] = InputError("the process that built it died")
            process.join()
    for name in configs:
        if isinstance(error := answers[name], Exception):
            paths = ", ".join(study.cells[name].paths)
            raise InputError(f"{study.file}: cell {name}{f' ({paths})' if paths else ''}: {error}")
    return {name: found for name, (found, _) in answers.items()}, answers[next(iter(answers))][1]


def answer(writer: Connection, study: Study, config: Config, without_data: bool) -> None:
    """Sends the inspection of a cell, or the one line of its error."""
    import tempfile

    from attention_vision.errors import one_line
    from attention_vision.study.preflight import inspect
    from attention_vision.study.worker import facts, to_log

    to_log(Path(os.devnull))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "cell.yaml")
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        try:
            flops = study.budget.get("flops")
            writer.send((inspect(study.task, file, flops, without_data), facts()))
        except InputError as error:
            writer.send(InputError(one_line(error).replace(str(file), str(study.file))))
        except Exception as error:
            writer.send(InputError(f"{type(error).__name__}: {' '.join(str(error).split())}"))


def of_run(config: Config, run: Run, threads: int) -> Config:
    """The complete config of one run: its seed, its threads, its name in W&B."""
    config = {"seed_everything": run.seed, **config, "threads": threads}
    logger = (config.get("trainer") or {}).get("logger")
    if isinstance(logger, dict) and str(logger.get("class_path")).endswith(WANDB):
        names = {"group": run.study, "name": f"{run.cell}-seed{run.seed}"}
        logger = merge(logger, {"init_args": names})
        config["trainer"] = config["trainer"] | {"logger": logger}
    return config


def choose_launcher(
    order: Order, folder: Path, jobs: int, threads: int, gpus: list[str]
) -> Launcher:
    if order.launcher == "local":
        return Forked(jobs, threads, gpus)
    from attention_vision.study.slurm import Submitted

    return Submitted(folder / "jobs", order.launcher, order.jobs, order.submit)


def work_through(
    launcher: Launcher, table: Table, waiting: list[Run], known: dict[str, dict[str, Any]]
) -> int:
    """Starts, waits, shows; returns the exit code.

    Raises:
        InputError: no run logs the study's metric.
    """
    later: list[tuple[float, Run]] = []  # held by another runner: asked for again from then on
    failed: list[Run] = []
    try:
        while waiting or later or table.running:
            now = time.monotonic()
            waiting += [run for due, run in later if due <= now]
            later = [(due, run) for due, run in later if due > now]
            while waiting and launcher.free():
                run = waiting.pop(0)
                launcher.start(run, known[run.cell])
                table.started(run)
            for run, code in launcher.ended(timeout=0.5):
                if code == ELSEWHERE:
                    later.append((time.monotonic() + RETRY_SECONDS, run))
                    table.elsewhere(run)
                elif code == NO_METRIC:
                    raise InputError(last_error(run))
                elif code == FINISHED and run.result.is_file():
                    table.finished(run)
                else:
                    failed.append(run)
                    table.failed(run)
            table.draw()
    finally:
        launcher.stop()
        table.close()
    return 1 if failed else 0
