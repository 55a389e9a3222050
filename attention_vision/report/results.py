"""Results of a study, read from its folder or a results file; imports nothing heavy."""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from attention_vision.errors import InputError
from attention_vision.report.consistency import (
    RunKey,
    by_other_code,
    changed_since,
    most_common,
    of_a_profile,
    unlike_the_others,
    unlike_the_study,
)
from attention_vision.report.shapes import RESULT, RESULTS_FILE, STUDY, check_shape, shown
from attention_vision.report.statistics import Expectation, Plan, Values
from attention_vision.yaml_json import read_json, require

MARGIN = re.compile(r"(.+?)\s+by\s+[0-9.]\S*")  # the name of a cell that reads as a margin, too
COSTS = ("parameters", "macs", "images_per_second", "peak_memory", "seconds")


@dataclass(frozen=True)
class Result:
    """Result of one run of a study.

    Args:
        cell: name of the variant.
        seed: None if nothing is random, as in a parameter count.
        metrics: values by logged key, in the unit of the key; None for an undefined number.
        cost: values by the names of `COSTS`, as far as known; bytes and seconds.
        folder: the run folder; None in a results file.
    """

    cell: str
    seed: int | None
    metrics: dict[str, float | None]
    cost: dict[str, float | None]
    folder: Path | None = None


@dataclass(frozen=True)
class MeasuredStudy:
    """A study and the results of its finished runs.

    Args:
        name: stem of the study file.
        seeds: the requested seeds; in a results file, those with results.
        cells: names of the cells, in the order of the study.
        results: one per finished run.
        waiting: runs without a result: (cell, seed) -> last line of the error, or an empty text.
        facts: hardware, versions, budget and the like, as text by title.
        notes: sentences from the results file.
        plan: effect, planned seeds and looks.
        left_out: runs whose result does not count: (cell, seed) -> the reason.
        remarks: sentences on the study as a whole: its profile, its code, its file.
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
    results: list[Result]
    waiting: dict[RunKey, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    plan: Plan = field(default_factory=Plan)
    left_out: dict[RunKey, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @cached_property
    def of_cell(self) -> dict[str, list[Result]]:
        """The results of each cell that has some."""
        found: dict[str, list[Result]] = {}
        for result in self.results:
            found.setdefault(result.cell, []).append(result)
        return found

    @property
    def exact(self) -> bool:
        """Whether all results are exact numbers without a seed."""
        return all(result.seed is None for result in self.results)

    def values(self, cell: str, metric: str | None = None) -> Values:
        """Values of a metric by seed, without those that are missing or not finite."""
        metric = metric or self.metric
        numbers = {one.seed: one.metrics.get(metric) for one in self.of_cell.get(cell, ())}
        return {seed: value for seed, value in numbers.items() if defined(value)}

    def cost(self, cell: str, name: str) -> float | None:
        """Mean of a cost over the runs of a cell that report it; None if none does."""
        values = [result.cost.get(name) for result in self.of_cell.get(cell, ())]
        known = [value for value in values if defined(value)]
        return sum(known) / len(known) if known else None

    def metrics(self) -> list[str]:
        """All logged keys, in the order of the results."""
        return list(dict.fromkeys(key for result in self.results for key in result.metrics))

    def curves(self, cell: str, metric: str) -> dict[int | None, list[tuple[int, float]]]:
        """Learning curves by seed, as (step, value), of runs with this metric in metrics.csv."""
        curves = {
            result.seed: read_curve(result.folder, metric) for result in self.of_cell.get(cell, ())
        }
        return {seed: points for seed, points in curves.items() if points}


def read_study(path: str | Path) -> MeasuredStudy:
    """Read a study folder, its study.json, or a results file with a `study` block.

    Raises:
        InputError: the path does not exist, is not a study, is damaged or contradicts itself.
    """
    path = Path(path)
    if path.name == "study.json" and (path.parent / "cells").is_dir():
        path = path.parent
    if path.is_dir():
        if not (path / "study.json").is_file():
            raise InputError(
                f"{path} is not a study folder: it does not contain study.json; give the folder "
                "that `attention-vision study run` writes, or a file of experiments/results"
            )
        study = read_folder(path)
    elif path.is_file():
        study = read_results_file(path)
    else:
        raise InputError(f"{path}: no such folder or file")
    check(study, path)
    return study


def read_folder(folder: Path) -> MeasuredStudy:
    """Read the results under FOLDER/cells, for the cells and seeds in study.json."""
    source = folder / "study.json"
    plan = read_json(source)
    check_plan(plan, source)
    name = require(plan, "name", str, source)
    cells = require(plan, "cells", dict, source)
    seeds = require(plan, "seeds", list, source)
    kept, left_out, waiting = counted_runs(folder, plan, source)
    results = [
        parse_result(content, run_folder(folder, *run) / "result.json", run_folder(folder, *run))
        for run, content in kept.items()
    ]
    unknown = sorted({path.name for path in (folder / "cells").glob("*/")} - set(cells))
    remarks = [f"left out: cells/{cell} is not a cell of {source}" for cell in unknown]
    remarks += [*changed_since(plan), *of_a_profile(plan), *by_other_code(kept)]
    hardware = dict.fromkeys(str(content.get("hardware", "")) for content in kept.values())
    versions = dict.fromkeys(as_text(content.get("versions")) for content in kept.values())
    commits = dict.fromkeys(str(content.get("commit") or "") for content in kept.values())
    facts = {
        "file": str(plan.get("file") or ""),
        "images": as_text(samples([one.get("data") for one in kept.values()])),
        "budget": as_text(plan.get("budget")),
        "profile": as_text(plan.get("profile") or None),
        "hardware": "; ".join(filter(None, hardware)) or str(plan.get("hardware") or ""),
        "versions": "; ".join(filter(None, versions)) or as_text(plan.get("versions")),
        "commit": "; ".join(filter(None, commits)) or str(plan.get("commit") or ""),
    }
    return measured_study(
        plan, source, name, list(cells), seeds, results, waiting, facts, [],
        plan.get("planned_seeds"), left_out, remarks,
    )  # fmt: skip


def run_folder(folder: Path, cell: str, seed: int | None) -> Path:
    """The folder of a run in that of its study."""
    return folder / "cells" / cell / f"seed{seed}"


def check_plan(plan: dict[str, Any], source: Path) -> None:
    """Check the content of study.json.

    Raises:
        InputError: a value has another type, or a cell has a name that is no folder's.
    """
    check_shape(plan, STUDY, source)
    for cell in require(plan, "cells", dict, source):
        if cell != Path(cell).name or cell in ("", ".."):
            raise InputError(f"{source}: the cell '{cell}' does not have the name of a folder")


def counted_runs(
    folder: Path, plan: dict[str, Any], source: Path
) -> tuple[dict[RunKey, dict[str, Any]], dict[RunKey, str], dict[RunKey, str]]:
    """Read the results of a study folder.

    Args:
        folder: the study folder.
        plan: content of its study.json.
        source: path of that file.

    Returns:
        The results that count, as they were written; the reason of those that do not; of runs
        without a result, the last line of their error.

    Raises:
        InputError: a result is damaged, or belongs to another study or run.
    """
    name = require(plan, "name", str, source)
    cells, seeds = require(plan, "cells", dict, source), require(plan, "seeds", list, source)
    contents: dict[RunKey, dict[str, Any]] = {}
    waiting: dict[RunKey, str] = {}
    for cell in cells:
        for seed in seeds:
            run = run_folder(folder, cell, seed)
            file = run / "result.json"
            if not file.is_file():
                error = run / "error.txt"
                lines = error.read_text(errors="replace").split("\n") if error.is_file() else []
                waiting[cell, seed] = next((line for line in lines[::-1] if line.strip()), "")
                continue
            content = read_json(file)
            check_shape(content, RESULT, file)
            for key, value in {"study": name, "cell": cell, "seed": seed}.items():
                if content.get(key) != value:
                    raise InputError(
                        f"{file} belongs to another study or run: its {key} is "
                        f"{shown(content.get(key))}, but {shown(value)} in {source};"
                        " move it away, or report its own folder"
                    )
            parse_result(content, file)
            contents[cell, seed] = content
    left_out = dict(unlike_the_study(contents, cells, str(plan.get("metric"))))
    kept = {run: content for run, content in contents.items() if run not in left_out}
    left_out |= dict(unlike_the_others(kept, cells))
    kept = {run: content for run, content in kept.items() if run not in left_out}
    return kept, left_out, waiting


def read_results_file(file: Path) -> MeasuredStudy:
    """Read a results file in the format of experiments/results/README.md."""
    content = read_json(file)
    check_shape(content, RESULTS_FILE, file)
    plan = content.get("study")
    if not isinstance(plan, dict):
        raise InputError(
            f"{file} has no 'study' block: add one with metric, higher_is_better, baseline, "
            "expect, question and task, see experiments/results/README.md"
        )
    runs = require(content, "runs", list, file)
    results = [parse_result(one, file) for one in runs]
    seeds = list(dict.fromkeys(result.seed for result in results))
    seeds = sorted(seeds, key=lambda seed: -1 if seed is None else seed)
    planned = [str(cell) for cell in plan.get("cells") or []]  # of which some may have no results
    cells = list(dict.fromkeys([*planned, *(result.cell for result in results)]))
    present = {(result.cell, result.seed) for result in results}
    exact = {result.cell for result in results if result.seed is None}
    waiting = {
        (cell, seed): ""
        for cell in cells
        for seed in seeds
        if (cell, seed) not in present and (seed is None) == (cell in exact)
    }
    what = content.get("what") or {}
    facts = {
        "title": what.get("title", ""),
        "experiment": what.get("experiment", ""),
        "data": what.get("data", ""),
        "images": as_text(what.get("splits") or samples([one.get("data") for one in runs])),
        "budget": as_text(content.get("budget")),
        "hardware": content.get("hardware", ""),
        "versions": as_text(content.get("versions")),
        "commit": content.get("commit", ""),
        "date": content.get("date", ""),
        "commands": "\n".join(content.get("command") or []),
    }
    facts = {title: str(text) for title, text in facts.items()}
    notes, remarks = content.get("notes") or [], list(of_a_profile(plan))
    return measured_study(
        plan, file, file.stem, cells, seeds, results, waiting, facts, notes, plan.get("seeds"),
        remarks=remarks,
    )  # fmt: skip


def measured_study(
    plan: dict[str, Any],
    source: Path,
    name: str,
    cells: list[str],
    seeds: list[int | None],
    results: list[Result],
    waiting: dict[RunKey, str],
    facts: dict[str, str],
    notes: list[str],
    planned: list[int] | None,
    left_out: dict[RunKey, str] | None = None,
    remarks: list[str] | None = None,
) -> MeasuredStudy:
    """Build the study; question, metric, baseline and expectations have the same keys in both."""
    try:
        expect = Expectation.parse_all(plan.get("expect") or [])
        fixed = Plan.parse(plan.get("effect"), planned or [], plan.get("looks"))
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return MeasuredStudy(
        name=name,
        question=require(plan, "question", str, source),
        task=str(plan.get("task") or ""),
        metric=require(plan, "metric", str, source),
        higher_is_better=plan.get("higher_is_better") is not False,
        baseline=require(plan, "baseline", str, source),
        expect=expect,
        seeds=seeds,
        cells=cells,
        results=results,
        waiting=waiting,
        facts={title: text for title, text in facts.items() if text},
        notes=notes,
        plan=fixed,
        left_out=left_out or {},
        remarks=remarks or [],
    )


def check(study: MeasuredStudy, path: Path) -> None:
    """Check that the study is consistent.

    Raises:
        InputError: two results of one run, an unknown cell, one whose name is that of another
            with a margin, no results, or a metric that no run logs.
    """
    seen = set()
    for result in study.results:
        if (result.cell, result.seed) in seen:
            raise InputError(
                f"{path}: two results of cell '{result.cell}', seed {result.seed}: keep one of them"
            )
        seen.add((result.cell, result.seed))
    named = [("baseline", study.baseline)]
    named += [("expect", cell) for line in study.expect for cell in (line.first, line.second)]
    for key, cell in named:
        if cell not in study.cells:
            raise InputError(
                f"{path}: {key} names '{cell}', which is not a cell: {', '.join(study.cells)}"
            )
    for line in study.expect:
        for cell in study.cells if line.by else ():
            if (match := MARGIN.fullmatch(cell)) and match[1] == line.second:
                raise InputError(
                    f"{path}: expect: '{line}' may mean the cell '{cell}' or a margin: rename the"
                    " cell"
                )
    if not study.results:
        errors = [line for line in study.waiting.values() if line]
        errors += [f"{cell} seed {seed} {why}" for (cell, seed), why in study.left_out.items()]
        hint = f"; the last error: {errors[-1]}" if errors else ""
        raise InputError(f"{path}: no run of this study has finished yet{hint}")
    if study.metric not in study.metrics():
        logged = ", ".join(study.metrics()) or "none"
        raise InputError(f"{path}: no run logs {study.metric}; metrics logged: {logged}")


def parse_result(content: Any, source: Path, folder: Path | None = None) -> Result:
    """Build a result from its JSON object.

    Raises:
        InputError: a key is missing or of another type.
    """
    if not isinstance(content, dict):
        raise InputError(
            f"{source}: a run is an object with cell, seed and metrics, not {shown(content)}"
        )
    metrics = require(content, "metrics", dict, source)
    for key, value in metrics.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"{source}: {key} is '{value}', which is not a number")
    seed = content.get("seed")
    if seed is not None:
        seed = require(content, "seed", int, source)
    check_shape(content, RESULT, source)
    cost = {"seconds": content.get("seconds"), **(content.get("cost") or {})}
    return Result(require(content, "cell", str, source), seed, metrics, cost, folder)


def samples(fingerprints: Sequence[Any]) -> dict[str, int]:
    """Number of samples of each split, in the data that most runs had."""
    known = most_common([one for one in fingerprints if isinstance(one, dict)])
    parts = {split: part for split, part in known.items() if isinstance(part, dict)}
    return {split: part["samples"] for split, part in parts.items() if "samples" in part}


def as_text(content: Any) -> str:
    """Format keys and values: {"epochs": 2, "steps": 300} -> "epochs 2, steps 300"."""
    if isinstance(content, dict):
        parts = ((key, as_text(value)) for key, value in content.items())
        return ", ".join(
            f"{key} ({text})" if isinstance(content[key], dict) else f"{key} {text}"
            for key, text in parts
        )
    return "" if content is None else str(content)


def defined(value: float | None) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return value is not None and math.isfinite(value)


def read_curve(folder: Path | None, metric: str) -> list[tuple[int, float]]:
    """Read (step, value) of a metric from the metrics.csv of a run folder.

    Raises:
        InputError: the file is damaged.
    """
    if folder is None or not (folder / "metrics.csv").is_file():
        return []
    try:
        with (folder / "metrics.csv").open(newline="") as file:
            return list(points(csv.DictReader(file), metric))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{folder / 'metrics.csv'} is damaged: move it away to report without its curve"
        ) from error


def points(rows: csv.DictReader, metric: str) -> Iterator[tuple[int, float]]:
    """Yield (step, value) of the rows in which the metric was logged."""
    for row in rows:
        try:
            yield int(row["step"]), float(row[metric])
        except (KeyError, TypeError, ValueError):  # an empty cell, or no such column yet
            continue
