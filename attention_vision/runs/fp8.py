"""Metrics in fp8 attention beside those in fused attention: what the rounding costs."""

from typing import Literal

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from attention_vision.attention import attention_backend
from attention_vision.report.text_table import aligned
from attention_vision.training.logging import WithoutReports
from attention_vision.training.progress import say

Metrics = dict[str, float]


def compare_after_fit(
    trainer: Trainer, module: LightningModule, data: LightningDataModule
) -> dict[str, Metrics]:
    """Validate the last weights of a training in both, and print the difference.

    Returns:
        `metrics` in fp8 and `metrics_fused`, by logged key.
    """
    trainer.loggers = []  # the curves end with the training
    trainer.ckpt_path = None  # its last weights, not those it resumed from
    rounded = metrics_in("fp8", trainer, "validate", module, data)
    exact = metrics_in("fused", trainer, "validate", module, data)
    print_difference(rounded, exact)
    return {"metrics": rounded, "metrics_fused": exact}


def metrics_in(
    backend: Literal["fused", "eager", "fp8"],
    trainer: Trainer,
    verb: str,
    module: LightningModule,
    data: LightningDataModule,
) -> Metrics:
    """Evaluate (`validate`, `test`) for a comparison: no report or matrix is replaced."""
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] set from afar
    callbacks.append(WithoutReports())
    evaluate = getattr(trainer, verb)
    with attention_backend(backend):
        return merged(evaluate(module, datamodule=data, verbose=False, weights_only=True))


def merged(results: list[Metrics]) -> Metrics:
    """Merge the metrics of several data sets into one dict."""
    return {key: value for result in results for key, value in result.items()}


def print_difference(rounded: Metrics, exact: Metrics) -> None:
    """Print each metric in fp8, in fused attention, and the difference."""
    rows = [["attention in", "fp8", "fused", "difference"]]
    for key, value in exact.items():
        change = rounded[key] - value
        rows.append([key, f"{rounded[key]:.5f}", f"{value:.5f}", f"{change:+.5f}"])
    say(aligned(rows, right=(1, 2, 3)))
