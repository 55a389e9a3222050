"""Run by test_finite.py in two processes: one of them meets a loss that is NaN, or no objects.

python finite_two_processes.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch
from finite_runs import DATA, LAYERS, MODULES, Break, fit
from lightning.pytorch import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from attention_vision.errors import InputError
from attention_vision.training.finite import FiniteSteps


class BreakSecond(Break):
    """Breaks the layer in the second process alone."""

    def broken(self, output: torch.Tensor) -> torch.Tensor | None:
        return super().broken(output) if rank_zero_only.rank == 1 else None


class NoObjects(Callback):
    """Takes all objects of the second process away."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, idx: int) -> None:
        for target in batch[2] if rank_zero_only.rank == 1 else ():
            target |= {key: target[key][:0] for key in ("labels", "boxes")}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    two: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
    breaks = BreakSecond(LAYERS["classifier"], 2)

    def train(task: str, name: str, *callbacks: Callback) -> None:
        module = MODULES[task]()
        fit(module, DATA[task](), folder / name, [*callbacks], **two)
        parameters = {name: one.detach() for name, one in module.named_parameters()}
        torch.save(parameters, folder / f"{name}{rank_zero_only.rank}.pt")

    train("classifier", "skip", FiniteSteps("skip"), breaks)
    for task in ("dino", "rcnn"):
        train(task, task, NoObjects())
    try:
        train("classifier", "stop", breaks)
    except InputError as error:
        (folder / f"{rank_zero_only.rank}.txt").write_text(str(error))
