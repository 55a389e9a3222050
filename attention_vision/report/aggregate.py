"""One verdict from studies of the same cells on several data sets."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from scipy.special import stdtr, stdtrit

from attention_vision.errors import InputError
from attention_vision.report import tables
from attention_vision.report.html import html_table, page
from attention_vision.report.statistics import (
    Difference,
    Expectation,
    Finding,
    Plan,
    standard_deviation,
    verdict,
)
from attention_vision.report.summary import Report
from attention_vision.report.text_table import aligned, printable

METHOD = (
    "Overall: the mean of the data sets' mean differences, equally weighted as in a stratified "
    "sample; its variance is that of the data sets, added, and its interval Student's t with the "
    "degrees of freedom of Welch and Satterthwaite. It speaks of these data sets, which are not a "
    "sample of all. Intervals and verdicts are as in the report of one study."
)
OVERALL = "overall"


@dataclass(frozen=True)
class Aggregate:
    """Studies of the same expectations, and their verdicts together.

    Args:
        reports: by the name of the study.
        findings: one per expectation, over all data sets.
    """

    reports: dict[str, Report]
    findings: list[Finding]

    @classmethod
    def of(cls, reports: Sequence[Report]) -> "Aggregate":
        """Combine the studies.

        Raises:
            InputError: two have the same name, metric or expectations differ, or numbers are exact.
        """
        named = {report.study.name: report for report in reports}
        if len(named) < len(reports):
            raise InputError("two of the studies have the same name: rename one of the files")
        first = reports[0].study
        for report in reports:
            study = report.study
            if study.exact or not study.expect:
                problem = "has exact numbers" if study.exact else "has no expectations"
                raise InputError(f"{study.name} {problem}: report it alone")
            if (study.metric, study.expect) != (first.metric, first.expect):
                raise InputError(
                    f"{study.name} and {first.name} differ in metric or expectations: "
                    f"{study.metric}, {shown(study.expect)}; {first.metric}, {shown(first.expect)}"
                )
        plans = [report.study.plan for report in reports]
        effects = {plan.effect for plan in plans}
        effect = effects.pop() if len(effects) == 1 else None
        looks = max((plan.looks for plan in plans), key=len)
        level = Plan(looks=looks).level(first.expect)
        findings = [
            overall(
                {name: one.findings[index] for name, one in named.items()}, plans, effect, level
            )
            for index in range(len(first.expect))
        ]
        return cls(named, findings)


def shown(expectations: Sequence[Expectation]) -> str:
    return ", ".join(map(str, expectations))


def overall(
    findings: Mapping[str, Finding], plans: Sequence[Plan], effect: float | None, level: float
) -> Finding:
    """Verdict on one expectation over all data sets.

    Args:
        findings: those of each study, by its name.
        plans: of each study.
        effect: smallest difference that matters, if all studies state the same one.
        level: confidence level of the interval.
    """
    expectation = next(iter(findings.values())).expectation
    for (name, one), plan in zip(findings.items(), plans, strict=True):
        unfinished = len(one.difference.values) < min(plan.counts, default=0)
        if unfinished or one.difference.interval is None:
            nothing = Difference({}, None, None, None, level, f"{name}: {one.reason}")
            return Finding(expectation, nothing, "undecided", nothing.why, effect)
    samples = [list(one.difference.values.values()) for one in findings.values()]
    difference = stratified_difference(samples, level)
    return Finding(expectation, difference, *verdict(expectation, difference, effect), effect)


def stratified_difference(samples: Sequence[Sequence[float]], level: float) -> Difference:
    """Mean of the means of several samples, equally weighted, with interval and p-value.

    Args:
        samples: paired differences of each data set, at least two that vary.
        level: confidence level.
    """
    means = [sum(sample) / len(sample) for sample in samples]
    parts = [(standard_deviation(one) or 0.0) ** 2 / len(one) for one in samples]
    variance = sum(parts) / len(parts) ** 2
    degrees = sum(parts) ** 2 / sum(
        part**2 / (len(one) - 1) for part, one in zip(parts, samples, strict=True)
    )
    mean = sum(means) / len(means)
    half = float(stdtrit(degrees, (1 + level) / 2)) * variance**0.5
    p = 2 * float(stdtr(degrees, -abs(mean) / variance**0.5))
    values: dict[int | None, float] = dict(enumerate(means))
    return Difference(values, mean, (mean - half, mean + half), p, level)


def table(aggregate: Aggregate) -> list[list[str]]:
    """Header, and for each expectation a row per data set and one for all of them."""
    places = max(tables.decimals(report) for report in aggregate.reports.values())
    level = 100 * aggregate.findings[0].difference.level
    rows = [["expected", "data set", "n", f"difference ({level:.4g} %)", "p (t)", "verdict"]]
    for index, whole in enumerate(aggregate.findings):
        parts = {name: report.findings[index] for name, report in aggregate.reports.items()}
        for name, one in {**parts, OVERALL: whole}.items():
            seeds = "" if one is whole else str(len(one.difference.values))
            numbers = tables.change(one.difference, places), tables.p_value(one.difference.p)
            rows.append([str(one.expectation), name, seeds, *numbers, tables.outcome(one)])
    return rows


def records(aggregate: Aggregate) -> list[tables.Record]:
    """The table with unrounded numbers; the ends of an interval are two columns."""
    rows: list[tables.Record] = [
        ["expected", "data_set", "n", "difference", "low", "high", "level", "p", "verdict"]
    ]
    for index, whole in enumerate(aggregate.findings):
        parts = {name: report.findings[index] for name, report in aggregate.reports.items()}
        for name, one in {**parts, OVERALL: whole}.items():
            ends = one.difference.interval or (None, None)
            count = None if one is whole else len(one.difference.values)
            names = tables.as_text(str(one.expectation)), tables.as_text(name)
            numbers = one.difference.mean, *ends, one.difference.level, one.difference.p
            rows.append([*names, count, *numbers, str(one)])
    return rows


def title(aggregate: Aggregate) -> str:
    study = next(iter(aggregate.reports.values())).study
    better = "higher" if study.higher_is_better else "lower"
    return f"{study.metric} ({better} is better) of {len(aggregate.reports)} data sets"


def render(aggregate: Aggregate) -> dict[str, str]:
    """Content of report.{txt,csv,md,html}, by ending."""
    rows, head = table(aggregate), title(aggregate)
    wrapped = "\n".join(textwrap.wrap(METHOD, 100))
    lines = [f"{name}: {report.study.question}" for name, report in aggregate.reports.items()]
    return {
        "txt": printable(
            "\n\n".join([head, aligned(rows, (2,)), "\n".join(lines), wrapped]) + "\n"
        ),
        "csv": tables.csv_text(records(aggregate)),
        "md": tables.without_html(
            "\n\n".join([f"## {head}", tables.markdown_table(rows, (2,)), *lines, METHOD]) + "\n"
        ),
        "html": page(
            head,
            [
                f"<h1>{escape(head)}</h1>",
                html_table(rows, [2]),
                *(f"<p>{escape(line)}</p>" for line in [*lines, METHOD]),
            ],
        ),
    }
