"""The claim of an experiment: the published number that it reproduces."""

import math
import re
from dataclasses import dataclass, field

from attention_vision.errors import InputError

UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass
class Costs:
    """Sizes of a network as a source prints them, rounded to their last digit.

    Args:
        parameters: those that are trained, for example "28.1 M".
        macs: multiply-adds of a forward pass for an image of the experiment, for example "3.87 G";
            papers call them FLOPs.
        layer_macs: those of layers with weights alone: some counters leave out the products of
            queries and keys and of attention weights and values.
        source: where they are printed, if not in the source of the claim.
        note: what is known of a difference between printed and counted.

    Raises:
        InputError: a text that is not a number with a unit, k, M or G.
    """

    parameters: str = ""
    macs: str = ""
    layer_macs: str = ""
    source: str = ""
    note: str = ""

    def __post_init__(self):
        if not self.printed():
            raise InputError("claim.costs is empty: give parameters, macs or layer_macs")

    def printed(self) -> dict[str, tuple[float, float]]:
        """Return the number, and half a unit of its last digit, by the key of a result."""
        names = ("parameters", "macs", "layer_macs")
        texts = {name: getattr(self, name) for name in names}
        return {f"cost/{name}": rounded(text, name) for name, text in texts.items() if text}


def rounded(text: str, name: str) -> tuple[float, float]:
    """Read a printed number: its value, and half a unit of its last digit."""
    found = re.fullmatch(r"(\d+)(?:\.(\d+))? ?([kMG]?)", text, re.ASCII)
    if not found:
        raise InputError(f"claim.costs.{name} '{text}' is not a number such as 28.1 M")
    whole, decimals, unit = found[1], found[2] or "", UNITS[found[3]]
    return float(f"{whole}.{decimals}0") * unit, 0.5 * 10.0 ** -len(decimals) * unit


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
        costs: sizes of the network that are printed beside the number.
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
    costs: Costs | None = None
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

    def cost_claims(self) -> list["Claim"]:
        """Return the printed costs as claims of their own."""
        if self.costs is None:
            return []
        source = self.costs.source or self.source
        return [Claim(source, key, *value) for key, value in self.costs.printed().items()]

    def reproduced(self, measured: float) -> bool:
        """Whether a number lies within the tolerance, ends included."""
        slack = 1e-9 * max(1.0, abs(self.reported))  # 0.77 - 0.766 is a little more than 0.004
        return abs(measured - self.reported) <= self.tolerance + slack
