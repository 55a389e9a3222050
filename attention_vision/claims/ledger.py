"""The ledger: claims of articles and papers, joined with the results here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_vision.claims.claim import Claim
from attention_vision.claims.costs import CostRow, cost_rows
from attention_vision.claims.outcome import SYMBOLS, Outcome, combined, verdict_of
from attention_vision.claims.statement import Statement, Trial
from attention_vision.errors import InputError
from attention_vision.report.results import defined, parse_result, read_study
from attention_vision.report.shapes import RESULTS_FILE, check_shape
from attention_vision.report.statistics import Plan
from attention_vision.report.summary import Report
from attention_vision.yaml_json import read_dataclass, read_json, read_yaml, require

NOT_RUN = "not yet run"
NO_STUDY = "no study yet"


@dataclass(frozen=True)
class StatementEntry:
    """A statement of an article with its measurements.

    Args:
        id: its path below experiments/claims, without the suffix.
        outcomes: one for each expectation or number of its trials that has results.
        verdict: combination of their verdicts, see `combined`; `NOT_RUN` or `NO_STUDY` without any.
        commands: commands that measure it, at full scale first.
    """

    id: str
    statement: Statement
    outcomes: list[Outcome]
    verdict: str
    commands: list[str]

    @property
    def letter(self) -> str:
        """The letter by which the articles' numbers are known; empty for other statements."""
        name = self.id.partition("_")[0]
        return name if len(name) == 1 else ""

    @property
    def page(self) -> str:
        """Name of its page, below docs/ledger and without the suffix."""
        return self.id if "/" in self.id else f"claims/{self.id}"

    @property
    def is_measured(self) -> bool:
        return bool(self.outcomes)


@dataclass(frozen=True)
class PaperEntry:
    """An experiment that reproduces a number of a paper.

    Args:
        id: its path below experiments, without the suffix.
        values: measured values by seed.
        results: stems of the results files that they are from.
        verdict: reproduced, contradicted or undecided; without values "not run" and what it needs.
        data: name of the data set.
        command: the command that trains it.
    """

    id: str
    claim: Claim
    values: dict[int | None, float]
    results: list[str]
    verdict: str
    data: str
    command: str

    @property
    def is_measured(self) -> bool:
        return bool(self.values)


@dataclass(frozen=True)
class StudyEntry:
    """A study, or a results file with cells to compare.

    Args:
        id: path below experiments of the results file, or of a study without results, without the
            suffix.
        question: one sentence.
        metric: the logged key that decides.
        expect: expected orderings of cells.
        command: the command that measures it.
        plan: its effect, seeds and looks.
        report: statistics of its results; None without results.
    """

    id: str
    question: str
    metric: str
    expect: list[str]
    command: str
    plan: Plan
    report: Report | None = None

    @property
    def outcomes(self) -> list[Outcome]:
        if self.report is None:
            return []
        stem = Path(self.id).name
        return [Outcome(stem, self.report, one.verdict, one) for one in self.report.findings]

    @property
    def verdict(self) -> str:
        """The verdicts, counted: "1 supported, 2 undecided"."""
        if self.report is None:
            return NOT_RUN
        verdicts = [outcome.verdict for outcome in self.outcomes]
        counts = [f"{verdicts.count(word)} {word}" for word in SYMBOLS if word in verdicts]
        return ", ".join(counts) or "nothing expected"

    @property
    def is_measured(self) -> bool:
        return self.report is not None


@dataclass(frozen=True)
class Ledger:
    """All entries, the measured ones first.

    Args:
        statements: of articles.
        tables: of repositories that contradict each other, in experiments/claims/tables.
        papers: numbers that an experiment reproduces.
        costs: sizes of networks that sources print, the contradicted first.
        studies: studies, and results files with cells to compare.
    """

    statements: list[StatementEntry]
    tables: list[StatementEntry]
    papers: list[PaperEntry]
    costs: list[CostRow]
    studies: list[StudyEntry]


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
    claims = root / "experiments/claims"
    statements, tables = (
        sorted(
            (statement_entry(file, results) for file in sorted(folder.glob("*.yaml"))),
            key=lambda entry: (list(SYMBOLS).index(entry.verdict), not entry.letter),
        )
        for folder in (claims, claims / "tables")
    )
    papers: list[PaperEntry] = []
    studies: list[StudyEntry] = []
    known: set[Path] = set()
    for file in sorted((root / "experiments").rglob("*.yaml")):
        if file.relative_to(root).parts[1] in ("claims", "profiles", "results"):
            continue
        content = read_yaml(file)
        if "study" in content:
            measured = study_results(file, results)
            known.update(measured)
            studies += study_entries(file, content, measured, results)
        elif "claim" in content:
            papers.append(paper_entry(file, content, results))
    for file, report in results.reports.items():
        if file not in known:
            path = file.relative_to(root)
            studies.append(results_entry(path, report, f"attention-vision study report {path}"))
    for entries in (papers, studies):
        entries.sort(key=lambda entry: not entry.is_measured)
    return Ledger(statements, tables, papers, cost_rows(root), studies)


# Statements


def statement_entry(file: Path, results: ResultsFiles) -> StatementEntry:
    """Read a file of experiments/claims and join it with its results."""
    where = str(file.relative_to(results.root))
    statement = read_dataclass(Statement, read_yaml(file), where)
    commands, outcomes = [], []
    if statement.experiment:
        content = read_yaml(existing(statement.experiment, where, results.root))
        commands.append(training_command(content, statement.experiment))
    for trial in statement.trials:
        if trial.study:
            existing(trial.study, where, results.root)
            commands.append(f"attention-vision study run {trial.study}")
        for path in trial_results(trial, results):
            outcomes += trial_outcomes(trial, path, results.report(path, where), where)
    without = NOT_RUN if statement.trials else NO_STUDY
    verdict = combined([outcome.verdict for outcome in outcomes]) if outcomes else without
    name = name_of(file.relative_to(results.root)).removeprefix("claims/")
    return StatementEntry(name, statement, outcomes, verdict, commands)


def trial_results(trial: Trial, results: ResultsFiles) -> list[str]:
    """Return the results file of a trial, or those of its study."""
    if trial.results:
        return [trial.results]
    return [str(file.relative_to(results.root)) for file in results.of(trial.study)]


def trial_outcomes(trial: Trial, path: str, report: Report, where: str) -> Iterator[Outcome]:
    """Yield the outcome of each expectation or number of a trial in a results file.

    Raises:
        InputError: the results do not have the cell, or the expectation.
    """
    stem = Path(path).stem
    if trial.cell is not None and trial.stated is not None:
        if not report.study.values(trial.cell):
            raise InputError(f"{where}: '{trial.cell}' is not a cell of {path} with results")
        claim = Claim(trial.cell, report.study.metric, trial.stated, trial.tolerance)
        verdict = verdict_of(claim, report.study.values(trial.cell))
        verdict = "supported" if verdict == "reproduced" else verdict
        yield Outcome(stem, report, verdict, stated=claim)
    findings = {str(finding.expectation): finding for finding in report.findings}
    for line in trial.expect:
        if line not in findings:
            raise InputError(
                f"{where}: '{line}' is not an expectation of {report.study.name}: "
                f"{', '.join(findings) or 'it has none'}"
            )
        yield Outcome(stem, report, findings[line].verdict, findings[line])


# Numbers of papers


def paper_entry(file: Path, content: dict[str, Any], results: ResultsFiles) -> PaperEntry:
    """Join an experiment that has a claim with its results."""
    path = file.relative_to(results.root)
    claim = read_dataclass(Claim, content["claim"], f"{path}: claim")
    values, stems = measured_by(str(path), claim.metric, results)
    data = data_set(content)
    verdict = verdict_of(claim, values) if values else f"not run: {price(claim, data)}"
    command = training_command(content, str(path))
    return PaperEntry(name_of(path), claim, values, stems, verdict, data, command)


def measured_by(
    path: str, metric: str, results: ResultsFiles
) -> tuple[dict[int | None, float], list[str]]:
    """Return values by seed from this experiment's results of a single cell, and their files."""
    found, stems = {}, []
    for file in results.of(path):
        runs = require(results.content[file], "runs", list, file)
        measured = [parse_result(run, file) for run in runs]
        if len({one.cell for one in measured}) == 1:
            values = {one.seed: one.metrics.get(metric) for one in measured}
            known = {seed: value for seed, value in values.items() if defined(value)}
            stems += [file.stem] if known else []
            found |= known
    return found, stems


def data_set(content: dict[str, Any]) -> str:
    """Name the data of an experiment: its class, and for a folder the place of the images."""
    data = content.get("data") or {}
    if not isinstance(data, dict):
        data = {"class_path": data}
    name = str(data.get("class_path") or "").rpartition(".")[2]
    given = data.get("init_args") or {}
    place = given.get("root") or given.get("train_images") or ""
    return f"{name} ({place})" if "Folder" in name and place else name


def price(claim: Claim, data: str) -> str:
    """Say what a number that was not measured takes: data, hours and hardware."""
    hours = f"{claim.hours:g} h" if claim.hours else ""
    machine = " of ".join(filter(None, [hours, claim.hardware]))
    return "needs " + ("; ".join(filter(None, [data, machine])) or "a run")


# Questions of studies


def study_results(file: Path, results: ResultsFiles) -> list[Path]:
    """Return the results of a study, or of the folder of its name with single experiments."""
    path = str(file.relative_to(results.root))
    found = results.of(path) + results.of(path.removesuffix(".yaml"))
    return [one for one in found if one in results.reports]


def study_entries(
    file: Path, content: dict[str, Any], measured: list[Path], results: ResultsFiles
) -> list[StudyEntry]:
    """Build an entry for each results file of a study, or the one of a study without results."""
    path = file.relative_to(results.root)
    command = f"attention-vision study run {path}"
    if measured:
        return [
            results_entry(one.relative_to(results.root), results.reports[one], command)
            for one in measured
        ]
    plan = require(content, "study", dict, file)
    question, metric = (require(plan, key, str, file) for key in ("question", "metric"))
    lists = {key: plan.get(key) or [] for key in ("expect", "seeds")}
    expect, seeds = (require(lists, key, list, file) for key in lists)
    expect = [str(line) for line in expect]
    try:
        fixed = Plan.parse(plan.get("effect"), seeds, plan.get("looks"))
    except InputError as error:
        raise InputError(f"{file}: study.{error}") from error
    return [StudyEntry(name_of(path), question, metric, expect, command, fixed)]


def results_entry(path: Path, report: Report, command: str) -> StudyEntry:
    """Build the entry of a results file."""
    expect = [str(finding.expectation) for finding in report.findings]
    study = report.study
    about = (study.question, study.metric, expect, command, study.plan, report)
    return StudyEntry(name_of(path), *about)


# Files


def name_of(path: Path) -> str:
    """Name a file by its path below experiments, without the suffix."""
    return path.relative_to("experiments").with_suffix("").as_posix()


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
