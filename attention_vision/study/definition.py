"""Study files, and their expansion to one complete config per cell; imports nothing heavy."""

import copy
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from attention_vision.errors import InputError
from attention_vision.ranges import Seed, refusal
from attention_vision.report.shapes import shown
from attention_vision.report.statistics import Expectation, Plan
from attention_vision.yaml_json import Config, mapping, read_yaml

BUDGETS = ("epochs", "steps", "flops", "seconds")
KEYS = (
    "question",
    "metric",
    "higher_is_better",
    "baseline",
    "expect",
    "effect",
    "looks",
    "seeds",
    "budget",
)
NAME = re.compile(r"[\w.+][\w.+-]*", re.ASCII)  # valid as a folder name, too
METRIC = re.compile(r"(val|test)/\S+")
CLASS_KEYS = {"class_path", "init_args", "dict_kwargs"}  # of a class and its arguments
# Keys that change a run's numbers by rounding at most. All others change the training.
HARDWARE = (
    r"task|run|threads|pictures|compile|claim|checkpoint_every_n_steps|seed_everything"
    r"|trainer\.(accelerator|strategy|logger|log_every_n_steps|num_sanity_val_steps|benchmark"
    r"|enable_\w+|profiler|default_root_dir)|data\.(num_workers|download)"
)
# Of a profile, where a machine has the data; of an experiment, which data it is.
PLACES = r"|data\.(root|csv|(images|masks)_folder|(train|val|test)_(images|masks|annotations|csv))"
LENGTHS = ("max_epochs", "max_steps")
ONE_PROCESS = (None, "auto", 1, "1", [0], -1, "-1")  # `study run` shows a worker one device


@dataclass(frozen=True)
class Cell:
    """One variant of a study.

    Args:
        values: name of its value on each axis.
        paths: full paths of the config at which it differs from its base.
        config: complete except for the seed, and for the steps of a budget in FLOPs.
        sha256: hash of budget and config without `HARDWARE`, which identifies the results of the
            cell; see `with_profile`.
        earlier_sha256: hash of the whole config, as results of version 0.1 have it.
    """

    values: dict[str, str]
    paths: tuple[str, ...]
    config: Config
    sha256: str
    earlier_sha256: str


@dataclass(frozen=True)
class Study:
    """An expanded study file.

    Args:
        name: stem of the file.
        file: the path as given.
        task: classification, detection or generation.
        plan: effect, seeds and looks on which the verdicts depend.
        budget: at most one of `BUDGETS` with its number, see `with_budget`.
        axes: names of the values by name of the axis, in the order of the file.
        cells: all cells by name.
        profile: value by dotted key of what a profile changes in the training.
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
    plan: Plan
    budget: dict[str, float]
    axes: dict[str, tuple[str, ...]]
    cells: dict[str, Cell]
    profile: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return the content of study.json."""
        return {
            "name": self.name,
            "question": self.question,
            "task": self.task,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "baseline": self.baseline,
            "expect": list(self.expect),
            "effect": self.plan.effect,
            "looks": list(self.plan.looks) or None,
            "seeds": list(self.seeds),
            "planned_seeds": list(self.seeds),
            "budget": self.budget or None,
            "file": str(self.file),
            "axes": {axis: list(values) for axis, values in self.axes.items()},
            "profile": self.profile,
            "cells": {
                name: {
                    "values": cell.values,
                    "config_sha256": cell.sha256,
                    "earlier_sha256": cell.earlier_sha256,
                    "data_sha256": sha256({"data": cell.config.get("data")}, {}),
                }
                for name, cell in self.cells.items()
            },
        }


def read_definition(file: str | Path) -> Study:
    """Read and expand a study file; `preflight.run_preflight` checks that the configs parse.

    A value of an axis is {path: node}. The node replaces the old value at the path: a merge would
    keep arguments of the class that was there before. A path may be short, as flags are, or
    written in full: `model.network.attention` or `model.network.init_args.attention`.

    Raises:
        InputError: the file or a base is missing or not YAML, a key is unknown or missing, an axis
            does not have values, two cells have the same name, an axis replaces what another one
            set, or the baseline, an expectation, a seed or the budget is invalid.
    """
    file = Path(file)
    content = read_yaml(file)
    for key in content:
        if key not in ("study", "base", "axes"):
            raise InputError(f"{file}: unknown key {key}; known: study, base, axes")
    study = mapping(content.get("study"), file, "study")
    for key in study:
        if key not in KEYS:
            raise InputError(f"{file}: unknown key study.{key}; known: {', '.join(KEYS)}")
    if missing := [key for key in ("question", "metric", "baseline", "seeds") if key not in study]:
        raise InputError(f"{file}: missing: study.{', study.'.join(missing)}")
    question, better = study["question"], study.get("higher_is_better", True)
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"{file}: study.question is {shown(question)}: ask it in a sentence")
    if not isinstance(better, bool):
        raise InputError(f"{file}: study.higher_is_better is {shown(better)}: write true or false")

    bases = read_bases(file, content.get("base"))
    axes = read_axes(file, content.get("axes") or {})
    budget = read_budget(file, study.get("budget"))
    tasks = {config.get("task") for config in bases.values()}
    task = tasks.pop()
    if tasks or task is None:
        found = ", ".join(map(str, [task, *tasks]))
        raise InputError(f"{file}: base: all of them must name one task, found {found}")
    cells = expand(file, bases, axes, budget)

    metric = str(study["metric"])
    if not METRIC.fullmatch(metric):
        raise InputError(f"{file}: study.metric '{metric}' is not a logged key such as val/top1")
    if "loss" in metric and "higher_is_better" not in study:
        raise InputError(
            f"{file}: study.metric is {metric}: add higher_is_better: false to study, without which"
            " a higher value is taken for the better one"
        )
    expect = study.get("expect") or []
    if not isinstance(expect, list):
        raise InputError(f"{file}: study.expect: expected a list such as [cbam > none]")
    try:
        orderings = Expectation.parse_all(expect)
    except InputError as error:
        raise InputError(f"{file}: study.{error}") from None
    baseline = str(study["baseline"])
    for name in (baseline, *(cell for one in orderings for cell in (one.first, one.second))):
        if name not in cells:
            hint = "; a margin is a number, as in 'A > B by 0.01'" if " by" in name else ""
            raise InputError(
                f"{file}: study names '{name}', which is not a cell: {', '.join(cells)}{hint}"
            )
    seeds = read_seeds(study["seeds"], f"{file}: study.seeds")
    try:
        plan = Plan.parse(study.get("effect"), seeds, study.get("looks"))
    except InputError as error:
        raise InputError(f"{file}: study.{error}") from None
    return Study(
        name=file.stem,
        file=file,
        task=str(task),
        question=question,
        metric=metric,
        higher_is_better=better,
        baseline=baseline,
        expect=tuple(expect),
        seeds=seeds,
        plan=plan,
        budget=budget,
        axes=({"base": tuple(bases)} if len(bases) > 1 else {})
        | {axis: tuple(values) for axis, values in axes.items()},
        cells=cells,
    )


def expand(
    file: Path, bases: dict[str, Config], axes: dict[str, dict], budget: dict[str, float]
) -> dict[str, Cell]:
    """Build the product of bases and axes; a cell's name joins the names of its values by "-"."""
    cells: dict[str, Cell] = {}
    options = [[(axis, *value) for value in values.items()] for axis, values in axes.items()]
    for base, chosen in itertools.product(bases, itertools.product(*options)):
        values = ({"base": base} if len(bases) > 1 else {}) | {axis: v for axis, v, _ in chosen}
        name = "-".join(values.values()) or base
        if name in cells:
            raise InputError(f"{file}: two cells are named {name}: rename a value of an axis")
        config, paths = copy.deepcopy(bases[base]), []
        for axis, value, nodes in chosen:
            for written, node in nodes.items():
                path = full_path(config, written)
                if lost := next((p for p in paths if f"{p}.".startswith(f"{path}.")), None):
                    raise InputError(
                        f"{file}: axes.{axis}.{value}: {path} replaces the value that was set at"
                        f" {lost}: move this axis to the front"
                    )
                try:
                    replace(config, path, node)
                except InputError as error:
                    raise InputError(f"{file}: axes.{axis}.{value}: {error}") from None
                paths.append(path)
        config = with_budget(config, budget)
        hashes = identity_sha256(config, budget), sha256(config, budget)
        cells[name] = Cell(values, tuple(paths), config, *hashes)
    return cells


def full_path(config: Config, path: str) -> str:
    """Expand a short dotted path by the `init_args` that it leaves out.

    `model.network.attention` becomes `model.network.init_args.attention` where the network of the
    config is a class with arguments. A path in full is returned unchanged.
    """
    keys, here = [], config
    for key in path.split("."):
        if isinstance(here, dict) and here.keys() & CLASS_KEYS and key not in {*here, *CLASS_KEYS}:
            keys.append("init_args")
            here = here.get("init_args")
        keys.append(key)
        here = here.get(key) if isinstance(here, dict) else None
    return ".".join(keys)


def replace(config: Config, path: str, node: Any) -> None:
    """Replace the value at a dotted path, short or in full, in place.

    Raises:
        InputError: a value on the way is not a mapping.
    """
    path = full_path(config, path)
    *parents, last = path.split(".")
    for depth, key in enumerate(parents, start=1):
        config = config.setdefault(key, {})
        if not isinstance(config, dict):
            raise InputError(
                f"{path}: {'.'.join(parents[:depth])} is {config!r} in the base, which"
                " does not have keys: write it there as class_path and init_args"
            )
    config[last] = copy.deepcopy(node)


def with_budget(config: Config, budget: dict[str, float]) -> Config:
    """Return the config with the budget in place of the base's own length of training.

    * epochs: passes over the training data; `WarmupCosine` has the same length.
    * steps: optimizer steps; `WarmupCosine` has the same length.
    * flops: floating-point operations of the whole training, as 3 forward passes of 2 operations
      per multiply-add for each image. `preflight.run_preflight` counts the multiply-adds of a cell
      and converts the budget by `flops_to_steps`.
    * seconds: wall-clock time over all attempts (`trainer.max_time`). The base's max_epochs stays,
      and with it the length of `WarmupCosine`: training stops when the time is up, on a slow
      machine in the middle of the cosine. Runs are not reproducible under this budget.
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
    """Convert a budget in FLOPs to optimizer steps, at least one.

    Args:
        flops: budget of the whole training.
        macs: multiply-adds of a forward pass per image.
        images: images per step.
    """
    return max(1, round(flops / (2 * 3 * macs * images)))


def sha256(config: Config, budget: dict[str, float]) -> str:
    """Hash of a config and its budget; results of version 0.1 depend on it."""
    text = json.dumps({"config": config, "budget": budget}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def identity_sha256(config: Config, budget: dict[str, float]) -> str:
    """Hash of a budget and of what changes the training; results of studies depend on it."""
    part = training_part(config, re.compile(HARDWARE))
    if "flops" in budget:  # which sets the length of a run
        part["trainer"] = {k: v for k, v in part.get("trainer", {}).items() if k not in LENGTHS}
    return sha256(part, budget)


def merge(config: Config, more: Config) -> Config:
    """Merge `more` into a copy of `config`, as a second -c does; lists are replaced."""
    merged = dict(config)
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else copy.deepcopy(value)
    return merged


def with_profile(study: Study, profile: Config) -> Study:
    """Return the study with a profile merged into all cells.

    What a profile changes in the training belongs to the identity of a cell's results: to its hash,
    and to `Study.profile`. Hardware, logging and places of data do not.
    """
    part = training_part(profile, re.compile(HARDWARE + PLACES))
    cells = {}
    for name, cell in study.cells.items():
        found = identity_sha256(merge(cell.config, part), study.budget)
        before = cell.earlier_sha256 if found == cell.sha256 else ""
        cells[name] = Cell(cell.values, cell.paths, merge(cell.config, profile), found, before)
    changed = any(cells[name].sha256 != cell.sha256 for name, cell in study.cells.items())
    return dataclasses.replace(study, cells=cells, profile=dict(flattened(part)) if changed else {})


def training_part(config: Config, outside: re.Pattern, above: str = "") -> Config:
    """Return the part of a config that changes the training.

    Args:
        config: the config, or a node of it.
        outside: matches dotted keys, without `init_args`, that do not.
        above: key of the node.
    """
    part = {}
    for key, value in config.items():
        path = above if key == "init_args" else f"{above}.{key}".lstrip(".")
        if outside.fullmatch(path):
            continue
        if path in ("trainer.devices", "trainer.num_nodes") and value in ONE_PROCESS:
            continue
        if path == "trainer.plugins" and "Environment" in str(value):  # which finds a job's ranks
            continue
        if isinstance(value, dict) and value:
            value = training_part(value, outside, path)
            if not value:
                continue
        part[key] = value
    return part


def is_of_training(key: str) -> bool:
    """Whether an argument, by its dotted key without `init_args`, changes the training."""
    of_a_job = key in ("trainer.devices", "trainer.num_nodes") or key.startswith("trainer.plugins")
    return not (of_a_job or re.fullmatch(HARDWARE + PLACES, key))


def flattened(config: Config, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key, without `init_args`, and value of all leaves of a config."""
    for key, value in config.items():
        path = above if key == "init_args" else f"{above}.{key}".lstrip(".")
        if isinstance(value, dict) and value:
            yield from flattened(value, path)
        else:
            yield path, value


def differences(there: Config, here: Config, budget: dict[str, float]) -> list[str]:
    """Words on how the training differs in two configs: "trainer.max_epochs 1, not 6".

    Args:
        there: config that a run had.
        here: config that it should have.
        budget: of the study; one in FLOPs sets the length of a run itself.
    """
    outside = re.compile(HARDWARE + PLACES)
    before, now = (dict(flattened(training_part(one, outside))) for one in (there, here))
    counted = {f"trainer.{key}" for key in LENGTHS} if "flops" in budget else set()
    return [
        f"{key} {before.get(key, 'unset')}, not {now.get(key, 'unset')}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key) and key not in counted
    ]


def read_bases(file: Path, base: Any) -> dict[str, Config]:
    """Read one or several experiment files; their paths are relative to the study file."""
    if base is None:
        raise InputError(f"{file}: missing: base, an experiment file")
    named = base if isinstance(base, dict) else {Path(str(base)).stem: base}
    if not named:
        raise InputError(f"{file}: base is empty: name an experiment file")
    configs = {}
    for name, path in named.items():
        source = file.parent / str(path)
        if not source.is_file():
            raise InputError(f"{file}: base: no such file: {source} (relative to the study file)")
        config = read_yaml(source)
        for key in ("seed_everything", "run", "ckpt_path"):
            config.pop(key, None)  # these belong to one run, not to the experiment
        configs[value_name(name, f"{file}: base")] = config
    return configs


def read_axes(file: Path, axes: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """Read the axes, as {axis: {value: {path: node}}}."""
    read: dict[str, dict] = {}
    for axis, values in mapping(axes, file, "axes").items():
        where = f"{file}: axes.{axis}"
        if not isinstance(values, dict) or not values:
            raise InputError(f"{where} has no values: write it as {{name: {{path: node}}}}")
        read[str(axis)] = {}
        for value, nodes in values.items():
            nodes = mapping({} if nodes is None else nodes, file, f"axes.{axis}.{value}")
            for path in nodes:
                if path == "seed_everything":
                    raise InputError(f"{where}.{value}: seeds belong in study.seeds")
            read[str(axis)][value_name(value, where)] = nodes
    return read


def value_name(name: Any, where: str) -> str:
    """Return the name of a value of an axis.

    Raises:
        InputError: it is not a valid folder name.
    """
    if isinstance(name, bool) or not NAME.fullmatch(str(name)):
        raise InputError(
            f"{where}: '{name}' is not a valid folder name: use letters, digits and _ . + -, and"
            " quote words such as 'on' and 'no'"
        )
    return str(name)


def read_budget(file: Path, budget: Any) -> dict[str, float]:
    """Read the budget: empty, or one of `BUDGETS` with its number."""
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
        raise InputError(f"{file}: study.budget.{key}: '{number}' is not a number") from None
    if not 0 < number < float("inf"):
        raise InputError(f"{file}: study.budget.{key}: {number} is not positive")
    return {key: number}


def read_seeds(seeds: Any, where: str) -> tuple[int, ...]:
    """Read the seeds: distinct integers of 32 bits."""
    if not isinstance(seeds, list) or not seeds:
        raise InputError(f"{where}: expected a list of integers")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise InputError(f"{where}: '{seed}' is not an integer")
        if line := refusal(f"{where}: a seed", seed, Seed):
            raise InputError(line)
        if seeds.count(seed) > 1:
            raise InputError(f"{where}: duplicate seed {seed}")
    return tuple(seeds)
