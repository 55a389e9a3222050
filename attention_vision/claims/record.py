"""Recording of run folders in experiments/results, which the ledger reads."""

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from attention_vision.claims.claim import Claim
from attention_vision.errors import InputError
from attention_vision.identity import checkpoint_id, code_difference, data_difference
from attention_vision.report.consistency import is_number, not_finite
from attention_vision.report.shapes import CLAIM_OUTCOME, EVALUATION, check_shape
from attention_vision.yaml_json import read_dataclass, read_json, read_yaml, require

# Keys that may differ from the experiment file: they do not change the experiment.
IGNORED = re.compile(
    r"task|run|claim\b.*|seed_everything|threads|checkpoint_every_n_steps"
    r"|trainer\.(accelerator|strategy|devices|num_nodes|precision|logger|log_every_n_steps)\b.*"
    r"|trainer\.(enable_\w+|callbacks|num_sanity_val_steps)\b.*"
    r"|data\.init_args\.(root|download|num_workers|\w*(images|masks|annotations))"
)

# Limits of the trainer, with the values that limit nothing.
LIMITS = {
    "max_epochs": (None, -1), "max_steps": (None, -1), "max_time": (None,),
    "limit_train_batches": (None, 1.0), "limit_val_batches": (None, 1.0),
    "limit_test_batches": (None, 1.0), "overfit_batches": (None, 0, 0.0),
    "fast_dev_run": (None, False, 0),
}  # fmt: skip


def record_results(runs: list[Path], root: Path) -> Path:
    """Write the results of runs of one experiment, one per seed; return the file.

    Args:
        runs: run folders.
        root: the repository.

    Raises:
        InputError: a folder does not contain a run whose claim was evaluated on all images, belongs
            to no experiment here or to another one than the first, or has a different config; it
            was trained on since, or its files are of several checkpoints; two runs have the same
            seed, other data or another config; or the results file exists.
    """
    entries, notes, versions, experiments = [], [], {}, set()
    first: tuple[Path, dict[str, Any], dict[str, Any]] | None = None
    for run in runs:
        for name in ("config.yaml", "claim.json"):
            if not (run / name).is_file():
                raise InputError(f"{run} is not a run that was compared with a claim: no {name}")
        config, outcome = read_yaml(run / "config.yaml"), read_json(run / "claim.json")
        check_shape(outcome, CLAIM_OUTCOME, run / "claim.json")
        check_shape(config, {"task": str, "trainer": {}}, run / "config.yaml")
        experiment = experiment_of(outcome, run, root)
        experiments.add(experiment)
        given = read_yaml(experiment)
        for difference in [*differences(given, config), *shortened(given, config)]:
            raise InputError(f"{run} is not a run of {experiment.relative_to(root)}: {difference}")
        if "not comparable" in require(outcome, "verdict", str, run / "claim.json"):
            raise InputError(f"{run} was evaluated on a part of the images: validate it again")
        refuse_other_checkpoints(run, outcome)
        refuse_other_question(run, outcome)
        data = data_of(run)
        first = first or (run, config, data)
        refuse_unlike(run, config, data, *first)
        seed = require(config, "seed_everything", int, run / "config.yaml")
        if seed in (entry["seed"] for entry in entries):
            raise InputError(f"{run}: two runs have seed {seed}")
        measured = outcome.get("measured")
        metrics = {outcome["metric"]: measured, **evaluated_metrics(run, outcome)}
        if not is_number(measured) or not_finite(metrics, outcome["metric"]):
            raise InputError(f"{run}: {outcome['metric']} is not finite: the run has diverged")
        configuration = {"config_sha256": experiment_sha256(given)}
        entries.append({"cell": experiment.stem, "seed": seed, "metrics": metrics} | configuration)
        found = versions_in_header(run / "config.yaml")
        versions = versions or found
        if changed := code_difference(found, versions):
            notes.append(f"code: seed {seed} ran with {changed} as the first")
    if len(experiments) > 1:
        raise InputError(f"runs of several experiments: {', '.join(map(str, sorted(experiments)))}")
    (experiment,) = experiments
    file = root / "experiments/results" / f"{experiment.stem}.json"
    if file.exists():
        raise InputError(f"{file} exists: results are not overwritten; rename it")
    path = str(experiment.relative_to(root))
    task = require(read_yaml(experiment), "task", str, experiment)
    ended = max((run / "claim.json").stat().st_mtime for run in runs)
    content = {
        "what": {"title": outcome["source"], "experiment": path},
        "command": [
            f"attention-vision {task} fit -c {path} --seed_everything {entry['seed']}"
            for entry in entries
        ],
        "date": f"{date.fromtimestamp(ended)}",
        "versions": versions,
        "runs": sorted(entries, key=lambda entry: entry["seed"]),
        "notes": notes,
    }
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    return file


def experiment_of(outcome: dict[str, Any], run: Path, root: Path) -> Path:
    """Return the experiment file with the claim of a run."""
    for file in sorted((root / "experiments").rglob("*.yaml")):
        given = read_yaml(file).get("claim")
        if given is None:
            continue
        claim = read_dataclass(Claim, given, str(file))
        if all(outcome.get(key) == getattr(claim, key) for key in ("source", "metric", "reported")):
            return file
    raise InputError(f"{run}: no experiment here has its claim: {outcome.get('source')}")


def experiment_sha256(experiment: dict[str, Any]) -> str:
    """Hash of what an experiment file says of the training, without `IGNORED`."""

    def part(node: Any, path: str = "") -> Any:
        if not isinstance(node, dict):
            return node
        below = {key: f"{path}.{key}".lstrip(".") for key in node}
        return {
            key: part(value, below[key])
            for key, value in node.items()
            if not IGNORED.fullmatch(below[key])
        }

    text = json.dumps(part(experiment), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_other_checkpoints(run: Path, outcome: dict[str, Any]) -> None:
    """Refuse a claim that was compared with another checkpoint than the run now has.

    Files of version 0.1 do not say which it was; they are taken as they are.

    Raises:
        InputError: the run was trained on since, or its files are of two checkpoints.
    """
    verb, measured = outcome.get("by"), outcome.get("checkpoint_id")
    again = f"{run}: was trained on after {verb} measured it: validate it again"
    if verb == "fit" and "step" in outcome and last_validated(run) not in (None, outcome["step"]):
        raise InputError(again)
    report = evaluation(run, outcome)
    measured = measured or report.get("checkpoint_id")  # weights that a flag named
    if measured is None:
        return
    kept = (run / "checkpoints").glob("*.ckpt")
    if measured not in {checkpoint_id(file) for file in kept}:
        raise InputError(again)
    if report.get("checkpoint_id", measured) not in (None, measured):
        raise InputError(
            f"{run}: claim.json and {verb}.json are of different checkpoints: {verb} it again"
        )


def refuse_other_question(run: Path, outcome: dict[str, Any]) -> None:
    """Refuse a claim that was measured on other data, or with other arguments, than the run's.

    Raises:
        InputError: what differs, in one line.
    """
    report, verb = evaluation(run, outcome), outcome.get("by")
    changed = ", ".join(f"{key} {words}" for key, words in (report.get("changed") or {}).items())
    if changed := changed or data_difference(data_of(run), report.get("data") or {}):
        raise InputError(f"{run}: {verb}.json was measured otherwise: {changed}; {verb} it again")


def last_validated(run: Path) -> int | None:
    """Return the step of the last validation in metrics.csv; None without one."""
    file, step = run / "metrics.csv", None
    if not file.is_file():
        return None
    with file.open(newline="") as stream:
        for row in csv.DictReader(stream):
            if any(key and key.startswith("val/") and cell for key, cell in row.items()):
                with suppress(KeyError, ValueError, TypeError):
                    step = int(row["step"])
    return step


def data_of(run: Path) -> dict[str, Any]:
    """Return the fingerprint of the data of a run; {} of a run of version 0.1."""
    file = run / "data.json"
    found = read_json(file).get("fingerprint") if file.is_file() else None
    return found if isinstance(found, dict) else {}


def refuse_unlike(
    run: Path,
    config: dict[str, Any],
    data: dict[str, Any],
    first: Path,
    of_first: dict[str, Any],
    data_of_first: dict[str, Any],
) -> None:
    """Refuse a run that differs from the first in more than its seed.

    Raises:
        InputError: its data or its config differ.
    """
    if changed := data_difference(data_of_first, data):
        raise InputError(f"{run} has other data than {first}: {changed}")
    for difference in [*differences(of_first, config), *differences(config, of_first)]:
        raise InputError(f"{run} and {first} are not runs of one experiment: {difference}")


def evaluated_metrics(run: Path, outcome: dict[str, Any]) -> dict[str, float | None]:
    """Return all metrics of validate or test, if the claim was compared by one of them.

    Those that are not defined, as for a class without images, are None.
    """
    report = evaluation(run, outcome)
    metrics = report.get("metrics") or {}
    return {key: value if is_number(value) else None for key, value in metrics.items()}


def evaluation(run: Path, outcome: dict[str, Any]) -> dict[str, Any]:
    """Read validate.json or test.json, whichever the claim was compared by; {} without it."""
    file = run / f"{outcome.get('by')}.json"
    if outcome.get("by") not in ("validate", "test") or not file.is_file():
        return {}
    content = read_json(file)
    check_shape(content, EVALUATION, file)
    return content


def versions_in_header(config: Path) -> dict[str, str]:
    """Read versions from "# attention-vision 0.1.0, lightning 2.6.6, torch 2.15.0"."""
    line = config.read_text().partition("\n")[0]
    parts = (part.split() for part in line.removeprefix("#").split(","))
    return {part[0]: part[1] for part in parts if len(part) == 2}


def differences(experiment: Any, config: Any, path: str = "") -> Iterator[str]:
    """Yield a sentence for each value of the experiment file that a run's config contradicts."""
    if IGNORED.fullmatch(path):
        return
    if isinstance(experiment, str) and isinstance(config, dict):
        config = config.get("class_path")  # the short form of a class without arguments
    if isinstance(experiment, dict) and isinstance(config, dict):
        if "class_path" in config and experiment.keys().isdisjoint(("class_path", "init_args")):
            config = config.get("init_args") or {}  # the arguments alone, of the default class
        for key, value in experiment.items():
            yield from differences(value, config.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(experiment, list) and isinstance(config, list):
        for index, pair in enumerate(zip(experiment, config, strict=False)):
            yield from differences(*pair, f"{path}.{index}")
        if len(experiment) != len(config):
            yield f"{path} has {len(config)} items instead of {len(experiment)}"
    elif class_name(experiment) != class_name(config):
        yield f"{path} is {config} instead of {experiment}"


def shortened(experiment: dict[str, Any], config: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each limit of the trainer that the experiment file does not have."""
    given, trainer = experiment.get("trainer") or {}, config.get("trainer") or {}
    for key, unlimited in LIMITS.items():
        value = trainer.get(key)
        limits = not any(value == one and type(value) is type(one) for one in unlimited)  # 1 != 1.0
        if key not in given and limits:
            yield f"trainer.{key} is {value}, which the experiment does not set"


def class_name(value: Any) -> Any:
    """Strip the module of a class path, which a file may leave out."""
    return value.rpartition(".")[2] if isinstance(value, str) else value
