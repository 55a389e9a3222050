"""The folder of a study: what lies where, and how it is written so that no kill leaves a half.

study.json  cells/CELL/seedS/{cell.yaml,result.json,error.txt,log.txt,progress.json} beside what
`attention-vision TASK fit` leaves in a run folder
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
    """One cell of a study with one seed, and what a worker has to know of the study.

    Args:
        metric: the study's.
        sha256: of the cell, see `definition.Cell`.
        folder: of the run.
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
        """{"seconds": of all attempts so far, "share": of the training that is done}."""
        return self.folder / "progress.json"

    def __str__(self) -> str:
        return f"{self.cell} seed {self.seed}"


def runs_of(
    study: Study, folder: Path, seeds: Iterable[int], cells: Iterable[str]
) -> Iterator[Run]:
    """Seed by seed, so that a study that is cut short has its cells in pairs."""
    for seed in seeds:
        for name in cells:
            place = folder / "cells" / name / f"seed{seed}"
            sha256 = study.cells[name].sha256
            yield Run(study.name, study.task, study.metric, name, seed, sha256, place)


def read_result(run: Run) -> dict[str, Any] | None:
    """What result.json holds; None before the run has finished.

    Raises:
        InputError: the file is damaged, or of another configuration.
    """
    if not run.result.is_file():
        return None
    try:
        result = read_json(run.result)
        metrics, sha256 = result["metrics"], result["config_sha256"]
    except (InputError, KeyError) as error:
        raise InputError(
            f"{run.result} is cut short or damaged: delete it, and {run} is run to its end again"
        ) from error
    if sha256 != run.sha256 or not isinstance(metrics, dict):
        raise InputError(
            f"{run.result} is of another configuration of cell {run.cell} than the study file"
            " describes: give another --folder, or delete it"
        )
    return result


def read_progress(run: Run) -> dict[str, float]:
    """Zeros before the first attempt."""
    try:
        return json.loads(run.progress.read_text())
    except (OSError, json.JSONDecodeError):
        return {"seconds": 0.0, "share": 0.0}


def last_error(run: Run) -> str:
    """The last line of error.txt; empty where there is none."""
    lines = run.error.read_text().split("\n") if run.error.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def write_study(study: Study, folder: Path, seeds: Iterable[int], facts: dict[str, Any]) -> None:
    """Writes study.json; seeds of earlier calls stay in it.

    Args:
        facts: versions, hardware and commit, kept from the first call.
    """
    earlier = read_json(folder / "study.json") if (folder / "study.json").is_file() else {}
    described = study.describe()
    described["seeds"] = sorted({*study.seeds, *seeds, *earlier.get("seeds", [])})
    facts |= {key: earlier[key] for key in facts if key in earlier}
    write_atomically(folder / "study.json", to_json(described | facts))


def check_same_study(study: Study, folder: Path) -> None:
    """That the folder is new, or holds an earlier or smaller state of this study.

    Seeds, cells, expectations and the question may be added or changed, and so may the config of a
    cell that has no checkpoint yet; the configs of others may not.

    Raises:
        InputError: the folder is of another study; says in what it differs.
    """
    file = folder / "study.json"
    if not file.is_file():
        if folder.is_dir() and any(path.name != "cells" for path in folder.iterdir()):
            raise InputError(f"{folder} holds something else than a study: give another --folder")
        return
    there, here = read_json(file), study.describe()
    difference = ""
    if there.get("name") != study.name:
        difference = f"it is of study {there.get('name')}, not {study.name}"
    elif there.get("budget") != here["budget"]:
        difference = f"its budget is {there.get('budget')}, not {here['budget']}"
    else:
        for name, cell in there.get("cells", {}).items():
            place = folder / "cells" / name
            begun = any(place.glob("*/checkpoints/*.ckpt")) or any(place.glob("*/result.json"))
            if name not in study.cells and place.is_dir():
                difference = f"its cell {name} is not in {study.file}"
            elif begun and cell.get("config_sha256") != study.cells[name].sha256:
                difference = f"its cell {name} has another configuration than in {study.file}"
            if difference:
                break
    if difference:
        raise InputError(f"{folder} holds another study: {difference}; give another --folder")
