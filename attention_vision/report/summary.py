"""A study in numbers: rows, verdicts, and remarks on what the table does not show."""

from dataclasses import dataclass

from attention_vision.report.results import COSTS, MeasuredStudy, defined
from attention_vision.report.statistics import (
    BOOTSTRAP_FROM,
    LEVEL,
    Difference,
    Finding,
    Values,
    holm,
    judge,
    paired_difference,
    spread,
)


@dataclass(frozen=True)
class Row:
    """One cell of a study in numbers.

    Args:
        values: the metric by seed.
        mean: over seeds; None where the cell has no result yet.
        std: between seeds; None of a single one.
        difference: from the baseline; None in its own row.
        p: of the difference, adjusted by Holm over all rows; None where there is none.
        cost: by the names of `COSTS`, the mean over seeds.
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
    """A study, a row per cell, a finding per expectation, and what a reader has to know besides."""

    study: MeasuredStudy
    rows: list[Row]
    findings: list[Finding]
    remarks: list[str]

    @property
    def method(self) -> str:
        """How the numbers came about, for a reader of the table."""
        return EXACT if self.study.exact else METHOD

    @classmethod
    def of(cls, study: MeasuredStudy) -> "Report":
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
            rows.append(Row(cell, values[cell], mean, spread(numbers), difference, p, cost))
        return cls(study, rows, judge(study.expect, values), list(remarks(study, rows)))


def remarks(study: MeasuredStudy, rows: list[Row]):
    """One sentence for each thing that the table does not show."""
    for cell in study.cells:
        gone = {seed: line for (name, seed), line in study.waiting.items() if name == cell}
        if gone:
            numbers = ", ".join(str(seed) for seed in gone)
            errors = list(dict.fromkeys(filter(None, gone.values())))
            why = f": {'; '.join(errors)}" if errors else ""
            yield f"missing: {cell}, {'seeds' if len(gone) > 1 else 'seed'} {numbers}{why}"
    for run in study.runs:
        value = run.metrics.get(study.metric)
        if not defined(value):
            said = "does not log" if study.metric not in run.metrics else "has no finite"
            yield f"left out: {run.cell}, seed {run.seed} {said} {study.metric}"
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


EXACT = "Exact numbers, that nothing random goes into: they are compared as they are."


METHOD = (
    "Mean ± standard deviation over seeds. Differences are taken within each seed; their "
    f"intervals are at {100 * LEVEL:g} % by Student's t (bootstrap BCa from {BOOTSTRAP_FROM} seeds "
    "on), p is two-sided and adjusted over all comparisons (Holm). A verdict stands on an interval "
    "at 1 - 5 % / number of expectations (Bonferroni), so that at most 5 % of studies without any "
    "effect give one that is wrong; it is undecided where that interval spans zero."
)
