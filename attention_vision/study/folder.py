"""Layout of a study folder, with atomic writes.

study.json, and cells/CELL/seedS/{cell.yaml,result.json,error.txt,log.txt,progress.json} in addition
to the files that `attention-vision TASK fit` writes into a run folder.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_vision.errors import InputError
from attention_vision.study.definition import Study
from attention_vision.yaml_json import read_json, to_json, write_atomically


@dataclass(frozen=True)
class Run:
    """One run of a study: a cell with a seed, and the facts that a worker needs.

    Args:
        study: name of the study.
        task: classification, detection or generation.
        metric: logged key that the study compares.
        cell: name of the cell.
        seed: seed of the run.
        sha256: hash of the cell, see `definition.Cell`.
        folder: folder of the run.
    """

    study: str
    task: str
    metric: str
    cell: str
    seed: int
    sha256: str
    folder: Path

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def config(self) -> Path:
        return self.folder / "cell.yaml"

    @property
    def error(self) -> Path:
        return self.folder / "error.txt"

    @property
    def progress(self) -> Path:
        """File of {"seconds": spent in all attempts, "share": finished fraction of the run}."""
        return self.folder / "progress.json"

    def __str__(self) -> str:
        return f"{self.cell} seed {self.seed}"


def runs_of(
    study: Study, folder: Path, seeds: Iterable[int], cells: Iterable[str]
) -> Iterator[Run]:
    """Yield the runs seed by seed, so that an interrupted study has paired results."""
    for seed in seeds:
        for name in cells:
            run = folder / "cells" / name / f"seed{seed}"
            sha256 = study.cells[name].sha256
            yield Run(study.name, study.task, study.metric, name, seed, sha256, run)


def read_result(run: Run) -> dict[str, Any] | None:
    """Read result.json; None before the run has finished.

    Raises:
        InputError: the file is damaged, or belongs to another configuration.
    """
    if not run.result.is_file():
        return None
    try:
        result = read_json(run.result)
        metrics, sha256 = result["metrics"], result["config_sha256"]
    except (InputError, KeyError) as error:
        raise InputError(
            f"{run.result} is truncated or damaged: delete it, then {run} is run again"
        ) from error
    if sha256 != run.sha256 or not isinstance(metrics, dict):
        raise InputError(
            f"{run.result} belongs to another configuration of cell {run.cell} than the study file"
            " describes: give another --folder, or delete it"
        )
    return result


def read_progress(run: Run) -> dict[str, float]:
    """Read progress.json; zeros before the first attempt."""
    try:
        return json.loads(run.progress.read_text())
    except (OSError, json.JSONDecodeError):
        return {"seconds": 0.0, "share": 0.0}


def last_error(run: Run) -> str:
    """Return the last line of error.txt; empty without an error."""
    lines = run.error.read_text().split("\n") if run.error.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def write_study(study: Study, folder: Path, seeds: Iterable[int], facts: dict[str, Any]) -> None:
    """Write study.json; seeds of earlier calls are kept.

    Args:
        study: the expanded study file.
        folder: folder of the study.
        seeds: seeds of this call.
        facts: versions, hardware and commit; those of the first call are kept.
    """
    earlier = read_json(folder / "study.json") if (folder / "study.json").is_file() else {}
    content = study.describe()
    content["seeds"] = sorted({*study.seeds, *seeds, *earlier.get("seeds", [])})
    facts |= {key: earlier[key] for key in facts if key in earlier}
    write_atomically(folder / "study.json", to_json(content | facts))


def check_same_study(study: Study, folder: Path) -> None:
    """Check that the folder is new, or contains an earlier state of this study.

    Seeds, cells, expectations and the question may be added or changed, as may the config of a
    cell without a checkpoint or result; other configs must be the same.

    Raises:
        InputError: the folder belongs to another study; the message names the difference.
    """
    file = folder / "study.json"
    if not file.is_file():
        if folder.is_dir() and any(path.name != "cells" for path in folder.iterdir()):
            raise InputError(f"{folder} is not a study folder: give another --folder")
        return
    old, new = read_json(file), study.describe()
    difference = ""
    if old.get("name") != study.name:
        difference = f"it belongs to study {old.get('name')}, not {study.name}"
    elif old.get("budget") != new["budget"]:
        difference = f"its budget is {old.get('budget')}, not {new['budget']}"
    else:
        for name, cell in old.get("cells", {}).items():
            runs = folder / "cells" / name
            begun = any(runs.glob("*/checkpoints/*.ckpt")) or any(runs.glob("*/result.json"))
            if name not in study.cells and runs.is_dir():
                difference = f"its cell {name} is not in {study.file}"
            elif begun and cell.get("config_sha256") != study.cells[name].sha256:
                difference = f"its cell {name} has another configuration than in {study.file}"
            if difference:
                break
    if difference:
        raise InputError(f"{folder} contains another study: {difference}; give another --folder")
