"""`attention-vision study report FOLDER|RESULTS.json`: a study's table, verdicts, figures and page.

Reads files alone: neither torch nor Lightning is imported, and no run has to be complete.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from attention_vision.errors import InputError, one_line
from attention_vision.study.measured import COSTS, MeasuredStudy, defined, read_study
from attention_vision.study.statistics import (
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


def write(report: Report, folder: Path) -> list[Path]:
    """Writes report.{txt,csv,md,tex,html} and the figures; returns the files."""
    from attention_vision.study import figures, page, tables

    folder.mkdir(parents=True, exist_ok=True)
    drawn = figures.draw(report)
    texts = {
        "txt": tables.text(report),
        "csv": tables.comma_separated(report),
        "md": tables.markdown(report),
        "tex": tables.latex(report),
        "html": page.page(report, drawn),
    }
    files = []
    for ending, content in texts.items():
        files.append(folder / f"report.{ending}")
        files[-1].write_text(content)
    for name, figure in drawn.items():
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=200)
    return files


def main(arguments: list[str] | None = None) -> int:
    """Runs `study report` and returns its exit code: 0, or 1 for what cannot be read."""
    parser = argparse.ArgumentParser(
        prog="attention-vision study report",
        description="Writes what a study has measured so far as text, CSV, Markdown, LaTeX and one "
        "HTML page, and prints the text.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "study", type=Path, help="a study's folder, or a file such as experiments/results/NAME.json"
    )
    parser.add_argument(
        "--out", type=Path, default=None,
        help="where report.* go (default: the study's folder; runs/reports/NAME for a file)",
    )  # fmt: skip
    parser.add_argument(
        "--wandb", metavar="PROJECT", nargs="?", const="attention-vision", default=None,
        help="log tables, figures and page to W&B, as a run in the study's group (of the project "
        "attention-vision)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        report = Report.of(read_study(options.study))
        is_folder = options.study.is_dir()
        folder = options.out or (
            options.study if is_folder else Path("runs/reports", report.study.name)
        )
        files = write(report, folder)
        print((folder / "report.txt").read_text(), end="")
        print(f"\nwritten: {', '.join(str(file) for file in files)}")
        if options.wandb:
            from attention_vision.study.wandb_summary import log

            run = log(report, folder, options.wandb)
            print(f"W&B: {run}")
    except InputError as error:
        print(f"attention-vision: error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
