"""The claim of an experiment: the published number that it reproduces."""

import math
from dataclasses import dataclass, field

from attention_vision.errors import InputError


@dataclass
class Claim:
    """One number of one paper: the `claim` block of an experiment file.

    Args:
        source: paper with table and row, for example "arXiv 1709.01507, Table 2, SE-ResNet-50".
        metric: the logged key to compare, for example `val/top1`.
        reported: the paper's number, in the unit of the logged metric.
        tolerance: half-width around `reported` that still counts as reproduced, in the same unit.
        conditions: conditions of the number that are easily left out of a quotation: pre-training,
            resolution, evaluator, number of samples.
        deviations: differences from the paper's recipe, one sentence each.
        hardware: hardware that the run was sized for, for example "8 x A100".
        hours: wall-clock hours on that hardware.

    Raises:
        InputError: an empty source, a metric that is not a logged key, a number that is not
            finite, or a negative tolerance or duration.
    """

    source: str
    metric: str
    reported: float
    tolerance: float = 0.0
    conditions: list[str] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    hardware: str = ""
    hours: float = 0.0

    def __post_init__(self):
        if not self.source.strip():
            raise InputError("claim.source is empty: name the paper, the table and the row")
        if "/" not in self.metric:
            raise InputError(f"claim.metric '{self.metric}' is not a logged key such as val/top1")
        for name in ("reported", "tolerance", "hours"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"claim.{name} must be a finite number, not {getattr(self, name)}")
        for name in ("tolerance", "hours"):
            if getattr(self, name) < 0:
                raise InputError(f"claim.{name} must not be negative, but is {getattr(self, name)}")

    def reproduced(self, measured: float) -> bool:
        """Whether a number lies within the tolerance, ends included."""
        slack = 1e-9 * max(1.0, abs(self.reported))  # 0.77 - 0.766 is a little more than 0.004
        return abs(measured - self.reported) <= self.tolerance + slack
