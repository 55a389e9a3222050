"""Callback that compares a run's metric with its claim after fit, validate or test."""

import json
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from attention_vision.claims.claim import Claim
from attention_vision.identity import checkpoint_id
from attention_vision.training.steps import step_number


class ClaimCheck(Callback):
    """Compares the last value of the claimed metric with the claim.

    Writes RUN/claim.json and W&B's summary, and prints one line. The verdict is `reproduced`, `not
    reproduced`, or `not comparable` if the trainer's limits left images out. If the metric was not
    measured, nothing is written and the line says so. One run is one seed: `attention-vision study
    report` summarizes several.

    Args:
        claim: the claim of the experiment.
        run: the run folder.
    """

    def __init__(self, claim: Claim, run: Path):
        self.claim, self.run = claim, run

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.compare(trainer, trainer.num_val_batches, trainer.val_dataloaders)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self.compare(trainer, trainer.num_val_batches, trainer.val_dataloaders)

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.compare(trainer, trainer.num_test_batches, trainer.test_dataloaders)

    def compare(self, trainer: Trainer, batches: list[float], loader: Any) -> None:
        """Write and print the outcome on rank zero.

        Args:
            trainer: the trainer, whose logged metrics are compared.
            batches: number of evaluated batches of each loader.
            loader: the evaluated loader, or loaders.
        """
        if not trainer.is_global_zero:
            return
        claim, verb = self.claim, trainer.state.fn.value if trainer.state.fn else ""
        start = f"claim: {claim.metric} reported {claim.reported:g} ± {claim.tolerance:g}"
        if claim.metric not in trainer.callback_metrics:
            print(f"{start}, not measured by {verb}", flush=True)
            return
        measured = trainer.callback_metrics[claim.metric].item()
        verdict = "reproduced" if claim.reproduced(measured) else "not reproduced"
        if not whole(batches, loader):
            verdict = "not comparable (a part of the images)"
        outcome = {
            "measured": measured if isfinite(measured) else None,
            "difference": measured - claim.reported if isfinite(measured) else None,
            "verdict": verdict,
            "by": verb,
            **self.origin(trainer),
        }
        file = self.run / "claim.json"
        file.write_text(json.dumps(asdict(claim) | outcome, indent=2) + "\n")
        for logger in trainer.loggers:
            if hasattr(logger, "log_summary"):  # W&B's, which is not imported here
                numbers = {"reported": claim.reported, **outcome}
                facts = {f"claim/{key}": value for key, value in numbers.items()}
                cast(Any, logger).log_summary(facts)
        print(f"{start}, measured {measured:.5g}: {verdict}", flush=True)

    @staticmethod
    def origin(trainer: Trainer) -> dict[str, Any]:
        """Step behind which a training was measured, or the identity of an evaluated checkpoint."""
        if trainer.state.fn == "fit":
            return {"step": step_number(trainer) - 1}
        found = checkpoint_id(trainer.ckpt_path) if trainer.ckpt_path else None
        return {"checkpoint_id": found} if found else {}


def whole(batches: list[float], loader: Any) -> bool:
    """Whether all batches of a loader were evaluated; one without a length is read to its end."""
    try:
        return loader is None or sum(batches) >= len(loader)
    except TypeError:
        return True
