"""One measured verdict: on the difference of two cells, or on the number of one cell."""

from collections.abc import Mapping
from dataclasses import dataclass

from attention_vision.claims.claim import Claim
from attention_vision.report import tables
from attention_vision.report.statistics import Finding, mean_interval, standard_deviation
from attention_vision.report.summary import Report

# In the order in which readers meet them; the shapes are those of the plots.
SYMBOLS = {
    "supported": "●",
    "reproduced": "●",
    "contradicted": "◆",
    "partly": "◐",
    "no difference": "■",
    "undecided": "○",
    "not yet run": "–",
    "not run": "–",
    "no study yet": "–",
}


@dataclass(frozen=True)
class Outcome:
    """A verdict of a results file.

    Args:
        results: stem of the results file.
        report: its statistics.
        verdict: supported, contradicted, no difference or undecided.
        finding: the expectation with its difference; None for the number of a cell.
        stated: the claimed number of a cell, whose source is the cell's name; None for a finding.
    """

    results: str
    report: Report
    verdict: str
    finding: Finding | None = None
    stated: Claim | None = None

    @property
    def name(self) -> str:
        """The expectation, or the cell."""
        return str(self.finding.expectation) if self.finding else self.claim.source

    @property
    def id(self) -> str:
        """Identity of the comparison over versions of the ledger."""
        return f"{self.results}: {self.name}"

    @property
    def claim(self) -> Claim:
        """The claimed number of a cell."""
        assert self.stated is not None
        return self.stated

    @property
    def values(self) -> Mapping[int | None, float]:
        """Differences, or numbers, by seed."""
        if self.finding:
            return self.finding.difference.values
        return self.report.study.values(self.claim.source)

    @property
    def numbers(self) -> str:
        """Mean, interval and number of seeds."""
        places = tables.decimals(self.report)
        if self.finding is None:
            return numbers(self.values, places)
        difference = self.finding.difference
        if difference.mean is None:
            return difference.why
        return f"{tables.change(difference, places)}{seeds_of(self.values)}"

    @property
    def words(self) -> str:
        """The numbers as a part of a sentence."""
        places, metric = tables.decimals(self.report), f"`{self.report.study.metric}`"
        if self.finding is None:
            stated = f"stated {self.claim.reported:g} ± {self.claim.tolerance:g}"
            return f"{self.name} has {self.numbers} in {metric}; {stated}"
        expectation, difference = self.finding.expectation, self.finding.difference
        if difference.mean is None:
            return f"{self.name}: {difference.why}"
        size = tables.number(abs(difference.mean), places)
        where = "above" if difference.mean > 0 else "below"
        relation = f"{size} {where}" if difference.mean else "equal to"
        ends = tables.interval(difference, places)
        found = f"interval {ends}" if ends.startswith("[") else difference.why
        count = "exact" if None in self.values else seeds_of(self.values).removeprefix(", ")
        told = ", ".join(filter(None, [found, count]))
        return f"{expectation.first} is {relation} {expectation.second} in {metric} ({told})"

    @property
    def shown_verdict(self) -> str:
        """The verdict in words: "no difference beyond 0.01"."""
        return str(self.finding) if self.finding else self.verdict

    @property
    def opposite(self) -> str:
        """What would have given another verdict; empty for a number."""
        return tables.opposite(self.finding, tables.decimals(self.report)) if self.finding else ""

    @property
    def half_width(self) -> float | None:
        """Half of the length of the interval; None without an interval, or for exact numbers."""
        if self.finding is None or self.finding.difference.interval is None:
            return None
        if self.finding.difference.exact:
            return None
        low, high = self.finding.difference.interval
        return (high - low) / 2


def numbers(values: Mapping[int | None, float], places: int) -> str:
    """Format values by seed, such as "0.983 ± 0.002, 5 seeds"."""
    mean, deviation = sum(values.values()) / len(values), standard_deviation([*values.values()])
    text = tables.number(mean, places)
    return text + (f" ± {deviation:.{places}f}" if deviation is not None else "") + seeds_of(values)


def seeds_of(values: Mapping[int | None, float]) -> str:
    """Format the number of seeds, such as ", 5 seeds"; ", exact" without seeds."""
    if None in values:
        return ", exact"
    return f", {len(values)} seed{'s' if len(values) > 1 else ''}"


def verdict_of(claim: Claim, values: Mapping[int | None, float]) -> str:
    """Return `reproduced`, `contradicted` or `undecided`.

    Reproduced: the mean over seeds lies within the tolerance. Contradicted: its whole 95 %
    confidence interval, or the exact number, lies outside. Undecided: neither.
    """
    mean = sum(values.values()) / len(values)
    if claim.reproduced(mean):
        return "reproduced"
    interval = (mean, mean) if None in values else mean_interval(list(values.values()))
    if interval is None:
        return "undecided"
    low, high = interval
    outside = low > claim.reported + claim.tolerance or high < claim.reported - claim.tolerance
    return "contradicted" if outside else "undecided"


def combined(verdicts: list[str]) -> str:
    """Combine the verdicts of several trials of one statement.

    Supported if all are; contradicted with none supported; partly if some are supported and others
    contradicted or without a difference; no difference if all are; otherwise undecided.
    """
    found = set(verdicts)
    if len(found) == 1:
        return verdicts[0]
    if "contradicted" in found:
        return "partly" if "supported" in found else "contradicted"
    return "partly" if found == {"supported", "no difference"} else "undecided"
