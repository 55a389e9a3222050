"""A study file and what it expands to: one complete config per cell. Imports nothing heavy."""

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from attention_vision.errors import InputError
from attention_vision.report.statistics import Expectation
from attention_vision.yaml_json import Config, mapping, read_yaml

BUDGETS = ("epochs", "steps", "flops", "seconds")


KEYS = ("question", "metric", "higher_is_better", "baseline", "expect", "seeds", "budget")


NAME = re.compile(r"[\w.+][\w.+-]*", re.ASCII)  # what is also the name of a folder


METRIC = re.compile(r"(val|test)/\S+")


@dataclass(frozen=True)
class Cell:
    """One variant of a study.

    Args:
        values: what it takes on each axis.
        paths: the keys of the config at which it differs from its base.
        config: complete but for the seed, and for the steps of a budget in FLOPs.
        sha256: of the config and the budget: what a result belongs to.
    """

    values: dict[str, str]
    paths: tuple[str, ...]
    config: Config
    sha256: str


@dataclass(frozen=True)
class Study:
    """What a study file says, expanded.

    Args:
        name: stem of the file.
        file: as it was given.
        task: classification, detection or generation.
        budget: at most one of `BUDGETS` with its number, see `with_budget`.
        axes: names of the values by name of the axis, in the order of the file.
        cells: by name.
    """

    name: str
    file: Path
    task: str
    question: str
    metric: str
    higher_is_better: bool
    baseline: str
    expect: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: dict[str, float]
    axes: dict[str, tuple[str, ...]]
    cells: dict[str, Cell]

    def describe(self) -> dict[str, Any]:
        """As study.json holds it."""
        return {
            "name": self.name,
            "question": self.question,
            "task": self.task,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "baseline": self.baseline,
            "expect": list(self.expect),
            "seeds": list(self.seeds),
            "budget": self.budget or None,
            "file": str(self.file),
            "axes": {axis: list(values) for axis, values in self.axes.items()},
            "cells": {
                name: {"values": cell.values, "config_sha256": cell.sha256}
                for name, cell in self.cells.items()
            },
        }


def read_definition(file: str | Path) -> Study:
    """Reads and expands a study file; that each config parses is for `inspection.inspect` to say.

    A value of an axis is {path: node}. The node replaces what stands at the path: merged into it,
    it would keep arguments of the class that stood there.

    Raises:
        InputError: the file or a base is missing or no YAML, a key is unknown or missing, an axis
            has no values, two cells have one name, one axis replaces what another one set, or the
            baseline, an expectation, a seed or the budget makes no sense.
    """
    file = Path(file)
    content = read_yaml(file)
    for key in content:
        if key not in ("study", "base", "axes"):
            raise InputError(f"{file}: there is no key {key}; known: study, base, axes")
    study = mapping(content.get("study"), file, "study")
    for key in study:
        if key not in KEYS:
            raise InputError(f"{file}: there is no key study.{key}; known: {', '.join(KEYS)}")
    if missing := [key for key in ("question", "metric", "baseline", "seeds") if key not in study]:
        raise InputError(f"{file}: missing: study.{', study.'.join(missing)}")

    bases = read_bases(file, content.get("base"))
    axes = read_axes(file, content.get("axes") or {})
    budget = read_budget(file, study.get("budget"))
    tasks = {config.get("task") for config in bases.values()}
    if len(tasks) > 1 or None in tasks:
        raise InputError(f"{file}: base: all of them must name one task, found {tasks}")
    cells = expand(file, bases, axes, budget)

    metric = str(study["metric"])
    if not METRIC.fullmatch(metric):
        raise InputError(f"{file}: study.metric '{metric}' is no logged key such as val/top1")
    for name in (study["baseline"], *named(file, study.get("expect") or [])):
        if name not in cells:
            raise InputError(f"{file}: study names '{name}', which is no cell: {', '.join(cells)}")
    return Study(
        name=file.stem,
        file=file,
        task=tasks.pop(),
        question=str(study["question"]),
        metric=metric,
        higher_is_better=bool(study.get("higher_is_better", True)),
        baseline=study["baseline"],
        expect=tuple(study.get("expect") or []),
        seeds=read_seeds(study["seeds"], f"{file}: study.seeds"),
        budget=budget,
        axes=({"base": tuple(bases)} if len(bases) > 1 else {})
        | {axis: tuple(values) for axis, values in axes.items()},
        cells=cells,
    )


def expand(
    file: Path, bases: dict[str, Config], axes: dict[str, dict], budget: dict[str, float]
) -> dict[str, Cell]:
    """The product of bases and axes, by name: the values' names joined by "-"."""
    cells: dict[str, Cell] = {}
    options = [[(axis, *value) for value in values.items()] for axis, values in axes.items()]
    for (base, config), *chosen in itertools.product(bases.items(), *options):
        values = ({"base": base} if len(bases) > 1 else {}) | {axis: v for axis, v, _ in chosen}
        name = "-".join(values.values()) or base
        if name in cells:
            raise InputError(f"{file}: two cells are named {name}: rename a value of an axis")
        config, paths = copy.deepcopy(config), []
        for axis, value, nodes in chosen:
            for path, node in nodes.items():
                if lost := next((p for p in paths if f"{p}.".startswith(f"{path}.")), None):
                    raise InputError(
                        f"{file}: axes.{axis}.{value}: {path} replaces what was set at {lost}:"
                        " put this axis first"
                    )
                try:
                    replace(config, path, node)
                except InputError as error:
                    raise InputError(f"{file}: axes.{axis}.{value}: {error}") from None
                paths.append(path)
        config = with_budget(config, budget)
        cells[name] = Cell(values, tuple(paths), config, sha256(config, budget))
    return cells


def replace(config: Config, path: str, node: Any) -> None:
    """Puts a node in the place of what stands at a dotted path, in place.

    Raises InputError where something on the way is no mapping.
    """
    *parents, last = path.split(".")
    for depth, key in enumerate(parents, start=1):
        config = config.setdefault(key, {})
        if not isinstance(config, dict):
            raise InputError(
                f"{path}: {'.'.join(parents[:depth])} is {config!r} in the base, which holds no"
                " keys: write it there as class_path and init_args"
            )
    config[last] = copy.deepcopy(node)


def with_budget(config: Config, budget: dict[str, float]) -> Config:
    """The config whose training gets as much as the budget says, in place of the base's own end.

    epochs: of the training data. `WarmupCosine` ends with them.

    steps: of the optimiser, `WarmupCosine` likewise.

    flops: of the whole training, as 3 forward passes of 2 operations per multiply-add for each
    image. `inspection.inspect` counts a cell's multiply-adds, and gives it `flops_to_steps`.

    seconds: of wall clock over all attempts (`trainer.max_time`). The base's max_epochs stays, and
    with it the length of `WarmupCosine`: training stops wherever the time is up, in the middle of
    the cosine where the machine is slow. No two runs are equal under this budget.
    """
    config = copy.deepcopy(config)
    trainer = config.setdefault("trainer", {})
    if "epochs" in budget:
        trainer |= {"max_epochs": budget["epochs"], "max_steps": -1}
    elif "steps" in budget:
        trainer |= {"max_epochs": -1, "max_steps": budget["steps"]}
    elif "seconds" in budget:
        days, seconds = divmod(round(budget["seconds"]), 24 * 3600)
        clock = f"{timedelta(seconds=seconds)}".zfill(8)
        trainer["max_time"] = f"{days:02d}:{clock}"
    return config


def flops_to_steps(flops: float, macs: int, images: int) -> int:
    """Optimiser steps that a number of FLOPs pays for, at least one.

    Args:
        flops: of the whole training.
        macs: multiply-adds of a forward pass per image.
        images: of one step.
    """
    return max(1, round(flops / (2 * 3 * macs * images)))


def sha256(config: Config, budget: dict[str, float]) -> str:
    text = json.dumps({"config": config, "budget": budget}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def merge(config: Config, more: Config) -> Config:
    """`more` over `config`, mapping by mapping, as a second -c does; lists are replaced."""
    merged = dict(config)
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else copy.deepcopy(value)
    return merged


def read_bases(file: Path, base: Any) -> dict[str, Config]:
    """The configs of one or several experiment files, whose paths start from the study file."""
    if base is None:
        raise InputError(f"{file}: missing: base, an experiment file")
    named = base if isinstance(base, dict) else {Path(str(base)).stem: base}
    if not named:
        raise InputError(f"{file}: base has no values")
    configs = {}
    for name, path in named.items():
        config = read_yaml(file.parent / str(path))
        for key in ("seed_everything", "run", "ckpt_path"):
            config.pop(key, None)  # of one run, not of the experiment
        configs[value_name(name, f"{file}: base")] = config
    return configs


def read_axes(file: Path, axes: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """{axis: {value: {path: node}}}."""
    read: dict[str, dict] = {}
    for axis, values in mapping(axes, file, "axes").items():
        where = f"{file}: axes.{axis}"
        if not isinstance(values, dict) or not values:
            raise InputError(f"{where} has no values: give it {{name: {{path: node}}}}")
        read[str(axis)] = {}
        for value, nodes in values.items():
            nodes = mapping({} if nodes is None else nodes, file, f"axes.{axis}.{value}")
            for path in nodes:
                if path == "seed_everything":
                    raise InputError(f"{where}.{value}: seeds are given by study.seeds")
            read[str(axis)][value_name(value, where)] = nodes
    return read


def value_name(name: Any, where: str) -> str:
    if isinstance(name, bool) or not NAME.fullmatch(str(name)):
        raise InputError(
            f"{where}: '{name}' is no name of a folder: take letters, digits and _ . + -, and quote"
            " words such as 'on' and 'no'"
        )
    return str(name)


def read_budget(file: Path, budget: Any) -> dict[str, float]:
    if budget is None:
        return {}
    budget = mapping(budget, file, "study.budget")
    if len(budget) != 1 or not set(budget) <= set(BUDGETS):
        raise InputError(
            f"{file}: study.budget: give exactly one of {', '.join(BUDGETS)}, not"
            f" {', '.join(map(str, budget)) or 'nothing'}"
        )
    ((key, number),) = budget.items()
    try:
        number = int(number) if key in ("epochs", "steps") else float(number)
    except (TypeError, ValueError):
        raise InputError(f"{file}: study.budget.{key}: '{number}' is no number") from None
    if not 0 < number < float("inf"):
        raise InputError(f"{file}: study.budget.{key}: {number} is not positive")
    return {key: number}


def read_seeds(seeds: Any, where: str) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not seeds:
        raise InputError(f"{where}: give a list of whole numbers")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"{where}: '{seed}' is no whole number from 0 on")
        if seeds.count(seed) > 1:
            raise InputError(f"{where}: {seed} is there twice")
    return tuple(seeds)


def named(file: Path, expect: Any) -> Iterator[str]:
    """The cells that expectations name."""
    if not isinstance(expect, list):
        raise InputError(f"{file}: study.expect: give a list such as [cbam > none]")
    for line in expect:
        try:
            expectation = Expectation.parse(line)
        except InputError as error:
            raise InputError(f"{file}: study.{error}") from None
        yield from (expectation.first, expectation.second)
