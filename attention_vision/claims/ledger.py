"""The ledger: claims of articles and papers, joined with the results here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_vision.claims.claim import Claim
from attention_vision.claims.statement import Statement, Trial
from attention_vision.errors import InputError
from attention_vision.report import tables
from attention_vision.report.results import defined, parse_result, read_study
from attention_vision.report.shapes import RESULTS_FILE, check_shape
from attention_vision.report.statistics import Finding, mean_interval, standard_deviation
from attention_vision.report.summary import Report
from attention_vision.yaml_json import read_dataclass, read_json, read_yaml, require

NOT_RUN = "not yet run"
NO_STUDY = "no study yet"


@dataclass(frozen=True)
class LedgerRow:
    """One line of the ledger; texts are Markdown.

    Args:
        name: a letter, or a link to the file.
        claim: the claim, or the question of a study.
        measured: results here: mean ± standard deviation or difference, and number of seeds.
        verdict: verdict on these results.
        commands: commands that measure it.
        source: the source with its content, or the deviations from its recipe.
        reported: the claimed number.
        literature: whether the source supports the claim, and why; for statements only.
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
    """All rows, by part of the page."""

    statements: list[LedgerRow]
    papers: list[LedgerRow]
    studies: list[LedgerRow]


class ResultsFiles:
    """The files of experiments/results, found by their experiment or study.

    Args:
        root: the repository.

    Raises:
        InputError: a file is damaged, or its study block is invalid.
    """

    def __init__(self, root: Path):
        self.root = root
        self.files = sorted((root / "experiments/results").glob("*.json"))
        self.content = {file: read_json(file) for file in self.files}
        for file, content in self.content.items():
            check_shape(content, RESULTS_FILE, file)
        self.reports = {
            file: Report.of(read_study(file))
            for file, content in self.content.items()
            if "study" in content
        }

    def of(self, experiment: str | None) -> list[Path]:
        """Return the results files of an experiment or study."""
        return [
            file
            for file, content in self.content.items()
            if (content.get("what") or {}).get("experiment") == experiment
        ]

    def report(self, path: str, where: str) -> Report:
        """Return the report of a results file that a claim names.

        Raises:
            InputError: the file does not exist, or does not have a study block.
        """
        file = self.root / path
        if file not in self.reports:
            problem = "has no study block" if file in self.content else "is not a results file"
            raise InputError(f"{where}: {path} {problem}")
        return self.reports[file]


def read_ledger(root: Path) -> Ledger:
    """Read the ledger of a repository.

    Raises:
        InputError: the experiments are missing, or a file does not parse or names a missing file.
    """
    if not (root / "experiments").is_dir():
        raise InputError(
            f"{root}: there is no folder experiments; run the command in the repository"
        )
    results = ResultsFiles(root)
    files = sorted((root / "experiments/claims").glob("*.yaml"))
    statements = [statement_row(file, results) for file in files]
    statements.sort(key=lambda row: not row.name)  # statements with a letter come first
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


# Statements of articles


def statement_row(file: Path, results: ResultsFiles) -> LedgerRow:
    """Build the row of a file of experiments/claims."""
    where = str(file.relative_to(results.root))
    statement = read_dataclass(Statement, read_yaml(file), where)
    commands = []
    if statement.experiment:
        content = read_yaml(existing(statement.experiment, where, results.root))
        commands.append(training_command(content, statement.experiment))
    measured, verdicts = [], []
    for trial in statement.trials:
        if trial.study:
            existing(trial.study, where, results.root)
            commands.append(f"attention-vision study run {trial.study}")
        for path in trial_results(trial, results):
            outcomes = list(trial_outcomes(trial, results.report(path, where), where))
            measured.append(f"{'; '.join(text for text, _ in outcomes)} ({link(path)})")
            verdicts += [verdict for _, verdict in outcomes]
    return LedgerRow(
        name=file.stem.split("_")[0] if statement.kind == "numeric" else "",
        claim=statement.statement,
        source=f"{statement.source}: {statement.says}",
        reported=statement.stated,
        literature=f"**{statement.literature}**: {statement.reason}",
        measured="<br>".join(measured),
        verdict=combined(verdicts) if verdicts else NOT_RUN if statement.trials else NO_STUDY,
        commands=tuple(commands),
    )


def trial_results(trial: Trial, results: ResultsFiles) -> list[str]:
    """Return the results file of a trial, or those of its study."""
    if trial.results:
        return [trial.results]
    return [str(file.relative_to(results.root)) for file in results.of(trial.study)]


def trial_outcomes(trial: Trial, report: Report, where: str) -> Iterator[tuple[str, str]]:
    """Yield (numbers as text, verdict) for each expectation or number of a trial."""
    places = tables.decimals(report)
    if trial.cell is not None and trial.stated is not None:
        rows = [row for row in report.rows if row.cell == trial.cell]
        if not rows:
            raise InputError(f"{where}: '{trial.cell}' is not a cell of {trial.results}")
        claim = Claim(where, report.study.metric, trial.stated, trial.tolerance)
        verdict = verdict_of(claim, rows[0].values)
        if verdict == "reproduced":
            verdict = "supported"
        yield f"{trial.cell}: {numbers(rows[0].values, places)}", verdict
    findings = {str(finding.expectation): finding for finding in report.findings}
    for line in trial.expect:
        if line not in findings:
            raise InputError(
                f"{where}: '{line}' is not an expectation of {report.study.name}: "
                f"{', '.join(findings) or 'it has none'}"
            )
        yield f"{line}: {difference_text(findings[line], places)}", findings[line].verdict


def combined(verdicts: list[str]) -> str:
    """Combine the verdicts of several trials."""
    if set(verdicts) == {"supported"}:
        return "supported"
    if "contradicted" in verdicts:
        return "partly" if "supported" in verdicts else "contradicted"
    return "undecided"


def difference_text(finding: Finding, places: int) -> str:
    """Format the difference of a finding with its number of seeds."""
    difference = finding.difference
    if difference.mean is None:
        return difference.why
    seeds = seeds_of(difference.values)
    return f"{tables.change(difference, places)}{seeds}"


# Numbers of papers


def paper_row(file: Path, content: dict[str, Any], results: ResultsFiles) -> LedgerRow:
    """Build the row of an experiment with a claim."""
    path = str(file.relative_to(results.root))
    claim = read_dataclass(Claim, content["claim"], f"{path}: claim")
    values = measured_by(path, claim.metric, results)
    places = max(digits(claim.reported), digits(claim.tolerance))
    return LedgerRow(
        name=link(path),
        claim=claim.source,
        source="; ".join([*claim.conditions, *claim.deviations]),
        reported=f"`{claim.metric}` {claim.reported:.{places}f} ± {claim.tolerance:.{places}f}",
        measured=numbers(values, places + 1) if values else "",
        verdict=verdict_of(claim, values) if values else NOT_RUN,
        commands=(training_command(content, path),),
    )


def measured_by(path: str, metric: str, results: ResultsFiles) -> dict[int | None, float]:
    """Return values by seed, from the results of this experiment that have a single cell."""
    values = {}
    for file in results.of(path):
        runs = require(results.content[file], "runs", list, file)
        measured = [parse_result(run, file) for run in runs]
        if len({one.cell for one in measured}) == 1:
            values |= {one.seed: one.metrics.get(metric) for one in measured}
    return {seed: value for seed, value in values.items() if defined(value)}


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


# Questions of studies


def study_results(path: str, results: ResultsFiles) -> list[Path]:
    """Return the results of a study, or of the folder of its name with single experiments."""
    return results.of(path) + results.of(path.removesuffix(".yaml"))


def study_row(file: Path, content: dict[str, Any], results: ResultsFiles) -> LedgerRow:
    """Build the row of a study file."""
    path = str(file.relative_to(results.root))
    plan = require(content, "study", dict, file)
    files = [one for one in study_results(path, results) if one in results.reports]
    return LedgerRow(
        name=link(path),
        claim=require(plan, "question", str, file),
        source=f"`{require(plan, 'metric', str, file)}`",
        measured="; ".join(
            all_differences(results.reports[one], link_to(one, results)) for one in files
        ),
        verdict="; ".join(tally(results.reports[one]) for one in files) or NOT_RUN,
        commands=(f"attention-vision study run {path}",),
    )


def results_row(file: Path, report: Report, results: ResultsFiles) -> LedgerRow:
    """Build the row of a results file that does not belong to a study file."""
    return LedgerRow(
        name=link_to(file, results),
        claim=report.study.question,
        source=f"`{report.study.metric}`",
        measured=all_differences(report, ""),
        verdict=tally(report),
        commands=(f"attention-vision study report {file.relative_to(results.root)}",),
    )


def all_differences(report: Report, source: str) -> str:
    """Format the findings of a report, or its means if nothing is expected."""
    places = tables.decimals(report)
    lines = [
        f"{one.expectation}: {difference_text(one, places)}, {one.verdict}"
        for one in report.findings
    ]
    if not lines:
        lines = [f"{row.cell}: {numbers(row.values, places)}" for row in report.rows]
    return "; ".join(lines) + (f" ({source})" if source else "")


def tally(report: Report) -> str:
    """Count the verdicts of a report, such as "1 supported, 2 undecided"."""
    verdicts = [finding.verdict for finding in report.findings]
    words = [word for word in ("supported", "contradicted", "undecided") if word in verdicts]
    return ", ".join(f"{verdicts.count(word)} {word}" for word in words) or "nothing expected"


# Formatting


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


def digits(value: float) -> int:
    """Count the decimals of a number."""
    return len(f"{value:.10g}".partition(".")[2])


def training_command(content: dict[str, Any], path: str) -> str:
    """Return the command that trains an experiment."""
    return f"attention-vision {require(content, 'task', str, Path(path))} fit -c {path}"


def existing(path: str, where: str, root: Path) -> Path:
    """Return a path inside the repository after checking that the file exists.

    Raises:
        InputError: there is no such file.
    """
    if not (root / path).is_file():
        raise InputError(f"{where}: there is no file {path}")
    return root / path


def link(path: str) -> str:
    """Return a Markdown link from experiments/README.md to a file."""
    return f"[{Path(path).stem}]({Path(path).relative_to('experiments')})"


def link_to(file: Path, results: ResultsFiles) -> str:
    """Return a Markdown link from experiments/README.md to a results file."""
    return link(str(file.relative_to(results.root)))
