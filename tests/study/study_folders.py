"""A study folder and a results file as the runner writes them, with known numbers."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

VALUES = {  # val/top1 by cell and seed
    "none": {0: 0.90, 1: 0.92, 2: 0.91},
    "se": {0: 0.93, 1: 0.94, 2: 0.95},
    "cbam": {0: 0.91, 1: 0.90, 2: 0.93},
}
STUDY = {
    "question": "Does the kind of channel attention matter?",
    "task": "classification",
    "metric": "val/top1",
    "higher_is_better": True,
    "baseline": "none",
    "expect": ["se > none", "cbam > se"],
}
COST = {"parameters": 82_790, "macs": 4.2e6, "images_per_second": None, "peak_memory": 2**20}


def result(cell: str, seed: int, value: float) -> dict[str, Any]:
    metrics = {"val/top1": value, "val/loss": 1 - value}
    return {"cell": cell, "seed": seed, "metrics": metrics, "seconds": 60.0 + seed, "cost": COST}


def write_folder(
    folder: Path, values: dict[str, dict[int, float]] = VALUES, names: Iterable[str] = VALUES
) -> Path:
    """Write a study folder; learning curves have three points, the last one is the value."""
    cells = {cell: {"values": {"attention": cell}, "config_sha256": cell} for cell in names}
    plan = {"name": "channel_attention", **STUDY, "seeds": [0, 1, 2], "cells": cells}
    folder.mkdir(parents=True)
    write(folder / "study.json", plan | {"budget": {"epochs": 3}, "file": "study.yaml"})
    for cell, by_seed in values.items():
        for seed, value in by_seed.items():
            run = folder / "cells" / cell / f"seed{seed}"
            run.mkdir(parents=True)
            rows = ["epoch,step,train/loss,val/top1", "0,4,1.0,"]
            rows += [f"{n},{10 * n + 9},,{value - 0.1 * (2 - n)}" for n in range(3)]
            (run / "metrics.csv").write_text("\n".join(rows) + "\n")
            named = {"study": "channel_attention", "config_sha256": cell, "hardware": "one core"}
            write(run / "result.json", named | result(cell, seed, value))
    return folder


def write_file(file: Path, values: dict[str, dict[int, float]] = VALUES, **changes: Any) -> Path:
    runs = [
        result(cell, seed, value)
        for cell, by_seed in values.items()
        for seed, value in by_seed.items()
    ]
    what = {"title": "A title.", "experiment": "experiments/ablations/channel_attention.yaml"}
    write(file, {"what": what, "study": STUDY, "command": [], "runs": runs, "notes": []} | changes)
    return file


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))
