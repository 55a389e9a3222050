"""Runs the unfinished runs of a study in forked workers or as cluster jobs.

The parent process imports torch and Lightning once and uses them in forked children only: a run
has no start-up time, and the memory of one run does not affect another.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import yaml

from attention_vision.errors import InputError
from attention_vision.identity import code, data_difference
from attention_vision.report.power import sentences
from attention_vision.study.definition import Study, merge, read_definition, with_profile
from attention_vision.study.exit_code import ExitCode
from attention_vision.study.folder import (
    Run,
    begun,
    bring_back,
    check_same_study,
    finished_result,
    last_error,
    other_configuration,
    runs_of,
    set_aside,
    write_config,
    write_study,
)
from attention_vision.study.pilot import pilots, power_text, study_power
from attention_vision.study.progress_table import ProgressTable, cost_table
from attention_vision.study.sharing import Trial, best_jobs, in_words, try_runs
from attention_vision.yaml_json import Config, read_json, read_yaml, to_json, write_atomically

if TYPE_CHECKING:
    from attention_vision.study.preflight import Preflight

WANDB = "WeightsAndBiases"
RETRY_SECONDS = 2.0  # until a run that another runner holds is tried again


@dataclass(frozen=True)
class StudyRequest:
    """Arguments of `attention-vision study run`.

    Args:
        file: the study file.
        folder: folder of the study; None is runs/studies/NAME.
        jobs: runs at a time; None is one per GPU, or as many as the cores and a run's threads
            allow; "auto" tries how many share the machine, or each GPU, best.
        seeds: seeds in place of those of the file.
        only: names of the cells to run; None is all.
        profiles: files that are merged into every config, as a second -c of fit.
        launcher: local, slurm, or submitit (its local executor).
        submit: parameters of submitit's executor.
    """

    file: Path
    folder: Path | None = None
    jobs: int | Literal["auto"] | None = None
    seeds: tuple[int, ...] | None = None
    only: tuple[str, ...] | None = None
    profiles: tuple[Path, ...] = ()
    launcher: str = "local"
    submit: tuple[str, ...] = ()


class Launcher(Protocol):
    """Interface that starts runs and reports their ends."""

    def free(self) -> bool:
        """Whether another run can be started now."""
        ...

    def start(self, run: Run, cost: dict[str, Any]) -> None:
        """Start a run; `cost` is what is known of its cell, see `worker.train`."""
        ...

    def ended(self, timeout: float) -> list[tuple[Run, int]]:
        """Return ended runs with their exit codes; wait up to `timeout` seconds for one."""
        ...

    def stop(self) -> None:
        """Stop all running runs; another call resumes them from their last checkpoints."""
        ...


class LocalLauncher:
    """Launcher of workers on this machine, forked from this process.

    Args:
        jobs: runs at a time.
        threads: CPU threads per run.
        gpus: names for CUDA_VISIBLE_DEVICES, one per run in turn; empty on a CPU.
    """

    def __init__(self, jobs: int, threads: int, gpus: list[str]):
        self.slots = list(range(jobs))
        self.threads, self.gpus = threads, gpus
        self.running: dict[BaseProcess, tuple[Run, int]] = {}

    def free(self) -> bool:
        return bool(self.slots)

    def start(self, run: Run, cost: dict[str, Any]) -> None:
        from attention_vision.study.worker import worker_process

        slot = self.slots.pop(0)
        environment = {"OMP_NUM_THREADS": str(self.threads)}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        arguments = (run, cost, environment, os.getpid())
        context = multiprocessing.get_context("fork")
        process = context.Process(target=worker_process, args=arguments)
        process.start()
        self.running[process] = run, slot

    def ended(self, timeout: float) -> list[tuple[Run, int]]:
        ended = []
        sentinels: dict[Any, BaseProcess] = {one.sentinel: one for one in self.running}
        for sentinel in wait(list(sentinels), timeout):
            process = sentinels[sentinel]
            process.join()
            run, slot = self.running.pop(process)
            self.slots.append(slot)
            code = cast(int, process.exitcode)  # of a process that has ended
            if code < 0:
                name = signal.Signals(-code).name
                write_atomically(run.error, f"killed by {name}, perhaps out of memory\n")
            ended.append((run, code))
        return ended

    def stop(self) -> None:
        for process in self.running:
            try:
                os.killpg(cast(int, process.pid), signal.SIGKILL)
            except ProcessLookupError:  # not yet the leader of a group, or ended
                process.kill()
        for process in self.running:
            process.join()


def run_study(request: StudyRequest, dry_run: bool = False) -> int:
    """Run all unfinished runs of a study; return 0, or 1 if runs failed.

    Every config is parsed and built, and the folder is compared with the study, before anything is
    written. Finished runs are skipped, others resume from their last checkpoint. Those of another
    configuration are set aside, and run again; they return with their configuration. A run that
    another runner holds is left to it.

    Args:
        request: the study file and the options of the command.
        dry_run: print the expected cost, run nothing.

    Raises:
        InputError: a mistake in the study file, its folder or the request.
    """
    profile: Config = {}
    for file in request.profiles:
        profile = merge(profile, read_yaml(file))
    study = with_profile(read_definition(request.file), profile)
    folder = request.folder or Path("runs/studies") / study.name
    check_same_study(study, folder)
    seeds, cells = select_runs(study, request)
    runs = list(runs_of(study, folder, seeds, cells))
    others = {run: words for run in runs if (words := other_configuration(run, study))}
    back = [run for run in runs if run.aside.folder.is_dir() and (run in others or not begun(run))]
    places = {run: run for run in runs if run not in others} | {run: run.aside for run in back}
    results = {run: finished_result(place) for run, place in places.items()}
    waiting = [run for run in runs if results.get(run) is None]
    if not waiting and not dry_run:
        settle_folder(study, folder, others, back)
        announce(write_study(study, folder, seeds, {}))
        print(f"all {len(runs)} runs of {study.name} are finished: {folder}")
        return 0

    configs = {name: study.cells[name].config for name in cells}
    measures = request.jobs == "auto"
    if measures and request.launcher != "local":
        raise InputError(f"--jobs auto tries this machine: give a number to {request.launcher}")
    asked = None if request.jobs == "auto" else request.jobs
    jobs, threads, gpus = share_machine(configs.values(), asked, len(waiting))
    preload(study.task, threads)
    unfinished = {run.cell for run in waiting}
    needed = cells if dry_run else [name for name in cells if name in unfinished]
    known = {} if dry_run else known_preflights(study, folder, needed)
    # One cell of each data set is opened anew: the data may have changed.
    opened = {repr(configs[name].get("data")): name for name in reversed(needed)}.values()
    checked = {n: configs[n] for n in needed if n not in known or n in opened}
    fresh, facts = run_preflights(study, checked, jobs, without_data=dry_run)
    preflights = {name: fresh.get(name) or known[name] for name in needed}
    values = values_of(study.metric, results)
    images = preflights[needed[0]].evaluated if study.metric.startswith("val/") else None
    power = study_power(study, pilots(study, folder, values), images)
    if dry_run:
        print(cost_table(study, needed, preflights, seeds, waiting, jobs))
        if study.expect:
            print(f"\n{power_text(study, power)}")
        return 0

    refuse_other_data(study, results, {name: one.data for name, one in fresh.items()})
    if power and not power[0].decides:
        print(sentences(power[0])[-1], flush=True)
    settle_folder(study, folder, others, back)
    costs = {}
    for name, preflight in preflights.items():
        if "flops" in study.budget:
            configs[name]["trainer"] |= {"max_epochs": -1, "max_steps": preflight.steps}
        keys = ("parameters", "macs", "peak_memory")
        costs[name] = {key: getattr(preflight, key) for key in keys}
    announce(write_study(study, folder, seeds, facts))
    for name, preflight in fresh.items():
        write_preflight(study, folder, name, preflight)
    if measures:
        jobs = measured_jobs(waiting, configs)
        jobs, threads, gpus = share_machine(configs.values(), jobs, len(waiting))
    for run in waiting:
        write_config(run, run_config(configs[run.cell], run, threads))
    launcher = make_launcher(request, folder, jobs, threads, gpus)
    failed = execute_runs(launcher, ProgressTable(study, runs, jobs), waiting, costs)
    print(f"tables, intervals, verdicts: attention-vision study report {folder}")
    return failed


def values_of(
    metric: str, results: dict[Run, dict[str, Any] | None]
) -> dict[str, dict[int | None, float]]:
    """Values of a metric of the finished runs, by cell and seed."""
    values: dict[str, dict[int | None, float]] = {}
    for run, result in results.items():
        if result is not None:
            values.setdefault(run.cell, {})[run.seed] = result["metrics"][metric]
    return values


def known_preflights(study: Study, folder: Path, cells: Iterable[str]) -> dict[str, "Preflight"]:
    """Read the preflights of cells that were begun with this configuration and this code."""
    from attention_vision.study.preflight import Preflight

    known = {}
    for name in cells:
        file = folder / "preflights" / f"{name}.json"
        with suppress(OSError, InputError, KeyError, TypeError):  # it is measured again
            content = read_json(file)
            identity = content["config_sha256"], content["code"]
            if identity == (study.cells[name].sha256, code()):
                known[name] = Preflight(**content["preflight"])
    return known


def write_preflight(study: Study, folder: Path, cell: str, preflight: "Preflight") -> None:
    """Write the preflight of a cell, for the next `study run`."""
    identity = {"config_sha256": study.cells[cell].sha256, "code": code()}
    content = identity | {"preflight": vars(preflight)}
    write_atomically(folder / "preflights" / f"{cell}.json", to_json(content))


def settle_folder(study: Study, folder: Path, others: dict[Run, str], back: list[Run]) -> None:
    """Set aside the runs of other configurations, bring back those of this one, and say so."""
    by_words: dict[str, list[Run]] = {}
    for run, words in others.items():
        by_words.setdefault(words, []).append(run)
        set_aside(run)
    for words, runs in by_words.items():
        print(
            f"{listed(runs)}: another configuration ({words}); kept in {folder / 'earlier'}",
            flush=True,
        )
    for run in back:
        bring_back(run)
    if back:
        print(f"{listed(back)}: back from {folder / 'earlier'}, of this configuration", flush=True)
    if study.profile:
        changes = ", ".join(f"{key} {value}" for key, value in study.profile.items())
        print(f"the profile changes the training, which the report says: {changes}", flush=True)


def announce(changes: str) -> None:
    """Print what the study file asks for now, if it is something else than before."""
    if changes:
        print(f"the study file asks for {changes}: the report follows it", flush=True)


def listed(runs: Sequence[Run], shown: int = 4) -> str:
    """Name the first of several runs."""
    more = f" and {len(runs) - shown} more" if len(runs) > shown else ""
    return ", ".join(map(str, runs[:shown])) + more


def refuse_other_data(
    study: Study, results: dict[Run, dict[str, Any] | None], data: dict[str, dict[str, Any]]
) -> None:
    """Refuse to run cells on other data than their study's finished runs had.

    Args:
        study: the expanded study file.
        results: by run, None before it has finished.
        data: fingerprint of the data at hand, by the name of each cell that is to run.

    Raises:
        InputError: the data of a cell is not that of finished runs with the same data config.
    """
    for name, here in data.items():
        node, differing = study.cells[name].config.get("data"), {}
        for run, result in results.items():
            if result is None or study.cells[run.cell].config.get("data") != node:
                continue
            if words := data_difference(result.get("data") or {}, here):
                differing.setdefault(words, []).append(run)
        for words, runs in differing.items():
            raise InputError(
                f"{study.file}: cell {name}: the data is not that of finished runs"
                f" ({listed(runs)}): {words}; restore it, or give another --folder"
            )


def select_runs(study: Study, request: StudyRequest) -> tuple[tuple[int, ...], list[str]]:
    """Return the seeds and cells to run.

    Raises:
        InputError: an unknown cell, or a duplicate seed.
    """
    seeds = request.seeds or study.seeds
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise InputError(f"--seeds: duplicate seed {twice[0]}")
    for name in request.only or ():
        if name not in study.cells:
            raise InputError(
                f"--only {name}: {study.file} has no such cell, only {', '.join(study.cells)}"
            )
    return seeds, [name for name in study.cells if not request.only or name in request.only]


def share_machine(
    configs: Iterable[Config], jobs: int | None, runs: int
) -> tuple[int, int, list[str]]:
    """Return the number of runs at a time, the threads of each, and the GPUs they use in turn.

    A base that sets `threads` keeps them if the cores suffice: the number of threads changes the
    order of sums, and results should not depend on `--jobs`.

    Args:
        configs: complete configs of the cells.
        jobs: requested number of runs at a time; None for as many as this machine allows.
        runs: number of runs to do.
    """
    configs = list(configs)
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    requested = max((config.get("threads") or 0 for config in configs), default=0)
    trainers = [config.get("trainer") or {} for config in configs]
    on_gpu = all(one.get("accelerator", "auto") in ("auto", "gpu", "cuda") for one in trainers)
    gpus = visible_gpus() if on_gpu else []
    wanted = len(gpus) or max(1, cores // max(1, requested)) if jobs is None else jobs
    if wanted < 1:
        raise InputError(f"--jobs {wanted} is not positive")
    at_a_time = max(1, min(wanted, runs))
    threads = max(1, cores // at_a_time)
    return at_a_time, min(threads, requested) if requested else threads, gpus


def measured_jobs(waiting: Sequence[Run], configs: dict[str, Config]) -> int:
    """Try how many copies of the first run share the machine, or each of its GPUs, best.

    Args:
        waiting: the runs to do.
        configs: complete configs by the name of the cell.
    """
    first = waiting[0]
    most, _, gpus = share_machine(configs.values(), None, len(waiting))
    groups = len(gpus) or 1
    if gpus:
        most = -(-len(waiting) // groups)  # of one GPU: the cores do not bound them
    environment = {"CUDA_VISIBLE_DEVICES": gpus[0]} if gpus else {}

    def measure(jobs: int) -> Trial:
        _, threads, _ = share_machine(configs.values(), jobs * groups, jobs * groups)
        config = run_config(configs[first.cell], first, threads)
        config["trainer"] = (config.get("trainer") or {}) | {"logger": False}
        return try_runs(first, [config] * jobs, environment | {"OMP_NUM_THREADS": str(threads)})

    if most == 1:
        print("--jobs auto: 1 run at a time, there are no more runs or cores", flush=True)
        return groups
    jobs, trials = best_jobs(measure, most)
    print(in_words(jobs, trials) + (f", on each of {groups} GPUs" * (groups > 1)), flush=True)
    return jobs * groups


def visible_gpus() -> list[str]:
    """Return names for CUDA_VISIBLE_DEVICES, without a CUDA context: it does not survive forks."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    devices = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(devices.glob("*"))))]


def preload(task: str, threads: int) -> None:
    """Import what all workers need before they are forked; this must not start a thread."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import_module("attention_vision.study.worker")
    import_module(f"attention_vision.{task}")
    with suppress(ImportError):
        import_module("sklearn.datasets")  # the embedded digits


def run_preflights(
    study: Study, configs: dict[str, Config], jobs: int, without_data: bool
) -> tuple[dict[str, "Preflight"], dict[str, Any]]:
    """Parse, build and measure each cell in its own process, `jobs` at a time.

    The first process runs alone, since it may download the data.

    Args:
        study: the expanded study file.
        configs: complete configs by name of the cell.
        jobs: processes at a time.
        without_data: whether missing data is accepted.

    Returns:
        The preflights by name of the cell; versions, hardware and commit.

    Raises:
        InputError: a cell does not parse or build; the first one in the order of the study.
    """
    context = multiprocessing.get_context("fork")
    received: dict[str, Any] = {}
    waiting: list[str] = list(configs)
    running: dict[Any, tuple[str, BaseProcess]] = {}
    while waiting or running:
        while waiting and len(running) < (jobs if received else 1):
            name = waiting.pop(0)
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(
                target=send_preflight, args=(writer, study, configs[name], without_data)
            )
            process.start()
            writer.close()
            running[reader] = name, process
        ready: list[Any] = wait(list(running))
        for reader in ready:
            name, process = running.pop(reader)
            try:
                received[name] = reader.recv()
            except EOFError:
                received[name] = InputError("the process that built it died")
            process.join()
    for name in configs:
        if isinstance(error := received[name], Exception):
            paths = ", ".join(study.cells[name].paths)
            raise InputError(f"{study.file}: cell {name}{f' ({paths})' if paths else ''}: {error}")
    _, facts = next(iter(received.values()))
    return {name: preflight for name, (preflight, _) in received.items()}, facts


def send_preflight(writer: Connection, study: Study, config: Config, without_data: bool) -> None:
    """Send the preflight of a cell with `worker.facts`, or its error as one line."""
    import tempfile

    from attention_vision.errors import one_line
    from attention_vision.study.preflight import run_preflight
    from attention_vision.study.worker import facts, redirect_output

    redirect_output(Path(os.devnull))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "cell.yaml")
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        try:
            flops = study.budget.get("flops")
            writer.send((run_preflight(study.task, file, flops, without_data), facts()))
        except InputError as error:
            writer.send(InputError(one_line(error).replace(str(file), str(study.file))))
        except Exception as error:
            writer.send(InputError(f"{type(error).__name__}: {' '.join(str(error).split())}"))


def run_config(config: Config, run: Run, threads: int) -> Config:
    """Return the complete config of a run, with its seed, threads and W&B name."""
    config = {"seed_everything": run.seed, **config, "threads": threads}
    logger = (config.get("trainer") or {}).get("logger")
    if isinstance(logger, dict) and str(logger.get("class_path")).endswith(WANDB):
        names = {"group": run.study, "name": f"{run.cell}-seed{run.seed}"}
        logger = merge(logger, {"init_args": names})
        config["trainer"] = config["trainer"] | {"logger": logger}
    return config


def make_launcher(
    request: StudyRequest, folder: Path, jobs: int, threads: int, gpus: list[str]
) -> Launcher:
    """Build the launcher of a request."""
    if request.launcher == "local":
        return LocalLauncher(jobs, threads, gpus)
    from attention_vision.study.slurm import SubmititLauncher

    jobs_of_cluster = None if request.jobs == "auto" else request.jobs
    return SubmititLauncher(folder / "jobs", request.launcher, jobs_of_cluster, request.submit)


def execute_runs(
    launcher: Launcher, table: ProgressTable, waiting: list[Run], costs: dict[str, dict[str, Any]]
) -> int:
    """Start the runs, wait for their ends and show the progress; return the exit code.

    Args:
        launcher: starts the runs.
        table: shows the progress.
        waiting: the runs to do, in this order.
        costs: what is known of each cell, by its name, see `worker.train`.

    Raises:
        InputError: no run logs the study's metric.
    """
    later: list[tuple[float, Run]] = []  # held by another runner, with the time of the next try
    failed: list[Run] = []
    try:
        while waiting or later or table.running:
            now = time.monotonic()
            waiting += [run for due, run in later if due <= now]
            later = [(due, run) for due, run in later if due > now]
            while waiting and launcher.free():
                run = waiting.pop(0)
                launcher.start(run, costs[run.cell])
                table.started(run)
            for run, code in launcher.ended(timeout=0.5):
                if code == ExitCode.LOCKED:
                    later.append((time.monotonic() + RETRY_SECONDS, run))
                    table.elsewhere(run)
                elif code == ExitCode.NO_METRIC:
                    raise InputError(last_error(run))
                elif code == ExitCode.FINISHED and run.result.is_file():
                    table.finished(run)
                else:
                    failed.append(run)
                    table.failed(run)
            table.draw()
    finally:
        launcher.stop()
        table.close()
    return 1 if failed else 0
