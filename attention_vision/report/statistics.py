"""Paired differences over seeds, their confidence intervals, and verdicts on orderings.

The cells of a study share their seeds, so a difference is computed within each seed: an effect of
the seed that is common to both cells (initialization, data order) cancels. Only numpy and
scipy.special are imported, so that a report starts at once.

All verdicts of a study follow from one set of simultaneous intervals, at 1 - 5 % / (pairs of
cells that are compared x looks): where all of them cover the truth, no verdict is wrong.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri, stdtr, stdtrit

from attention_vision.errors import InputError
from attention_vision.ranges import Positive, Range, refusal
from attention_vision.report.shapes import LARGEST, shown

LEVEL = 0.95
BOOTSTRAP_FROM = 20  # seeds; resampling fewer values gives intervals that are too short
RESAMPLES = 10_000

ENUMERATED = 20  # seeds of which all changes of sign are enumerated: 2^19 sums
FLIPS = 100_000  # random changes of sign for more seeds

# "A > B", "A < B" or "A > B by 0.01".
ORDERING = re.compile(
    r"\s*([^<>]*[^<>\s])\s*([<>])\s*([^<>=\s][^<>]*?)(?:\s+by\s+([0-9]\S*|\.[0-9]\S*))?\s*"
)
Measurable = Annotated[float, Range(most=LARGEST)]
Looks = list[Annotated[int, Range(2, 2**32)]]  # as many as there are seeds

Verdict = Literal["supported", "contradicted", "no difference", "undecided"]
Values = Mapping[int | None, float]  # by seed; None if nothing is random


@dataclass(frozen=True)
class Difference:
    """One cell minus another, seed by seed.

    Args:
        values: difference by seed, for the seeds that both cells have.
        mean: mean of the values; None without a common seed.
        interval: confidence interval of the mean at `level`; None if the values do not vary.
        p: two-sided p-value of Student's t-test against zero; None without an interval.
        level: confidence level of the interval.
        why: the reason why there is no interval; empty if there is one.
    """

    values: dict[int | None, float]
    mean: float | None
    interval: tuple[float, float] | None
    p: float | None
    level: float = LEVEL
    why: str = ""

    @property
    def exact(self) -> bool:
        """Whether it is the difference of two exact numbers, without a seed."""
        return list(self.values) == [None]

    @cached_property
    def flip_p(self) -> float | None:
        """Two-sided p-value of the sign-flip test, see `sign_flip_p`; None without an interval."""
        if self.interval is None or self.exact:
            return None
        return sign_flip_p(list(self.values.values()))


@dataclass(frozen=True)
class Expectation:
    """Expected ordering of two cells by their values, such as `cbam > se` in a study file.

    Args:
        first, second: names of the cells.
        sign: ">" or "<".
        by: smallest difference that counts as the ordering, in the unit of the metric.
    """

    first: str
    sign: str
    second: str
    by: float = 0.0

    @classmethod
    def parse(cls, line: str) -> "Expectation":
        """Parse `A > B`, `A < B` or `A > B by 0.01`; the name of a cell may contain spaces.

        Raises:
            InputError: the line is not such an ordering, or of a cell and itself.
        """
        match, text = ORDERING.fullmatch(str(line)), shown(line)
        if match is None:
            raise InputError(
                f"expect: {text} is not an ordering such as 'cbam > none' or 'cbam > none by 0.01'"
            )
        first, sign, second, by = match.groups()
        try:
            margin = float((by or "0").replace("_", " "))
        except ValueError:
            margin = math.inf
        if margin > LARGEST:
            raise InputError(f"expect: {text}: {by} is not a number up to {LARGEST:g}")
        if first == second:
            raise InputError(f"expect: {text} compares a cell with itself: name two cells")
        return cls(first, sign, second, margin)

    @classmethod
    def parse_all(cls, lines: Sequence[str]) -> "list[Expectation]":
        """Parse several orderings, each of which is given once.

        Raises:
            InputError: a line is not an ordering, or there twice: a verdict would count twice.
        """
        read: list[Expectation] = []
        for line in lines:
            if (expectation := cls.parse(line)) in read:
                raise InputError(f"expect: {shown(line)} is there twice: keep one of them")
            read.append(expectation)
        return read

    def __str__(self) -> str:
        margin = f" by {self.by:.15g}" if self.by else ""
        return f"{self.first} {self.sign} {self.second}{margin}"

    def towards(self, value: float) -> float:
        """A difference `first` minus `second` with its sign towards the expectation."""
        return value if self.sign == ">" else -value


@dataclass(frozen=True)
class Plan:
    """What a study fixes before it runs, on which its verdicts depend.

    Args:
        effect: smallest difference that matters, in the unit of the metric; None if not stated.
        seeds: the planned seeds, in their order; empty if not known, as in files before 0.2.
        looks: numbers of seeds at which verdicts are made; empty for one look, at all seeds.
    """

    effect: float | None = None
    seeds: tuple[int, ...] = ()
    looks: tuple[int, ...] = ()

    @classmethod
    def parse(cls, effect: Any, seeds: Sequence[int], looks: Any) -> "Plan":
        """Parse the keys of a study: a positive number or None, and an increasing list or None.

        Raises:
            InputError: a value has another type or is out of its range, or seeds are planned that
                no look counts.
        """
        if effect is not None and (isinstance(effect, bool) or not isinstance(effect, int | float)):
            raise InputError(f"effect: {shown(effect)} is not a number: give one such as 0.01")
        for wanted in () if effect is None else (Positive, Measurable):
            if line := refusal("effect", effect, wanted):
                raise InputError(line)
        looks = [] if looks is None else looks
        counts = isinstance(looks, list) and all(type(count) is int for count in looks)
        if not counts or looks != sorted({*looks}) or refusal("looks", looks, Looks):
            raise InputError(
                f"looks: {shown(looks)} is not an increasing list such as [5, 10], from 2 on"
            )
        if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
            raise InputError(f"seeds: {twice[0]} is planned twice: keep one of them")
        if looks and looks[-1] < len(seeds):
            raise InputError(
                f"looks: the last one is at {looks[-1]} of {len(seeds)} seeds: add {len(seeds)}, or"
                " leave seeds out"
            )
        return cls(None if effect is None else float(effect), tuple(seeds), tuple(looks))

    def level(self, expectations: Sequence[Expectation]) -> float:
        """Confidence level of each interval that a verdict is based on (Bonferroni).

        Expectations of the same two cells, with other margins, share one interval: it counts once.
        """
        pairs = {frozenset((one.first, one.second)) for one in expectations}
        return 1 - (1 - LEVEL) / (max(1, len(pairs)) * max(1, len(self.looks)))

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of seeds at which verdicts are made; empty without a known plan."""
        return self.looks or ((len(self.seeds),) if self.seeds else ())

    def judged(self, shared: Sequence[int | None]) -> list[int | None]:
        """Seeds that a verdict is based on: those of the last look that is reached.

        Planned seeds come first, in their order. Later ones take the place of those without a
        result; what is beyond the last look is not used.

        Args:
            shared: seeds with results of both cells.

        Returns:
            All of them without a known plan or for exact numbers; none before the first look.
        """
        if not self.counts or None in shared:
            return list(shared)
        reached = max((count for count in self.counts if count <= len(shared)), default=0)
        ranks: dict[int | None, int] = {seed: rank for rank, seed in enumerate(self.seeds)}
        return sorted(shared, key=lambda seed: ranks.get(seed, len(ranks)))[:reached]


@dataclass(frozen=True)
class Finding:
    """Verdict on an expectation.

    Args:
        expectation: the ordering.
        difference: `first` minus `second`, at the seeds that the verdict is based on.
        verdict: see `verdict`.
        reason: why the verdict is this one.
        effect: smallest difference that matters, of the plan.
    """

    expectation: Expectation
    difference: Difference
    verdict: Verdict
    reason: str
    effect: float | None = None

    def __str__(self) -> str:
        """The verdict in words: "no difference beyond 0.01"."""
        beyond = f" beyond {self.effect:.15g}" if self.verdict == "no difference" else ""
        return f"{self.verdict}{beyond}"

    @property
    def improvement(self) -> tuple[float, float, float] | None:
        """Probability that the ordering holds for a seed, with the ends of its 95 % interval.

        See `probability`; None for exact numbers and without a common seed.
        """
        if self.difference.exact or not self.difference.values:
            return None
        margin, towards = self.expectation.by, self.expectation.towards
        return probability([towards(one) - margin for one in self.difference.values.values()])


def standard_deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1 degrees of freedom); None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def t_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Confidence interval of the mean of n >= 2 values, Student's t, n - 1 degrees of freedom."""
    deviation = float(np.std(values, ddof=1))
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * deviation / len(values) ** 0.5
    mean = float(np.mean(values))
    return mean - half, mean + half


def bca_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Confidence interval of the mean by the BCa bootstrap (Efron, 1987), with a fixed seed.

    It follows a skewed distribution, whereas Student's t assumes a symmetric one. The levels are
    widened to those of Student's t (Hesterberg, arXiv 1411.5279, section 5.3); without that,
    intervals from 20 values have a coverage of 93 %.
    """
    sample = np.asarray(values, float)
    n, mean = len(sample), sample.mean()
    draws = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    means = sample[draws].mean(1)
    bias = ndtri(((means < mean).mean() + (means <= mean).mean()) / 2)
    left_out = (sample - mean) / (n - 1)  # their mean minus the jackknife's means
    acceleration = (left_out**3).sum() / (6 * (left_out**2).sum() ** 1.5)
    z = bias + (n / (n - 1)) ** 0.5 * stdtrit(n - 1, [(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(means, ndtr(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Confidence interval of the mean; None if the values do not vary.

    Student's t for fewer than `BOOTSTRAP_FROM` values, otherwise the BCa bootstrap.
    """
    if len(values) < 2 or np.std(values, ddof=1) <= 1e-12 * np.abs(values).max():
        return None
    return (t_interval if len(values) < BOOTSTRAP_FROM else bca_interval)(values, level)


def paired_difference(first: Values, second: Values, level: float = LEVEL) -> Difference:
    """Difference `first` minus `second` over their common seeds, with interval and p-value.

    Numbers without a seed are exact: their interval is the difference itself.
    """
    shared = [seed for seed in first if seed in second]
    by_seed = {seed: first[seed] - second[seed] for seed in shared}
    values = list(by_seed.values())
    if not values:
        return Difference({}, None, None, None, level, "no seed in common")
    mean = float(np.mean(values))
    if shared == [None]:
        return Difference(by_seed, mean, (mean, mean), None, level)
    if len(values) == 1:
        return Difference(by_seed, mean, None, None, level, "one seed: its spread is not known")
    interval = mean_interval(values, level)
    if interval is None:
        why = "equal differences at all seeds: no spread to judge by"
        return Difference(by_seed, mean, None, None, level, why)
    t = mean / (float(np.std(values, ddof=1)) / len(values) ** 0.5)
    p = 2 * float(stdtr(len(values) - 1, -abs(t)))
    return Difference(by_seed, mean, interval, p, level)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for multiple comparisons (Holm, 1979; family-wise error rate).

    None stays None and is not counted as a comparison.
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return adjusted


def sign_flip_p(values: Sequence[float]) -> float:
    """Two-sided p-value of the sign-flip (randomization) test of a mean of zero (Fisher, 1935).

    Share of the 2^n changes of sign of n differences whose sum is as far from zero: exact if the
    differences are symmetric around zero, whatever their distribution. It cannot be below
    `smallest_flip_p`. Above `ENUMERATED` values, `FLIPS` random changes with a fixed seed.
    """
    sample = np.asarray(values, float)
    reach = abs(sample.sum()) - 1e-12 * np.abs(sample).sum()  # sums are rounded
    if len(sample) <= ENUMERATED:
        sums = sample[:1]  # the first sign stays: the other half are the negatives
        for value in sample[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= reach).mean())
    random, sums = np.random.default_rng(0), np.zeros(FLIPS)
    for value in sample:
        sums += np.where(random.random(FLIPS) < 0.5, value, -value)
    return float((1 + (np.abs(sums) >= reach).sum()) / (1 + FLIPS))


def smallest_flip_p(count: int) -> float:
    """Smallest two-sided p-value that the sign-flip test of so many values can have: 2 / 2^n."""
    return 2.0 ** (1 - count) if count <= ENUMERATED else 1 / (1 + FLIPS)


def probability(values: Sequence[float]) -> tuple[float, float, float]:
    """Share of positive values, ties half, with its 95 % interval (Clopper and Pearson, 1934).

    For paired differences it is the probability of improvement, P(A > B).
    """
    count = len(values)
    wins = sum(0.5 * (np.sign(value) + 1) for value in values)
    low = betaincinv(wins, count - wins + 1, (1 - LEVEL) / 2) if wins else 0.0
    high = betaincinv(wins + 1, count - wins, (1 + LEVEL) / 2) if wins < count else 1.0
    return float(wins) / count, float(low), float(high)


def judge(
    expectations: Sequence[Expectation], cells: Mapping[str, Values], plan: Plan | None = None
) -> list[Finding]:
    """Verdicts on expectations, with a family-wise error rate of at most 5 % over all looks.

    Args:
        expectations: orderings of two cells each.
        cells: values by seed, by name of the cell.
        plan: effect, seeds and looks of the study.
    """
    plan = plan or Plan()
    level = plan.level(expectations)
    findings = []
    for expectation in expectations:
        first, second = cells[expectation.first], cells[expectation.second]
        shared = [seed for seed in first if seed in second]
        if judged := plan.judged(shared):
            difference = paired_difference({seed: first[seed] for seed in judged}, second, level)
            outcome = verdict(expectation, difference, plan.effect)
        else:
            difference = paired_difference(first, second, level)
            outcome = (
                "undecided",
                difference.why
                if not shared
                else (
                    f"{len(shared)} of {plan.counts[0]} seeds: verdicts count when the plan is done"
                ),
            )
        findings.append(Finding(expectation, difference, *outcome, plan.effect))
    return findings


def needed(finding: Finding) -> dict[Verdict, tuple[float, float]]:
    """Range of the mean difference that would have given each verdict, by this spread and n.

    The interval keeps its width, and moves with the mean. `undecided` is left out; so is a verdict
    that no mean would have given, and all without an interval.
    """
    difference, by = finding.difference, finding.expectation.by
    if difference.interval is None or difference.mean is None:
        return {}
    towards = finding.expectation.towards
    low, high = sorted(map(towards, difference.interval))
    below, above = towards(difference.mean) - low, high - towards(difference.mean)
    ranges: dict[Verdict, tuple[float, float]] = {
        "supported": (by + below, math.inf),
        "contradicted": (-math.inf, by - above),
    }
    if finding.effect is not None:
        ends = max(below - finding.effect, -above, by - above), min(finding.effect - above, below)
        if ends[0] < ends[1]:
            ranges["no difference"] = ends
    if finding.expectation.sign == ">":
        return ranges
    return {verdict: (-high, -low) for verdict, (low, high) in ranges.items()}


def verdict(
    expectation: Expectation, difference: Difference, effect: float | None = None
) -> tuple[Verdict, str]:
    """Verdict on one ordering by the interval of the difference, and the reason for it.

    The first that applies:

    * supported: all of the interval lies beyond `expectation.by` on the expected side;
    * contradicted: all of it lies short of `expectation.by`, and on one side of zero if `by` is 0;
    * no difference: it contains zero, and lies within ± effect;
    * undecided.
    """
    if difference.interval is None:
        return "undecided", difference.why
    low, high = sorted(map(expectation.towards, difference.interval))
    by, exact = expectation.by, difference.exact
    small = effect is not None and -effect < low and high < effect
    where = f"{by:.15g}" if by else "zero"
    if low > by or high < by:
        reason = "exact numbers" if exact else f"all of the interval on one side of {where}"
        if small:
            reason += f", and smaller than {effect:.15g}"
        return ("supported" if low > by else "contradicted"), reason
    if low <= 0 <= high and small:
        return "no difference", f"all of the interval within ±{effect:.15g}"
    if exact:  # equal to the margin, which an ordering excludes
        return "contradicted", "exact numbers"
    return "undecided", f"the interval spans {where}"
