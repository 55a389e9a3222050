"""A report in W&B: a run of its own in the study's group, beside the runs that it sums up."""

from pathlib import Path

import wandb

from attention_vision.report import tables
from attention_vision.report.summary import Report
from attention_vision.training.wandb_mode import mode


def log(report: Report, folder: Path, project: str) -> Path:
    """Logs tables, figures, page and verdicts of a written report; returns W&B's folder.

    Offline without a key; `wandb sync` of the returned folder sends it later.

    Args:
        folder: where the report was written.
        project: of W&B, that of the study's runs.

    Raises:
        InputError: credentials that wandb calls malformed.
    """
    study = report.study
    earlier = sorted((folder / "wandb").glob("*run-*-*"))  # a report anew takes the old one's place
    with wandb.init(
        id=earlier[-1].name.rpartition("-")[2] if earlier else None,
        resume="allow",
        project=project,
        group=study.name,
        name=f"{study.name}-report",
        job_type="report",
        dir=folder,
        mode=mode(),
        config={
            "question": study.question,
            "metric": study.metric,
            "baseline": study.baseline,
            "seeds": study.seeds,
            **study.facts,
        },
    ) as run:
        logged = {
            "report/cells": table(tables.records(report)),
            "report/page": wandb.Html((folder / "report.html").read_text(), inject=False),
        }
        if report.findings:
            logged["report/verdicts"] = table(tables.verdicts(report))
        for name in ("differences", "curves"):
            if (folder / f"{name}.png").is_file():
                logged[f"report/{name}"] = wandb.Image(str(folder / f"{name}.png"))
        run.log(logged)
        for row in report.rows:
            run.summary[f"mean/{row.cell}"] = row.mean
        for finding in report.findings:
            run.summary[f"verdict/{finding.expectation}"] = finding.verdict
        return Path(run.dir).parent


def table(rows: list[list]) -> wandb.Table:
    head, *body = rows
    return wandb.Table(columns=head, data=body)
