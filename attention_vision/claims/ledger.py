"""Rows of the ledger: claims of articles and papers, joined with what was measured."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_vision.claims.claim import Claim
from attention_vision.claims.statement import Statement, Trial
from attention_vision.errors import InputError
from attention_vision.report import tables
from attention_vision.report.results import defined, read_run, read_study
from attention_vision.report.statistics import Finding, mean_interval, spread
from attention_vision.report.summary import Report
from attention_vision.yaml_json import read_card, read_json, read_yaml, take

NOT_RUN = "not yet run"
NO_STUDY = "no study yet"


@dataclass(frozen=True)
class Row:
    """One line of the ledger; texts are Markdown.

    Args:
        name: a letter, or a link to the file.
        claim: what is claimed, or asked.
        source: what the source says, or what differs from it.
        reported: the number that is claimed.
        literature: whether the source bears the claim out, and why; of statements alone.
        measured: here, mean ± standard deviation or difference, and seeds.
        verdict: so far, of these measurements.
        commands: that measure it.
    """

    name: str
    claim: str
    measured: str
    verdict: str
    commands: tuple[str, ...]
    source: str = ""
    reported: str = ""
    literature: str = ""


@dataclass(frozen=True)
class Ledger:
    """All rows, by part."""

    statements: list[Row]
    papers: list[Row]
    studies: list[Row]


class Results:
    """experiments/results, by the experiment or study that each file says it is of.

    Raises:
        InputError: a file is damaged, or its study block makes no sense.
    """

    def __init__(self, root: Path):
        self.root = root
        self.files = sorted((root / "experiments/results").glob("*.json"))
        self.content = {file: read_json(file) for file in self.files}
        self.reports = {
            file: Report.of(read_study(file))
            for file, content in self.content.items()
            if "study" in content
        }

    def of(self, experiment: str) -> list[Path]:
        return [
            file
            for file, content in self.content.items()
            if (content.get("what") or {}).get("experiment") == experiment
        ]

    def report(self, path: str, where: str) -> Report:
        """Of a results file that a claim names."""
        file = self.root / path
        if file not in self.reports:
            there = "has no study block" if file in self.content else "is no results file"
            raise InputError(f"{where}: {path} {there}")
        return self.reports[file]


def read_ledger(root: Path) -> Ledger:
    """The ledger of a repository.

    Raises:
        InputError: there are no experiments, or a file does not parse or names one that is missing.
    """
    if not (root / "experiments").is_dir():
        raise InputError(f"{root}: there is no folder experiments here; run it from the repository")
    results = Results(root)
    files = sorted((root / "experiments/claims").glob("*.yaml"))
    statements = [statement_row(file, results) for file in files]
    statements.sort(key=lambda row: not row.name)  # those with a letter come first
    papers, studies, known = [], [], set()
    for file in sorted((root / "experiments").rglob("*.yaml")):
        if file.relative_to(root).parts[1] in ("claims", "profiles", "results"):
            continue
        content = read_yaml(file)
        if "study" in content:
            studies.append(study_row(file, content, results))
            known.update(study_results(str(file.relative_to(root)), results))
        elif "claim" in content:
            papers.append(paper_row(file, content, results))
    for file, report in results.reports.items():
        if file not in known:
            studies.append(results_row(file, report, results))
    return Ledger(statements, papers, studies)


# What articles say


def statement_row(file: Path, results: Results) -> Row:
    where = str(file.relative_to(results.root))
    statement = read_card(Statement, read_yaml(file), where)
    commands = []
    if statement.experiment:
        content = read_yaml(existing(statement.experiment, where, results.root))
        commands.append(training(content, statement.experiment))
    measured, verdicts = [], []
    for trial in statement.trials:
        if trial.study:
            existing(trial.study, where, results.root)
            commands.append(f"attention-vision study run {trial.study}")
        for path in trial_results(trial, results):
            outcomes = list(judged(trial, results.report(path, where), where))
            measured.append(f"{'; '.join(text for text, _ in outcomes)} ({link(path)})")
            verdicts += [verdict for _, verdict in outcomes]
    return Row(
        name=file.stem.split("_")[0] if statement.kind == "numeric" else "",
        claim=statement.statement,
        source=f"{statement.source}: {statement.says}",
        reported=statement.stated,
        literature=f"**{statement.literature}**: {statement.reason}",
        measured="<br>".join(measured),
        verdict=combined(verdicts) if verdicts else NOT_RUN if statement.trials else NO_STUDY,
        commands=tuple(commands),
    )


def trial_results(trial: Trial, results: Results) -> list[str]:
    """The file that is named, or those of the study."""
    if trial.results:
        return [trial.results]
    return [str(file.relative_to(results.root)) for file in results.of(trial.study)]


def judged(trial: Trial, report: Report, where: str) -> Iterator[tuple[str, str]]:
    """(numbers in words, verdict) of each thing that a trial looks at."""
    places = tables.decimals(report)
    if trial.cell is not None:
        rows = [row for row in report.rows if row.cell == trial.cell]
        if not rows:
            raise InputError(f"{where}: '{trial.cell}' is no cell of {trial.results}")
        claim = Claim(where, report.study.metric, trial.stated, trial.tolerance)
        word = verdict_of(claim, rows[0].values)
        said = {"reproduced": "supported"}.get(word, word)
        yield f"{trial.cell}: {numbers(rows[0].values, places)}", said
    findings = {str(finding.expectation): finding for finding in report.findings}
    for line in trial.expect:
        if line not in findings:
            raise InputError(
                f"{where}: '{line}' is not among what {report.study.name} expects: "
                f"{', '.join(findings) or 'nothing'}"
            )
        yield f"{line}: {found(findings[line], places)}", findings[line].verdict


def combined(verdicts: list[str]) -> str:
    """One word for several trials."""
    if set(verdicts) == {"supported"}:
        return "supported"
    if "contradicted" in verdicts:
        return "partly" if "supported" in verdicts else "contradicted"
    return "undecided"


def found(finding: Finding, places: int) -> str:
    difference = finding.difference
    if difference.mean is None:
        return difference.why
    seeds = seeds_of(difference.values)
    return f"{tables.change(difference, places)}{seeds}"


# What papers report


def paper_row(file: Path, content: dict[str, Any], results: Results) -> Row:
    path = str(file.relative_to(results.root))
    claim = read_card(Claim, content["claim"], f"{path}: claim")
    values = measured_by(path, claim.metric, results)
    places = max(digits(claim.reported), digits(claim.tolerance))
    return Row(
        name=link(path),
        claim=claim.source,
        source="; ".join([*claim.conditions, *claim.deviations]),
        reported=f"`{claim.metric}` {claim.reported:.{places}f} ± {claim.tolerance:.{places}f}",
        measured=numbers(values, places + 1) if values else "",
        verdict=verdict_of(claim, values) if values else NOT_RUN,
        commands=(training(content, path),),
    )


def measured_by(path: str, metric: str, results: Results) -> dict[int | None, float]:
    """By seed, of the results that are of this very file and have a single cell."""
    values = {}
    for file in results.of(path):
        runs = [read_run(run, file) for run in take(results.content[file], "runs", list, file)]
        if len({run.cell for run in runs}) == 1:
            values |= {run.seed: run.metrics.get(metric) for run in runs}
    return {seed: value for seed, value in values.items() if defined(value)}


def verdict_of(claim: Claim, values: dict[int | None, float]) -> str:
    """reproduced, contradicted or undecided.

    Reproduced where the mean over seeds lies within the tolerance; contradicted where its 95 %
    interval lies outside as a whole, or an exact number does; undecided between the two.
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


# What was measured


def study_results(path: str, results: Results) -> list[Path]:
    """Of the study, or of the folder of its name, whose experiments were once run one by one."""
    return results.of(path) + results.of(path.removesuffix(".yaml"))


def study_row(file: Path, content: dict[str, Any], results: Results) -> Row:
    path = str(file.relative_to(results.root))
    plan = take(content, "study", dict, file)
    files = [one for one in study_results(path, results) if one in results.reports]
    return Row(
        name=link(path),
        claim=take(plan, "question", str, file),
        source=f"`{take(plan, 'metric', str, file)}`",
        measured="; ".join(all_found(results.reports[one], link_to(one, results)) for one in files),
        verdict="; ".join(tally(results.reports[one]) for one in files) or NOT_RUN,
        commands=(f"attention-vision study run {path}",),
    )


def results_row(file: Path, report: Report, results: Results) -> Row:
    return Row(
        name=link_to(file, results),
        claim=report.study.question,
        source=f"`{report.study.metric}`",
        measured=all_found(report, ""),
        verdict=tally(report),
        commands=(f"attention-vision study report {file.relative_to(results.root)}",),
    )


def all_found(report: Report, source: str) -> str:
    places = tables.decimals(report)
    lines = [f"{one.expectation}: {found(one, places)}, {one.verdict}" for one in report.findings]
    if not lines:
        lines = [f"{row.cell}: {numbers(row.values, places)}" for row in report.rows]
    return "; ".join(lines) + (f" ({source})" if source else "")


def tally(report: Report) -> str:
    verdicts = [finding.verdict for finding in report.findings]
    words = [word for word in ("supported", "contradicted", "undecided") if word in verdicts]
    return ", ".join(f"{verdicts.count(word)} {word}" for word in words) or "nothing expected"


# Words


def numbers(values: dict[int | None, float], places: int) -> str:
    """ "0.983 ± 0.002, 5 seeds"."""
    mean, deviation = sum(values.values()) / len(values), spread(list(values.values()))
    said = tables.number(mean, places)
    return said + (f" ± {deviation:.{places}f}" if deviation is not None else "") + seeds_of(values)


def seeds_of(values: dict[int | None, float]) -> str:
    if None in values:
        return ", exact"
    return f", {len(values)} seed{'s' if len(values) > 1 else ''}"


def digits(value: float) -> int:
    """Decimals that a number is given with."""
    return len(f"{value:.10g}".partition(".")[2])


def training(content: dict[str, Any], path: str) -> str:
    """The command that trains an experiment."""
    return f"attention-vision {take(content, 'task', str, Path(path))} fit -c {path}"


def existing(path: str, where: str, root: Path) -> Path:
    if not (root / path).is_file():
        raise InputError(f"{where}: there is no file {path}")
    return root / path


def link(path: str) -> str:
    """A link from experiments/README.md to a file, by its name."""
    return f"[{Path(path).stem}]({Path(path).relative_to('experiments')})"


def link_to(file: Path, results: Results) -> str:
    return link(str(file.relative_to(results.root)))
