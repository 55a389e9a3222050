"""Export of a study: a results file to commit, or a W&B sweep."""

from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from attention_vision.errors import InputError
from attention_vision.report.consistency import most_common
from attention_vision.report.results import counted_runs, read_study
from attention_vision.study.definition import read_definition
from attention_vision.yaml_json import read_json, to_json, write_atomically

PROFILE = "experiments/profiles/wandb.yaml"
ABOUT = (
    "question", "task", "metric", "higher_is_better", "baseline", "expect", "effect", "looks",
    "profile",
)  # fmt: skip
RUN_KEYS = ("cell", "seed", "config_sha256", "metrics", "seconds", "cost", "data")


def export_results(folder: Path, file: Path) -> None:
    """Write the finished runs of a folder in the format of experiments/results/README.md.

    Those that a report leaves out are left out here too; the notes say which, and why.

    Raises:
        InputError: the folder does not contain a study, no run has finished, a result is damaged,
            or the file exists.
    """
    if file.exists():
        raise InputError(f"{file} exists: give a new file, results are not overwritten")
    if not (folder / "study.json").is_file():
        raise InputError(f"{folder} is not a study folder: give one that `study run` wrote")
    study = read_study(folder)  # with the messages of a report
    plan = read_json(folder / "study.json")
    kept, left_out, _ = counted_runs(folder, plan, folder / "study.json")
    notes = [*study.remarks, *(f"left out: {c} seed {s} {why}" for (c, s), why in left_out.items())]
    content = results_content(plan, folder, list(kept.values())) | {"notes": notes}
    write_atomically(file, to_json(content))


def results_content(
    plan: dict[str, Any], folder: Path, finished: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the content of the results file; unknown facts are left out."""
    first = finished[0]
    config = yaml.safe_load(
        (folder / "cells" / first["cell"] / f"seed{first['seed']}" / "cell.yaml").read_text()
    )
    data = config["data"]
    name = data["class_path"] if isinstance(data, dict) else data
    about = {key: plan[key] for key in ABOUT if plan.get(key) not in (None, {})}
    if plan.get("planned_seeds"):
        about["seeds"] = plan["planned_seeds"]
    if any(cell not in {one["cell"] for one in finished} for cell in plan["cells"]):
        about["cells"] = list(plan["cells"])  # expectations may name those without a result
    content = {
        "what": {"title": plan["question"], "experiment": plan["file"], "data": name},
        "command": [f"attention-vision study run {plan['file']}"],
        "commit": most_common([one.get("commit") or plan.get("commit") for one in finished]),
        "date": max(datetime.fromisoformat(one["finished"]) for one in finished).date().isoformat(),
        "hardware": "; ".join(dict.fromkeys(one["hardware"] for one in finished)),
        "versions": most_common([one["versions"] for one in finished]),
        "study": about,
        "budget": plan["budget"],
        "runs": [{key: one[key] for key in RUN_KEYS if key in one} for one in finished],
    }
    return {key: value for key, value in content.items() if value is not None}


def wandb_sweep(file: Path) -> str:
    """Return a W&B grid sweep over cells and seeds as YAML; each job is one run of the study.

    Agents that share the study folder complete it together; separate folders are merged by copying.

    Raises:
        InputError: the file is not a study.
    """
    study = read_definition(file)
    sweep = {
        "name": study.name,
        "description": study.question,
        "method": "grid",
        "metric": {
            "name": study.metric,
            "goal": "maximize" if study.higher_is_better else "minimize",
        },
        # Named as the options of `study run`: the agent passes them as flags.
        "parameters": {
            "seeds": {"values": list(study.seeds)},
            "only": {"values": list(study.cells)},
        },
        "command": [
            "${env}", "attention-vision", "study", "run", str(file), "--profile", PROFILE,
            "${args}",
        ],
    }  # fmt: skip
    return yaml.safe_dump(sweep, sort_keys=False)
