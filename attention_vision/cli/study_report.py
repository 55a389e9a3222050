"""`attention-vision study report FOLDER|FILE`: tables, verdicts, figures and page of a study.

It only reads files: neither torch nor Lightning is imported, and the study may be unfinished.
"""

from pathlib import Path

from attention_vision.cli.tool_parser import ToolParser
from attention_vision.errors import InputError
from attention_vision.report.results import read_study
from attention_vision.report.summary import Report
from attention_vision.yaml_json import write_atomically


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write report.{txt,csv,md,tex,html} and the figures; return the files."""
    from attention_vision.report import html, plots, tables

    folder.mkdir(parents=True, exist_ok=True)
    figures = plots.draw(report)
    texts = {
        "txt": tables.text(report),
        "csv": tables.comma_separated(report),
        "md": tables.markdown(report),
        "tex": tables.latex(report),
        "html": html.render_page(report, figures),
    }
    files = []
    for ending, content in texts.items():
        files.append(folder / f"report.{ending}")
        write_atomically(files[-1], content)  # in place of a link, not through it
    for name, figure in figures.items():
        files.append(folder / f"{name}.png")
        files[-1].unlink(missing_ok=True)
        figure.savefig(files[-1], dpi=200)
    return files


def write_aggregate(reports: list[Report], folder: Path) -> list[Path]:
    """Write report.{txt,csv,md,html} of several studies; return the files."""
    from attention_vision.report.aggregate import Aggregate, render

    files = []
    for ending, content in render(Aggregate.of(reports)).items():
        files.append(folder / f"report.{ending}")
        write_atomically(files[-1], content)
    return files


def main(arguments: list[str]) -> int:
    """Run `study report`; return 0."""
    parser = ToolParser(
        "attention-vision study report",
        description="Writes the results of a study so far as text, CSV, Markdown, LaTeX and one "
        "HTML page, and prints the text.",
    )
    parser.add_argument(
        "studies", type=Path, nargs="+", metavar="STUDY",
        help="a study folder, or a file such as experiments/results/NAME.json; several with the"
        " same expectations, on several data sets, are reported together",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=None,
        help="output folder (default: the study folder; runs/reports/NAME for a file or several)",
    )  # fmt: skip
    parser.add_argument(
        "--wandb", metavar="PROJECT", nargs="?", const="attention-vision", default=None,
        help="log tables, figures and page to W&B, as a run in the study's group (default project: "
        "attention-vision)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    reports = [Report.of(read_study(path)) for path in options.studies]
    if len(reports) > 1 and options.wandb:
        raise InputError("--wandb logs one study: give one")
    (path, *others), report = options.studies, reports[0]
    name = "-".join(one.study.name for one in reports)
    folder = options.out or (path if path.is_dir() and not others else Path("runs/reports", name))
    files = write_aggregate(reports, folder) if others else write_report(report, folder)
    print((folder / "report.txt").read_text(encoding="utf-8"), end="")
    print(f"\nwritten: {', '.join(str(file) for file in files)}")
    if options.wandb:
        from attention_vision.cli.wandb_report import log_report

        run = log_report(report, folder, options.wandb)
        print(f"W&B: {run}")
    return 0
