"""What a study measured, read from its folder or a results file, with nothing heavy imported."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attention_vision.errors import InputError
from attention_vision.report.statistics import Expectation, Values
from attention_vision.yaml_json import read_json, take

COSTS = ("parameters", "macs", "images_per_second", "peak_memory", "seconds")


@dataclass(frozen=True)
class Run:
    """One training run of a study.

    Args:
        cell: the variant.
        seed: None where nothing is drawn at random, as in a count of parameters.
        metrics: by logged key, in the key's unit; None where a number is not defined.
        cost: by the names of `COSTS`, as far as known; bytes and seconds.
        folder: the run folder; None in a results file.
    """

    cell: str
    seed: int | None
    metrics: dict[str, float | None]
    cost: dict[str, float | None]
    folder: Path | None = None


@dataclass(frozen=True)
class MeasuredStudy:
    """A study and the runs of it that have finished.

    Args:
        name: stem of its file.
        seeds: those it asks for, or those there are.
        cells: names in the order of the study.
        waiting: what there is of runs without a result: (cell, seed) -> last line of an error, or
            an empty text.
        facts: hardware, versions, budget and the like, as text by title.
        notes: sentences that came with the numbers.
    """

    name: str
    question: str
    task: str
    metric: str
    higher_is_better: bool
    baseline: str
    expect: list[Expectation]
    seeds: list[int | None]
    cells: list[str]
    runs: list[Run]
    waiting: dict[tuple[str, int | None], str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether nothing in it is drawn at random."""
        return all(run.seed is None for run in self.runs)

    def values(self, cell: str, metric: str | None = None) -> Values:
        """By seed; without runs whose number is missing or not finite."""
        metric = metric or self.metric
        numbers = {run.seed: run.metrics.get(metric) for run in self.runs if run.cell == cell}
        return {seed: value for seed, value in numbers.items() if defined(value)}

    def cost(self, cell: str, name: str) -> float | None:
        """The mean over the runs that know it."""
        known = [run.cost.get(name) for run in self.runs if run.cell == cell]
        known = [value for value in known if defined(value)]
        return sum(known) / len(known) if known else None

    def metrics(self) -> list[str]:
        """The logged keys, in the order in which runs give them."""
        return list(dict.fromkeys(key for run in self.runs for key in run.metrics))

    def curves(self, cell: str, metric: str) -> dict[int | None, list[tuple[int, float]]]:
        """By seed, (step, value) of the runs that left a metrics.csv with this metric."""
        read = {run.seed: curve(run.folder, metric) for run in self.runs if run.cell == cell}
        return {seed: points for seed, points in read.items() if points}


def read_study(path: str | Path) -> MeasuredStudy:
    """Reads a study's folder, its study.json, or a results file with a `study` block.

    Raises:
        InputError: there is nothing to read, or it is no study, is damaged or contradicts itself.
    """
    path = Path(path)
    if path.name == "study.json":
        path = path.parent
    if path.is_dir():
        if not (path / "study.json").is_file():
            raise InputError(
                f"{path} is no study: there is no study.json in it; give the folder that "
                "`attention-vision study run` writes, or a file of experiments/results"
            )
        study = from_folder(path)
    elif path.is_file():
        study = from_file(path)
    else:
        raise InputError(f"{path}: no such folder or file")
    return checked(study, path)


def from_folder(folder: Path) -> MeasuredStudy:
    """The results that lie under FOLDER/cells, of the cells and seeds that study.json names."""
    source = folder / "study.json"
    plan = read_json(source)
    name = take(plan, "name", str, source)
    cells = take(plan, "cells", dict, source)
    seeds = take(plan, "seeds", list, source)
    runs, waiting, hardware, versions = [], {}, {}, {}
    for cell in cells:
        for seed in seeds:
            place = folder / "cells" / cell / f"seed{seed}"
            file = place / "result.json"
            if not file.is_file():
                error = place / "error.txt"
                lines = error.read_text().split("\n") if error.is_file() else []
                waiting[cell, seed] = next((line for line in lines[::-1] if line.strip()), "")
                continue
            result = read_json(file)
            expected = {"study": name, "cell": cell, "seed": seed}
            expected["config_sha256"] = (cells[cell] or {}).get("config_sha256")
            for key, value in expected.items():
                if value is not None and result.get(key) != value:
                    raise InputError(
                        f"{file} is of another study or run: its {key} is {result.get(key)}, "
                        f"{value} in {source}; move it away, or report its own folder"
                    )
            runs.append(read_run(result, file, place))
            hardware[str(result.get("hardware", ""))] = None
            versions |= result.get("versions") or {}
    strangers = sorted({path.name for path in (folder / "cells").glob("*/")} - set(cells))
    if strangers:
        raise InputError(f"{folder}/cells/{strangers[0]} is no cell of {source}: move it away")
    facts = {
        "file": str(plan.get("file") or ""),
        "budget": words(plan.get("budget")),
        "hardware": "; ".join(filter(None, hardware)) or str(plan.get("hardware") or ""),
        "versions": words(versions or plan.get("versions")),
    }
    return described(plan, source, name, list(cells), seeds, runs, waiting, facts, [])


def from_file(file: Path) -> MeasuredStudy:
    """A results file in the format of experiments/results/README.md."""
    results = read_json(file)
    plan = results.get("study")
    if not isinstance(plan, dict):
        raise InputError(
            f"{file} has no 'study' block: add one with metric, higher_is_better, baseline, "
            "expect, question and task, as experiments/results/README.md says"
        )
    runs = [read_run(run, file) for run in take(results, "runs", list, file)]
    seeds = list(dict.fromkeys(run.seed for run in runs))
    seeds = sorted(seeds, key=lambda seed: -1 if seed is None else seed)
    cells = list(dict.fromkeys(run.cell for run in runs))
    there = {(run.cell, run.seed) for run in runs}
    exact = {run.cell for run in runs if run.seed is None}
    waiting = {
        (cell, seed): ""
        for cell in cells
        for seed in seeds
        if (cell, seed) not in there and (seed is None) == (cell in exact)
    }
    what = results.get("what") or {}
    facts = {
        "title": what.get("title", ""),
        "experiment": what.get("experiment", ""),
        "data": what.get("data", ""),
        "images": words(what.get("splits")),
        "budget": words(results.get("budget")),
        "hardware": results.get("hardware", ""),
        "versions": words(results.get("versions")),
        "commit": results.get("commit", ""),
        "date": results.get("date", ""),
        "commands": "\n".join(results.get("command") or []),
    }
    facts = {title: str(text) for title, text in facts.items()}
    notes = results.get("notes") or []
    return described(plan, file, file.stem, cells, seeds, runs, waiting, facts, notes)


def described(
    plan: dict[str, Any],
    source: Path,
    name: str,
    cells: list[str],
    seeds: list[int | None],
    runs: list[Run],
    waiting: dict[tuple[str, int | None], str],
    facts: dict[str, str],
    notes: list[str],
) -> MeasuredStudy:
    """What both forms say in the same words: question, metric, baseline and expectations."""
    try:
        expect = [Expectation.parse(line) for line in plan.get("expect") or []]
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return MeasuredStudy(
        name=name,
        question=take(plan, "question", str, source),
        task=str(plan.get("task") or ""),
        metric=take(plan, "metric", str, source),
        higher_is_better=bool(plan.get("higher_is_better", True)),
        baseline=take(plan, "baseline", str, source),
        expect=expect,
        seeds=seeds,
        cells=cells,
        runs=runs,
        waiting=waiting,
        facts={title: text for title, text in facts.items() if text},
        notes=notes,
    )


def checked(study: MeasuredStudy, path: Path) -> MeasuredStudy:
    """The study, whose names all mean something.

    Raises:
        InputError: two results of one run, an unknown cell, no run, or a metric that none logs.
    """
    seen = set()
    for run in study.runs:
        if (run.cell, run.seed) in seen:
            raise InputError(
                f"{path}: two results of cell '{run.cell}', seed {run.seed}: keep one of them"
            )
        seen.add((run.cell, run.seed))
    named = [("baseline", study.baseline)]
    named += [("expect", cell) for line in study.expect for cell in (line.first, line.second)]
    for key, cell in named:
        if cell not in study.cells:
            raise InputError(
                f"{path}: {key} names '{cell}', which is no cell: {', '.join(study.cells)}"
            )
    if not study.runs:
        errors = [line for line in study.waiting.values() if line]
        hint = f"; the last error: {errors[-1]}" if errors else ""
        raise InputError(f"{path}: no run of this study has finished yet{hint}")
    if study.metric not in study.metrics():
        logged = ", ".join(study.metrics()) or "none"
        raise InputError(f"{path}: no run logs {study.metric}; metrics logged: {logged}")
    return study


def read_run(result: dict[str, Any], source: Path, folder: Path | None = None) -> Run:
    if not isinstance(result, dict):
        raise InputError(f"{source}: a run is an object with cell, seed and metrics, not {result}")
    metrics = take(result, "metrics", dict, source)
    for key, value in metrics.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"{source}: {key} is '{value}', which is no number")
    seed = result.get("seed")
    if seed is not None:
        seed = take(result, "seed", int, source)
    cost = {"seconds": result.get("seconds"), **(result.get("cost") or {})}
    return Run(take(result, "cell", str, source), seed, metrics, cost, folder)


def words(content: Any) -> str:
    """{"epochs": 2, "steps": 300} -> "epochs 2, steps 300"."""
    if isinstance(content, dict):
        parts = ((key, words(value)) for key, value in content.items())
        return ", ".join(
            f"{key} ({text})" if isinstance(content[key], dict) else f"{key} {text}"
            for key, text in parts
        )
    return "" if content is None else str(content)


def defined(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def curve(folder: Path | None, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a metric in a run's metrics.csv."""
    if folder is None or not (folder / "metrics.csv").is_file():
        return []
    with (folder / "metrics.csv").open(newline="") as file:
        return list(points(csv.DictReader(file), metric))


def points(rows: csv.DictReader, metric: str) -> Iterator[tuple[int, float]]:
    for row in rows:
        try:
            yield int(row["step"]), float(row[metric])
        except (KeyError, TypeError, ValueError):  # an empty cell, a column not yet there
            continue
