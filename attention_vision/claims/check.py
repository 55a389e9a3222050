"""What a run has made of its claim, at the end of fit, validate and test."""

import json
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from attention_vision.claims.claim import Claim


class Reproduction(Callback):
    """Compares the claimed metric with what was measured last: RUN/claim.json, W&B, one line.

    The verdict is `reproduced`, `not reproduced`, or `not comparable` where the trainer's limits
    left images out; a run that did not measure the metric writes nothing and says so. One run is
    one seed: what several seeds say is for `attention-vision study report`.

    Args:
        claim: the experiment's.
        run: its folder.
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
        """Writes and prints the outcome, on rank zero."""
        if not trainer.is_global_zero:
            return
        claim = self.claim
        said = f"claim: {claim.metric} reported {claim.reported:g} ± {claim.tolerance:g}"
        if claim.metric not in trainer.callback_metrics:
            print(f"{said}, not measured by {trainer.state.fn.value}", flush=True)
            return
        measured = trainer.callback_metrics[claim.metric].item()
        verdict = "reproduced" if claim.reproduced(measured) else "not reproduced"
        if not whole(batches, loader):
            verdict = "not comparable (a part of the images)"
        outcome = {
            "measured": measured if isfinite(measured) else None,
            "difference": measured - claim.reported if isfinite(measured) else None,
            "verdict": verdict,
            "by": str(trainer.state.fn.value),
        }
        file = self.run / "claim.json"
        file.write_text(json.dumps(asdict(claim) | outcome, indent=2) + "\n")
        for logger in trainer.loggers:
            if hasattr(logger, "write_to"):  # W&B's, which is imported by those alone who use it
                numbers = {"reported": claim.reported, **outcome}
                logger.experiment.summary.update({f"claim/{k}": v for k, v in numbers.items()})
        print(f"{said}, measured {measured:.5g}: {verdict}", flush=True)


def whole(batches: list[float], loader: Any) -> bool:
    """Whether all batches of a loader were measured; one without a length is read to its end."""
    try:
        return loader is None or sum(batches) >= len(loader)
    except TypeError:
        return True
