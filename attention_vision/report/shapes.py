"""Shapes of the files of a study, checked before anything is computed from them."""

import json
from pathlib import Path
from typing import Any

from attention_vision.errors import InputError

LARGEST = 1e150  # whose square is a float still: no measurement is as large
TEXTS = {"*": str}
NUMBERS = {"*": float}
ASKED = {
    "question": str, "task": str, "metric": str, "higher_is_better": bool, "baseline": str,
    "expect": [str], "effect": float, "looks": [int], "profile": {},
}  # fmt: skip
# A type; [shape] of the items of a list; {key: shape} of an object, "*" for all other keys. Keys
# may be missing, values null; a key that is not listed may have any value.
RESULT = {
    "study": str, "cell": str, "seed": int, "config_sha256": str, "metrics": NUMBERS,
    "seconds": float, "cost": NUMBERS, "data": {"*": {}}, "versions": TEXTS, "commit": str,
    "hardware": str, "finished": str,
}  # fmt: skip
STUDY = ASKED | {
    "name": str, "seeds": [int], "planned_seeds": [int], "budget": NUMBERS, "file": str,
    "hardware": str, "commit": str, "versions": TEXTS,
    "cells": {"*": {"config_sha256": str, "earlier_sha256": str, "data_sha256": str}},
}  # fmt: skip
RESULTS_FILE = {
    "what": {"title": str, "experiment": str, "data": str, "splits": {}}, "command": [str],
    "commit": str, "date": str, "hardware": str, "versions": TEXTS, "budget": {}, "notes": [str],
    "study": ASKED | {"cells": [str], "seeds": [int]},
}  # fmt: skip
CLAIM_OUTCOME = {  # claim.json of a run
    "source": str, "metric": str, "reported": float, "measured": float, "verdict": str, "by": str,
    "step": int, "checkpoint_id": str,
}  # fmt: skip
EVALUATION = {  # validate.json and test.json of a run
    "metrics": NUMBERS, "checkpoint_id": str, "data": {"*": {}}, "changed": TEXTS,
}  # fmt: skip


def check_shape(content: Any, shape: Any, source: Path, key: str = "") -> None:
    """Check the types of a file's values.

    Raises:
        InputError: a value has another type, or a number is too large to be one of a measurement.
    """
    if content is None:
        return
    if not key:
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half of a pair of surrogates
            raise InputError(f"{source}: a text in it is not valid Unicode") from None
    kind = type(shape) if isinstance(shape, list | dict) else shape
    kinds = (int, float) if kind is float else kind
    if not isinstance(content, kinds) or isinstance(content, bool) is not (kind is bool):
        what = "a number" if kind is float else f"of type {kind.__name__}"
        raise InputError(f"{source}: '{key}' is {shown(content)}, not {what}")
    if isinstance(shape, dict):
        for name, value in content.items():
            if (inner := shape.get(name, shape.get("*"))) is not None:
                check_shape(value, inner, source, f"{key}.{name}".lstrip("."))
    elif isinstance(shape, list):
        for number, value in enumerate(content):
            if value is None:
                raise InputError(f"{source}: '{key}', item {number + 1} is null")
            check_shape(value, shape[0], source, f"{key}, item {number + 1}")
    elif isinstance(content, int | float) and LARGEST < abs(content) < float("inf"):
        raise InputError(f"{source}: '{key}' is {shown(content)}, too large for a measurement")


def shown(value: Any, most: int = 60) -> str:
    """The repr of a value, shortened."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"
