"""Power of a study: the differences that its seeds show, and the seeds that a difference needs.

The noise of a paired difference is that of the two-way layout cell + seed: what a seed moves in all
cells falls out. Imports neither torch nor Lightning.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import nctdtr, ndtri, stdtrit

from attention_vision.report.statistics import Expectation, Plan, Values

POWER = 0.8
MOST = 10_000  # seeds that are looked at
# A paired difference of accuracies varies by more than the choice of the test images explains: by
# 0.9 to 3.1 times that (median 1.8) in seven studies of short trainings on digits, Fashion-MNIST
# and CIFAR-10; least in the two of the most seeds.
ABOVE_FLOOR = 2.0
USUAL_ERROR = 0.1  # where the baseline has not been measured


@dataclass(frozen=True)
class Spread:
    """Standard deviation of the difference of two cells at one seed, and its source in words."""

    deviation: float
    source: str


@dataclass(frozen=True)
class Power:
    """What a study of this spread, these seeds and this level can decide.

    Args:
        spread: of a paired difference.
        seeds: number of seeds.
        level: confidence level of the intervals that verdicts are based on.
        effect: smallest difference that matters; None if not stated.
    """

    spread: Spread
    seeds: int
    level: float
    effect: float | None = None

    @property
    def visible(self) -> float:
        """Smallest mean difference whose interval excludes zero: the half-width of an interval."""
        return half_width(self.spread.deviation, self.seeds, self.level)

    @property
    def needed(self) -> int | None:
        """Seeds for a half-width of half the effect; None for more than `MOST` or no effect.

        Either way it decides then: a true difference of zero ends within ± effect, and one of the
        size of the effect excludes zero, both with a probability of at least `level`.
        """
        return None if self.effect is None else seeds_for_width(self.effect / 2, self)

    @property
    def needed_to_see(self) -> int | None:
        """Seeds for a power of 80 % to see a true difference of the effect; None as `needed`."""
        return None if self.effect is None else seeds_for_power(self.effect, self)

    @property
    def decides(self) -> bool:
        """Whether the seeds suffice for the effect, as far as one is stated."""
        return self.effect is None or (self.needed is not None and self.needed <= self.seeds)


def half_width(deviation: float, seeds: int, level: float) -> float:
    """Half-width of the interval of a mean difference, Student's t; infinite for one seed."""
    if seeds < 2:
        return math.inf
    return float(stdtrit(seeds - 1, (1 + level) / 2)) * deviation / seeds**0.5


def seeds_for_width(width: float, power: Power) -> int | None:
    """Smallest number of seeds with a half-width of at most `width`; None for more than `MOST`."""

    def narrow(seeds: int) -> bool:
        return half_width(power.spread.deviation, seeds, power.level) <= width

    found = 2 + bisect_left(range(2, MOST + 1), True, key=narrow)
    return found if found <= MOST else None


def seeds_for_power(effect: float, power: Power) -> int | None:
    """Smallest number of seeds that see a true difference with a probability of `POWER`.

    By the noncentral t distribution of the paired t-test; None for more than `MOST`.
    """
    shift, tail = effect / power.spread.deviation, (1 + power.level) / 2
    least = float(ndtri(tail) + ndtri(POWER))  # of shift * seeds^0.5, by the normal distribution
    if shift * (MOST + 1) ** 0.5 < least:
        return None
    seeds = max(2, int((least / shift) ** 2))
    while seeds <= MOST:
        chance = nctdtr(seeds - 1, shift * seeds**0.5, stdtrit(seeds - 1, tail))
        if not chance > 1 - POWER:  # of a shift beyond its range scipy does not know it: not seen
            return seeds  # is then as good as impossible
        seeds += 1
    return None


def measured_spread(cells: Mapping[str, Values], where: str) -> Spread | None:
    """Spread by the residuals of the layout cell + seed, pooled over the cells.

    With k cells and n common seeds it has (k - 1)(n - 1) degrees of freedom.

    Args:
        cells: values by seed, by name of the cell; those with less than two are left out.
        where: of the runs, in words.

    Returns:
        None for less than two cells or common seeds, and if nothing varies.
    """
    known = [values for values in cells.values() if len(values) > 1]
    seeds = [seed for seed in (known[0] if known else ()) if all(seed in one for one in known)]
    if len(known) < 2 or len(seeds) < 2 or None in seeds:
        return None
    table = np.array([[values[seed] for seed in seeds] for values in known])
    residuals = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    degrees = (len(known) - 1) * (len(seeds) - 1)
    variance = float((residuals**2).sum()) / degrees
    if variance <= 1e-24 * float(np.abs(table).max()) ** 2:
        return None
    words = f"{len(seeds)} seeds of {len(known)} cells {where}, {degrees} degrees of freedom"
    return Spread((2 * variance) ** 0.5, words)


def first_half(cells: Mapping[str, Values]) -> dict[str, Values]:
    """Values of the first half of the seeds, at least two: a pilot for the other half."""
    seeds = list(dict.fromkeys(seed for values in cells.values() for seed in values))
    pilot = set(seeds[: max(2, len(seeds) // 2)])
    return {
        cell: {seed: value for seed, value in values.items() if seed in pilot}
        for cell, values in cells.items()
    }


def binomial_spread(metric: str, accuracy: float | None, images: int | None) -> Spread | None:
    """Spread of an accuracy without any pair of runs: `ABOVE_FLOOR` times the binomial floor.

    The choice of n test images alone gives a run the variance error / (2 n) (Jordan, arXiv
    2304.01910), and the difference of two runs error / n.

    Args:
        metric: logged key; None is returned unless it is an accuracy, such as val/top1.
        accuracy: of a run of the baseline; None without one.
        images: that the metric is measured on; None if not known.
    """
    if images is None or metric.rpartition("/")[2] not in ("top1", "top5"):
        return None
    error = USUAL_ERROR if accuracy is None else 1 - accuracy
    origin = "assumed" if accuracy is None else "of the baseline"
    words = f"{ABOVE_FLOOR:g} x the binomial floor of {images:,} images, error {error:.3g} {origin}"
    return Spread(ABOVE_FLOOR * (error / images) ** 0.5, words) if error > 0 else None


def compared_cells(expectations: Sequence[Expectation], cells: Sequence[str]) -> list[str]:
    """Names of the cells that expectations compare; all without expectations."""
    named = {name for one in expectations for name in (one.first, one.second)}
    return [cell for cell in cells if cell in named or not named]


def planned_power(
    spread: Spread | None, plan: Plan, expectations: Sequence[Expectation], seeds: int
) -> Power | None:
    """Power of a study at the end of its plan.

    Args:
        spread: of a paired difference; None is returned without one.
        plan: effect, seeds and looks.
        expectations: whose pairs of cells set the level.
        seeds: number of seeds where the plan is not known.
    """
    if spread is None:
        return None
    count = max(plan.counts, default=seeds)
    return Power(spread, count, plan.level(expectations), plan.effect)


def sentences(power: Power) -> list[str]:
    """Words on the power: visible difference, seeds needed, and whether the seeds suffice."""
    lines = [
        f"sd of a paired difference {power.spread.deviation:.3g} ({power.spread.source})",
        f"{power.seeds} seeds show mean differences above {power.visible:.3g}, the half-width of an"
        f" interval at {100 * power.level:.4g} %",
    ]
    if power.effect is None:
        return lines
    lines.append(
        f"an effect of {power.effect:.15g} needs {count(power.needed)} seeds for a half-width of"
        f" half of it, which decides either way; {count(power.needed_to_see)} see it with 80 %"
        " power"
    )
    if not power.decides:
        lines.append(
            f"this study cannot decide what it expects: {count(power.needed)} seeds needed,"
            f" {power.seeds} planned"
        )
    return lines


def count(seeds: int | None) -> str:
    """Format a number of seeds; None is more than `MOST`."""
    return f"more than {MOST:,}" if seeds is None else f"{seeds:,}"
