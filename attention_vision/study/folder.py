"""Layout of a study folder, with atomic writes.

study.json, preflights/CELL.json, and
cells/CELL/seedS/{cell.yaml,result.json,error.txt,log.txt,progress.json} in addition to the files
that `attention-vision TASK fit` writes into a run folder. Runs whose configuration is no longer
that of the study lie in earlier/SHA256/CELL/seedS, and return when it is again.
"""

import fcntl
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from attention_vision.errors import InputError
from attention_vision.identity import digest
from attention_vision.report.consistency import ASKED, in_words, not_finite
from attention_vision.study.definition import Study, differences
from attention_vision.yaml_json import Config, read_json, read_yaml, to_json, write_atomically

Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # for thousands of runs
HEADER = re.compile(r"# config_sha256 ([0-9a-f]{64})\n")  # first line of cell.yaml


@dataclass(frozen=True)
class Run:
    """One run of a study: a cell with a seed, and the facts that a worker needs.

    Args:
        study: name of the study.
        task: classification, detection or generation.
        metric: logged key that the study compares.
        cell: name of the cell.
        seed: seed of the run.
        sha256, earlier_sha256: hashes of the cell, see `definition.Cell`.
        folder: folder of the run.
    """

    study: str
    task: str
    metric: str
    cell: str
    seed: int
    sha256: str
    earlier_sha256: str
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

    @property
    def aside(self) -> "Run":
        """The same run where it lies while the study has another configuration."""
        study, below = self.folder.parents[2], Path(self.cell, self.folder.name)
        return replace(self, folder=study / "earlier" / self.sha256[:12] / below)

    def __str__(self) -> str:
        return f"{self.cell} seed {self.seed}"


def runs_of(
    study: Study, folder: Path, seeds: Iterable[int], cells: Iterable[str]
) -> Iterator[Run]:
    """Yield the runs seed by seed, so that an interrupted study has paired results."""
    for seed in seeds:
        for name in cells:
            run, cell = folder / "cells" / name / f"seed{seed}", study.cells[name]
            hashes = cell.sha256, cell.earlier_sha256
            yield Run(study.name, study.task, study.metric, name, seed, *hashes, run)


def read_result(run: Run) -> dict[str, Any] | None:
    """Read result.json; None before the run has finished, and for another configuration's.

    Raises:
        InputError: the file is damaged.
    """
    if not run.result.is_file():
        return None
    try:
        result = read_json(run.result)
        metrics, sha256 = result["metrics"], result["config_sha256"]
        is_whole = isinstance(metrics, dict) and isinstance(result.get("seconds", 0.0), int | float)
    except (InputError, KeyError):
        is_whole, sha256 = False, ""
    if not is_whole:
        raise InputError(
            f"{run.result} is truncated or damaged: delete it, then {run} is run again"
        )
    for key, value in {"study": run.study, "cell": run.cell, "seed": run.seed}.items():
        if result.get(key, value) != value:
            raise InputError(
                f"{run.result} belongs to another study or run: its {key} is {result[key]!r}, not"
                f" {value!r}; move it away, then {run} is run again"
            )
    return result if sha256 in (run.sha256, run.earlier_sha256) else None


def finished_result(run: Run) -> dict[str, Any] | None:
    """Return the result of a run that has finished well; None otherwise.

    A run that has diverged is a failed one: it is run again. One that finished before the study
    asked for its metric is evaluated again.

    Raises:
        InputError: result.json is damaged.
    """
    result = read_result(run)
    if result is None or run.metric not in result["metrics"]:
        return None
    return None if not_finite(result["metrics"], run.metric) else result


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


def write_config(run: Run, config: Config) -> None:
    """Write cell.yaml, with the hash of the cell in its first line."""
    text = yaml.dump(config, Dumper=Dumper, sort_keys=False)
    write_atomically(run.config, f"# config_sha256 {run.sha256}\n{text}")


def config_sha256(run: Run) -> str | None:
    """Read the hash in the first line of cell.yaml; None without one, as in version 0.1."""
    try:
        with run.config.open() as file:
            found = HEADER.match(file.readline())
    except (OSError, UnicodeDecodeError):
        return None
    return found[1] if found else None


def begun(run: Run) -> bool:
    """Whether a run has a result or a checkpoint."""
    return run.result.is_file() or any((run.folder / "checkpoints").glob("*.ckpt"))


def other_configuration(run: Run, study: Study) -> str:
    """Words on how the files in a run's folder belong to another configuration; empty if not."""
    known = config_sha256(run)
    if known == run.sha256 or not begun(run):
        return ""
    changes = []
    if run.config.is_file():
        config = study.cells[run.cell].config
        changes = differences(read_yaml(run.config), config, study.budget)[:3]
    if known or (run.result.is_file() and read_result(run) is None):
        return "; ".join(changes) or "other data or another budget"
    return "; ".join(changes)  # in version 0.1 a profile was not part of the hash


def set_aside(run: Run) -> Path:
    """Move the folder of a run to those of earlier configurations; return its new place.

    Raises:
        InputError: another runner works in it.
    """
    refuse_held(run)
    known = config_sha256(run) or digest([run.config.read_bytes() if run.config.is_file() else b""])
    place = replace(run, sha256=known).aside.folder
    place.parent.mkdir(parents=True, exist_ok=True)
    copies, free = 1, place
    while free.exists():
        copies += 1
        free = place.with_name(f"{place.name}-{copies}")
    run.folder.rename(free)
    return free


def bring_back(run: Run) -> None:
    """Move the folder of a run back from those of earlier configurations."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    if run.folder.is_dir():  # an attempt without a checkpoint
        set_aside(run)
    run.aside.folder.rename(run.folder)


def refuse_held(run: Run) -> None:
    """Raise InputError where another process works in the folder of a run."""
    with (run.folder / "lock").open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{run.folder}: another runner works there with another configuration: stop it, or"
                " give another --folder"
            ) from None


def write_study(study: Study, folder: Path, seeds: Iterable[int], facts: dict[str, Any]) -> str:
    """Write study.json; seeds of earlier calls are kept.

    Args:
        study: the expanded study file.
        folder: folder of the study.
        seeds: seeds of this call.
        facts: versions, hardware and commit; those of the first call are kept.

    Returns:
        words on what the study asks for now and did not before; empty if that is the same.
    """
    earlier = read_json(folder / "study.json") if (folder / "study.json").is_file() else {}
    content = study.describe()
    known = [seed for seed in earlier.get("seeds", []) if isinstance(seed, int)]
    content["seeds"] = sorted({*study.seeds, *seeds, *known})
    facts |= {key: earlier[key] for key in ("versions", "hardware", "commit") if key in earlier}
    write_atomically(folder / "study.json", to_json(content | facts))
    changes = ", ".join(
        f"{key} {in_words(content[key])} (was {in_words(earlier[key])})"
        for key in (*ASKED, "planned_seeds")
        if key in earlier and earlier[key] != content[key]
    )
    before, now = len(earlier.get("planned_seeds") or []), len(study.seeds)
    if before in range(2, now) and not study.plan.looks:
        changes += (
            f", which are more: if its report was read before, state looks: [{before}, {now}]"
        )
    return changes


def check_same_study(study: Study, folder: Path) -> None:
    """Check that the folder is new, or contains an earlier state of this study.

    All but the name may have changed: seeds, cells and what is asked for, and the configuration of
    a cell, whose runs are set aside then.

    Raises:
        InputError: the folder belongs to another study, or to none.
    """
    file = folder / "study.json"
    if not file.is_file():
        if folder.is_dir() and any(path.name != "cells" for path in folder.iterdir()):
            raise InputError(f"{folder} is not a study folder: give another --folder")
        return
    name = read_json(file).get("name")
    if name != study.name:
        raise InputError(
            f"{folder} contains another study: it belongs to study {name}, not {study.name}; give"
            " another --folder"
        )
