"""Run by test_finite.py in two processes: one of them meets a loss that is NaN.

python finite_two_processes.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch
from finite_runs import DATA, LAYERS, Break, classifier, fit
from lightning.pytorch import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from attention_vision.errors import InputError
from attention_vision.training.finite import FiniteSteps


class BreakSecond(Break):
    """Breaks the layer in the second process alone."""

    def broken(self, output: torch.Tensor) -> torch.Tensor | None:
        return super().broken(output) if rank_zero_only.rank == 1 else None


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    two: dict[str, Any] = {"devices": 2, "strategy": "ddp"}

    def train(name: str, *callbacks: Callback) -> Any:
        module = classifier()
        breaks = BreakSecond(LAYERS["classifier"], 2)
        fit(module, DATA["classifier"](), folder / name, [*callbacks, breaks], max_steps=4, **two)
        return module

    skipped = train("skip", FiniteSteps("skip"))
    torch.save(
        {name: one.detach() for name, one in skipped.named_parameters()},
        folder / f"{rank_zero_only.rank}.pt",
    )
    try:
        train("stop")
    except InputError as error:
        (folder / f"{rank_zero_only.rank}.txt").write_text(str(error))
