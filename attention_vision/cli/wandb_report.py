"""Logging of a report to W&B, as a separate run in the group of the study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb

from attention_vision.report import tables
from attention_vision.report.summary import Report
from attention_vision.training.wandb_mode import start_run


def log_report(report: Report, folder: Path, project: str) -> Path:
    """Log tables, figures, page and verdicts of a written report; return W&B's run folder.

    Without an API key or an answer of the server the run stays offline; `wandb sync` of the
    returned folder uploads it later.

    Args:
        report: the report.
        folder: the folder to which the report was written.
        project: W&B project of the study's runs.
    """
    study = report.study
    earlier = sorted((folder / "wandb").glob("*run-*-*"))  # replaces the earlier report
    with start_run(
        folder,
        id=earlier[-1].name.rpartition("-")[2] if earlier else None,
        resume="allow",
        project=project,
        group=study.name,
        name=f"{study.name}-report",
        job_type="report",
        config={
            "question": study.question,
            "metric": study.metric,
            "baseline": study.baseline,
            "seeds": study.seeds,
            **study.facts,
        },
    ) as run:
        logged = {
            "report/cells": wandb_table(tables.records(report)),
            "report/page": wandb.Html(
                (folder / "report.html").read_text(encoding="utf-8"), inject=False
            ),
        }
        if report.findings:
            logged["report/verdicts"] = wandb_table(tables.verdicts(report))
        for name in ("differences", "curves"):
            if (folder / f"{name}.png").is_file():
                logged[f"report/{name}"] = wandb.Image(str(folder / f"{name}.png"))
        run.log(logged)
        for row in report.rows:
            run.summary[f"mean/{row.cell}"] = row.mean
        for finding in report.findings:
            run.summary[f"verdict/{finding.expectation}"] = finding.verdict
        return Path(run.dir).parent


def wandb_table(rows: Sequence[Sequence[Any]]) -> wandb.Table:
    """Convert rows below a header to a W&B table."""
    head, *body = rows
    return wandb.Table(columns=list(head), data=[list(row) for row in body])
