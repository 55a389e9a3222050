"""Identity of what a command measured: the checkpoint, its step, the code and the data."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from attention_vision.data.loading import TaskData
from attention_vision.errors import InputError
from attention_vision.identity import checkpoint_id, code, data_difference
from attention_vision.runs.data_summary import SUMMARY
from attention_vision.training.run_folder import read_checkpoint
from attention_vision.training.steps import last_step
from attention_vision.yaml_json import read_json, write_atomically


def identity_of(source: str | Path | None, data: Any) -> dict[str, Any]:
    """Return what a result file says of its origin; compares as JSON.

    Args:
        source: the checkpoint or the weights that were measured; None for those of a training.
        data: the data module, whose opened splits are part of it.

    Returns:
        `checkpoint` with its `checkpoint_id` and `step` (as in metrics.csv), where they are known;
        `code`; and `data`, a fingerprint.
    """
    found: dict[str, Any] = {"checkpoint": str(source), **checkpoint_identity(source)}
    if isinstance(data, TaskData):
        found["data"] = data.fingerprint()
    return found | {"code": code()}


def checkpoint_identity(source: str | Path | None) -> dict[str, Any]:
    """Return `checkpoint_id` and `step` of a file of weights, as far as they are known."""
    if source is None or not Path(source).is_file():
        return {}
    found: dict[str, Any] = {"checkpoint_id": checkpoint_id(source)}
    with suppress(InputError):  # released weights in another format
        found["step"] = last_step(read_checkpoint(Path(source)))
    return {key: value for key, value in found.items() if value is not None}


def other_data(run: Path, data: Any) -> str:
    """Words on how the opened data differs from that of a run; empty if it does not.

    Nothing is compared where the run, as in version 0.1, did not write a fingerprint.
    """
    if not isinstance(data, TaskData) or not (run / SUMMARY).is_file():
        return ""
    try:
        there = read_json(run / SUMMARY).get("fingerprint")
    except InputError:
        return ""
    return data_difference(there, data.fingerprint()) if isinstance(there, dict) else ""


def other_data_line(run: Path, data: Any) -> str:
    """One warning for a command on other data than its run had; empty without one."""
    words = other_data(run, data)
    return f"data: WARNING: not that of {run}: {words}" if words else ""


def add_origin(file: Path, names: list[str], origin: dict[str, Any]) -> None:
    """Write the origin of several outputs, by name, into a file that has those of others."""
    try:
        known = read_json(file) if file.is_file() else {}
    except InputError:
        known = {}
    text = json.dumps(known | dict.fromkeys(names, origin), indent=2) + "\n"
    write_atomically(file, text)
