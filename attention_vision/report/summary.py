"""Summary of a study: statistics per cell, verdicts, and remarks on missing numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from attention_vision.report.power import (
    Power,
    compared_cells,
    first_half,
    half_width,
    measured_spread,
    planned_power,
    sentences,
)
from attention_vision.report.results import COSTS, MeasuredStudy, RunKey, defined
from attention_vision.report.statistics import (
    BOOTSTRAP_FROM,
    LEVEL,
    Difference,
    Finding,
    Values,
    holm,
    judge,
    paired_difference,
    standard_deviation,
)


@dataclass(frozen=True)
class CellSummary:
    """Statistics of one cell of a study.

    Args:
        values: the metric by seed.
        mean: mean over seeds; None if the cell does not have a result yet.
        std: standard deviation over seeds; None for a single seed.
        difference: difference from the baseline; None for the baseline itself.
        p: p-value of the difference, adjusted over all cells (Holm); None if there is none.
        cost: mean over seeds, by the names of `COSTS`.
    """

    cell: str
    values: Values
    mean: float | None
    std: float | None
    difference: Difference | None
    p: float | None
    cost: dict[str, float | None]


@dataclass(frozen=True)
class Report:
    """Summary of a study.

    Args:
        study: the study with its results.
        rows: one summary per cell, in the order of the study.
        findings: one verdict per expectation.
        remarks: sentences on missing numbers and intervals.
        power: what its spread and its seeds can decide; None if the spread is not known.
        predicted: half-width of the verdicts' intervals by the first half of the seeds, see
            `power.first_half`; None without a spread.
    """

    study: MeasuredStudy
    rows: list[CellSummary]
    findings: list[Finding]
    remarks: list[str]
    power: Power | None = None
    predicted: float | None = None

    @property
    def method(self) -> str:
        """Explanation of the statistics for readers of the table."""
        return EXACT if self.study.exact else METHOD

    @classmethod
    def of(cls, study: MeasuredStudy) -> "Report":
        """Compute all statistics of a study."""
        values = {cell: study.values(cell) for cell in study.cells}
        base = values[study.baseline]
        differences = {
            cell: paired_difference(values[cell], base)
            for cell in study.cells
            if cell != study.baseline
        }
        adjusted = holm([difference.p for difference in differences.values()])
        p_values = dict(zip(differences, adjusted, strict=True))
        rows = []
        for cell in study.cells:
            numbers = list(values[cell].values())
            mean = sum(numbers) / len(numbers) if numbers else None
            cost = {name: study.cost(cell, name) for name in COSTS}
            difference, p = differences.get(cell), p_values.get(cell)
            std = standard_deviation(numbers)
            rows.append(CellSummary(cell, values[cell], mean, std, difference, p, cost))
        findings = judge(study.expect, values, study.plan)
        words = [*remarks(study, rows), *remarks_on_looks(study, findings)]
        compared = {cell: values[cell] for cell in compared_cells(study.expect, study.cells)}
        spread = measured_spread(compared, "here")
        count = max((len(finding.difference.values) for finding in findings), default=0)
        power = planned_power(spread, study.plan, study.expect, count) if findings else None
        pilot = measured_spread(first_half(compared), "here") if power and count > 2 else None
        predicted = half_width(pilot.deviation, count, power.level) if pilot and power else None
        return cls(study, rows, findings, words, power, predicted)

    @property
    def reached(self) -> list[float]:
        """Half-widths of the intervals that the verdicts are based on."""
        intervals = [one.difference.interval for one in self.findings]
        return [(high - low) / 2 for low, high in filter(None, intervals)]

    @property
    def power_lines(self) -> list[str]:
        """Sentences on the power: what was visible, and what the plan or the effect needs."""
        if self.power is None:
            return []
        lines, widths = sentences(self.power), self.reached
        if widths:
            ends = " to ".join(f"{end:.3g}" for end in sorted({min(widths), max(widths)}))
            early = (
                ""
                if self.predicted is None
                else (f"; predicted by the first half of the seeds: {self.predicted:.3g}")
            )
            lines.insert(1, f"half-widths that were reached: {ends}{early}")
        return lines


def remarks(study: MeasuredStudy, rows: list[CellSummary]) -> Iterator[str]:
    """Yield one sentence per missing or left out result, missing number or missing interval."""
    yield from study.remarks
    for cell in study.cells:
        gone = {seed: line for (name, seed), line in study.waiting.items() if name == cell}
        errors = list(dict.fromkeys(filter(None, gone.values())))
        if failed := [seed for seed, line in gone.items() if line]:
            others = f" (and {len(errors) - 1} other errors)" if len(errors) > 1 else ""
            yield f"failed: {cell}, {numbered(failed)}: {errors[0]}{others}"
        if missing := [seed for seed, line in gone.items() if not line]:
            yield f"missing: {cell}, {numbered(missing)}"
    for (cell, why), seeds in grouped(study.left_out).items():
        yield f"left out: {cell}, {numbered(seeds)} {why}"
    for result in study.results:
        if not defined(result.metrics.get(study.metric)):
            problem = "does not log" if study.metric not in result.metrics else "has no finite"
            yield f"left out: {result.cell}, seed {result.seed} {problem} {study.metric}"
    for row in rows:
        if row.difference is not None and row.values:
            if row.difference.why:
                yield f"no interval: {row.cell} against {study.baseline}: {row.difference.why}"
            elif len(row.difference.values) < len(row.values):
                shared = len(row.difference.values)
                yield (
                    f"fewer pairs: {row.cell} has {len(row.values)} seeds, "
                    f"{shared} of them in common with {study.baseline}"
                )


def remarks_on_looks(study: MeasuredStudy, findings: Sequence[Finding]) -> Iterator[str]:
    """Yield one sentence if verdicts are based on fewer seeds than both of their cells have."""
    lines = {}
    for finding in findings:
        first, second = (
            study.values(cell) for cell in (finding.expectation.first, finding.expectation.second)
        )
        used, known = len(finding.difference.values), len([one for one in first if one in second])
        if used == known:
            continue
        later = [count for count in study.plan.counts if count > used]
        after = f"the next look is at {later[0]}" if later else "the plan ends there"
        lines[f"verdicts are those of the first {used} of {known} seeds: {after}"] = None
    yield from lines


def numbered(seeds: Sequence[int | None]) -> str:
    """Format seeds: "seed 1", or "seeds 1, 2"."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def grouped(left_out: Mapping[RunKey, str]) -> dict[tuple[str, str], list[int | None]]:
    """Group runs that are left out by cell and reason."""
    groups: dict[tuple[str, str], list[int | None]] = {}
    for (cell, seed), why in left_out.items():
        groups.setdefault((cell, why), []).append(seed)
    return groups


EXACT = "Exact numbers, which do not depend on a seed: they are compared as they are."
METHOD = (
    "Mean ± standard deviation over seeds. Differences are computed within each seed; their "
    f"confidence intervals are at {100 * LEVEL:g} % by Student's t (BCa bootstrap from "
    f"{BOOTSTRAP_FROM} seeds on); p is two-sided and adjusted over all comparisons (Holm). A "
    "verdict is based on an interval at 1 - 5 % / (compared pairs x looks) (Bonferroni), so that "
    "at most 5 % of studies get a wrong verdict: supported or contradicted if it lies on one side "
    "of zero (or of the margin), no difference if it contains zero and lies within the study's "
    "effect, otherwise undecided. Beside it, uncorrected: p by Student's t and by the exact "
    "sign-flip test, and the share of seeds in which the ordering holds (95 % by Clopper and "
    "Pearson)."
)
