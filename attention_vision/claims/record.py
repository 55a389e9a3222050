"""Recording of run folders in experiments/results, which the ledger reads."""

import json
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from attention_vision.claims.claim import Claim
from attention_vision.errors import InputError
from attention_vision.yaml_json import read_dataclass, read_json, read_yaml, require

# Keys that may differ from the experiment file: they do not change the experiment.
IGNORED = re.compile(
    r"task|run|claim\b.*|seed_everything|threads|checkpoint_every_n_steps"
    r"|trainer\.(accelerator|strategy|devices|num_nodes|precision|logger|log_every_n_steps)\b.*"
    r"|trainer\.(enable_\w+|callbacks|num_sanity_val_steps)\b.*"
    r"|data\.init_args\.(root|download|num_workers|\w*(images|masks|annotations))"
)


def record_results(runs: list[Path], root: Path) -> Path:
    """Write the results of runs of one experiment, one per seed; return the file.

    Args:
        runs: run folders.
        root: the repository.

    Raises:
        InputError: a folder does not contain a run whose claim was evaluated on all images, belongs
            to no experiment here or to another one than the first, or has a different config; two
            runs have the same seed; or the results file exists.
    """
    entries, versions, experiments = [], {}, set()
    for run in runs:
        for name in ("config.yaml", "claim.json"):
            if not (run / name).is_file():
                raise InputError(f"{run} is not a run that was compared with a claim: no {name}")
        config, outcome = read_yaml(run / "config.yaml"), read_json(run / "claim.json")
        experiment = experiment_of(outcome, run, root)
        experiments.add(experiment)
        for difference in differences(read_yaml(experiment), config):
            raise InputError(f"{run} is not a run of {experiment.relative_to(root)}: {difference}")
        if "not comparable" in require(outcome, "verdict", str, run / "claim.json"):
            raise InputError(f"{run} was evaluated on a part of the images: validate it again")
        seed = require(config, "seed_everything", int, run / "config.yaml")
        if seed in (entry["seed"] for entry in entries):
            raise InputError(f"{run}: two runs have seed {seed}")
        metrics = {outcome["metric"]: outcome["measured"], **evaluated_metrics(run, outcome)}
        entries.append({"cell": experiment.stem, "seed": seed, "metrics": metrics})
        versions |= versions_in_header(run / "config.yaml")
    if len(experiments) > 1:
        raise InputError(f"runs of several experiments: {', '.join(map(str, sorted(experiments)))}")
    (experiment,) = experiments
    file = root / "experiments/results" / f"{experiment.stem}.json"
    if file.exists():
        raise InputError(f"{file} exists: results are not overwritten; rename it")
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
    """Return the experiment file with the claim of a run."""
    for file in sorted((root / "experiments").rglob("*.yaml")):
        given = read_yaml(file).get("claim")
        if given is None:
            continue
        claim = read_dataclass(Claim, given, str(file))
        if all(outcome.get(key) == getattr(claim, key) for key in ("source", "metric", "reported")):
            return file
    raise InputError(f"{run}: no experiment here has its claim: {outcome.get('source')}")


def evaluated_metrics(run: Path, outcome: dict[str, Any]) -> dict[str, float]:
    """Return all metrics of validate or test, if the claim was compared by one of them."""
    file = run / f"{outcome.get('by')}.json"
    return read_json(file).get("metrics", {}) if file.is_file() else {}


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
        for key, value in experiment.items():
            yield from differences(value, config.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(experiment, list) and isinstance(config, list):
        for index, pair in enumerate(zip(experiment, config, strict=False)):
            yield from differences(*pair, f"{path}.{index}")
        if len(experiment) != len(config):
            yield f"{path} has {len(config)} items instead of {len(experiment)}"
    elif class_name(experiment) != class_name(config):
        yield f"{path} is {config} instead of {experiment}"


def class_name(value: Any) -> Any:
    """Strip the module of a class path, which a file may leave out."""
    return value.rpartition(".")[2] if isinstance(value, str) else value
