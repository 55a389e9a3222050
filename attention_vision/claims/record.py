"""Run folders of an experiment, as a file of experiments/results that the ledger reads."""

import json
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from attention_vision.claims.claim import Claim
from attention_vision.errors import InputError
from attention_vision.yaml_json import read_card, read_json, read_yaml, take

# What may differ from the experiment's file without making another experiment of it.
ELSEWHERE = re.compile(
    r"task|run|claim\b.*|seed_everything|threads|checkpoint_every_n_steps"
    r"|trainer\.(accelerator|strategy|devices|num_nodes|precision|logger|log_every_n_steps)\b.*"
    r"|trainer\.(enable_\w+|callbacks|num_sanity_val_steps)\b.*"
    r"|data\.init_args\.(root|download|num_workers|\w*(images|masks|annotations))"
)


def record(runs: list[Path], root: Path) -> Path:
    """Writes what runs of one experiment measured, a run per seed; returns the file.

    Raises:
        InputError: a folder holds no run with a claim that was measured on all images, is of no
            experiment here or of another than the first, or was trained otherwise; two runs have
            one seed; or the results are there already.
    """
    entries, versions, experiments = [], {}, set()
    for run in runs:
        for name in ("config.yaml", "claim.json"):
            if not (run / name).is_file():
                raise InputError(f"{run} holds no run that was compared with a claim: no {name}")
        config, outcome = read_yaml(run / "config.yaml"), read_json(run / "claim.json")
        experiment = experiment_of(outcome, run, root)
        experiments.add(experiment)
        for difference in differences(read_yaml(experiment), config):
            raise InputError(f"{run} is no run of {experiment.relative_to(root)}: {difference}")
        if "not comparable" in take(outcome, "verdict", str, run / "claim.json"):
            raise InputError(f"{run} was measured on a part of the images: validate it again")
        seed = take(config, "seed_everything", int, run / "config.yaml")
        if seed in (entry["seed"] for entry in entries):
            raise InputError(f"{run}: two runs have seed {seed}")
        metrics = {outcome["metric"]: outcome["measured"], **measured(run, outcome)}
        entries.append({"cell": experiment.stem, "seed": seed, "metrics": metrics})
        versions |= header(run / "config.yaml")
    if len(experiments) > 1:
        raise InputError(f"runs of several experiments: {', '.join(map(str, sorted(experiments)))}")
    (experiment,) = experiments
    file = root / "experiments/results" / f"{experiment.stem}.json"
    if file.exists():
        raise InputError(f"{file} is there already: results are kept; move it to another name")
    path = str(experiment.relative_to(root))
    ended = max((run / "claim.json").stat().st_mtime for run in runs)
    content = {
        "what": {"title": outcome["source"], "experiment": path},
        "command": [
            f"attention-vision {config['task']} fit -c {path} --seed_everything {entry['seed']}"
            for entry in entries
        ],
        "date": f"{date.fromtimestamp(ended)}",
        "versions": versions,
        "runs": sorted(entries, key=lambda entry: entry["seed"]),
        "notes": [],
    }
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    return file


def experiment_of(outcome: dict[str, Any], run: Path, root: Path) -> Path:
    """The experiment whose lab card has the claim of a run."""
    for file in sorted((root / "experiments").rglob("*.yaml")):
        given = read_yaml(file).get("claim")
        if given is None:
            continue
        claim = read_card(Claim, given, str(file))
        if all(outcome.get(key) == getattr(claim, key) for key in ("source", "metric", "reported")):
            return file
    raise InputError(f"{run}: no experiment here claims what it does: {outcome.get('source')}")


def measured(run: Path, outcome: dict[str, Any]) -> dict[str, float]:
    """All metrics of the best checkpoint, where the claim was compared by validate or test."""
    file = run / f"{outcome.get('by')}.json"
    return read_json(file).get("metrics", {}) if file.is_file() else {}


def header(config: Path) -> dict[str, str]:
    """Versions from "# attention-vision 0.1.0, lightning 2.6.6, torch 2.15.0"."""
    line = config.read_text().partition("\n")[0]
    parts = (part.split() for part in line.removeprefix("#").split(","))
    return {part[0]: part[1] for part in parts if len(part) == 2}


def differences(experiment: Any, config: Any, path: str = "") -> Iterator[str]:
    """What the experiment's file says and a run's complete config says otherwise, in words."""
    if ELSEWHERE.fullmatch(path):
        return
    if isinstance(experiment, str) and isinstance(config, dict):
        config = config.get("class_path")  # a class without arguments may be its name alone
    if isinstance(experiment, dict) and isinstance(config, dict):
        for key, value in experiment.items():
            yield from differences(value, config.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(experiment, list) and isinstance(config, list):
        for place, pair in enumerate(zip(experiment, config, strict=False)):
            yield from differences(*pair, f"{path}.{place}")
        if len(experiment) != len(config):
            yield f"{path} has {len(config)} items in place of {len(experiment)}"
    elif name(experiment) != name(config):
        yield f"{path} is {config} in place of {experiment}"


def name(value: Any) -> Any:
    """A class without its module, which a file may leave out."""
    return value.rpartition(".")[2] if isinstance(value, str) else value
