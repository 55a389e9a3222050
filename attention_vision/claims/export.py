"""The ledger as JSON, for other programs; docs/guides/claims.md describes its fields."""

from dataclasses import asdict
from typing import Any

from attention_vision.claims.costs import CostRow
from attention_vision.claims.ledger import Ledger, PaperEntry, StatementEntry, StudyEntry
from attention_vision.claims.outcome import Outcome
from attention_vision.report.checklist import checklist
from attention_vision.report.summary import Report
from attention_vision.yaml_json import to_json

FORMAT = 1  # rises if a field goes or changes its meaning


def ledger_json(ledger: Ledger) -> str:
    """Format all entries; numbers have six digits, so that machines agree on the file."""
    content = {
        "format": FORMAT,
        "statements": [statement_content(entry) for entry in ledger.statements],
        "tables": [statement_content(entry) for entry in ledger.tables],
        "papers": [paper_content(entry) for entry in ledger.papers],
        "costs": [cost_content(row) for row in ledger.costs],
        "studies": [study_content(entry) for entry in ledger.studies],
    }
    return to_json(rounded(content))


def rounded(content: Any) -> Any:
    """Round all numbers of a JSON value to six digits."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [rounded(value) for value in content]
    return float(f"{content:.6g}") if isinstance(content, float) else content


def statement_content(entry: StatementEntry) -> dict[str, Any]:
    about = asdict(entry.statement)
    about.pop("trials")
    return {
        "id": entry.id,
        "verdict": entry.verdict,
        **about,
        "outcomes": [outcome.id for outcome in entry.outcomes if outcome.finding],
        "numbers": [number_content(outcome) for outcome in entry.outcomes if not outcome.finding],
        "commands": entry.commands,
    }


def paper_content(entry: PaperEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "verdict": entry.verdict,
        **asdict(entry.claim),
        "data": entry.data,
        "values": by_seed(entry.values),
        "results": entry.results,
        "command": entry.command,
    }


def cost_content(row: CostRow) -> dict[str, Any]:
    claim = row.claim
    return {
        "experiment": row.experiment, "verdict": row.verdict, "metric": claim.metric,
        "source": claim.source, "printed": row.printed, "counted": int(row.counted),
        "note": row.note,
    }  # fmt: skip


def study_content(entry: StudyEntry) -> dict[str, Any]:
    about = {
        "id": entry.id,
        "question": entry.question,
        "metric": entry.metric,
        "expect": entry.expect,
        "effect": entry.plan.effect,
        "looks": list(entry.plan.looks),
        "planned_seeds": list(entry.plan.seeds),
        "measured": entry.is_measured,
        "command": entry.command,
    }
    return about | (measured_content(entry, entry.report) if entry.report else {})


def measured_content(entry: StudyEntry, report: Report) -> dict[str, Any]:
    """Return what is known of a study with results."""
    study = report.study
    return {
        "task": study.task,
        "higher_is_better": study.higher_is_better,
        "baseline": study.baseline,
        "seeds": [seed for seed in study.seeds if seed is not None],
        "hours": sum(one.cost.get("seconds") or 0.0 for one in study.results) / 3600,
        "checklist": checklist(study),
        "commands": study.facts.get("commands", "").splitlines(),
        "cells": [
            {"cell": row.cell, "n": len(row.values), "mean": row.mean, "std": row.std,
             "values": by_seed(row.values), "cost": row.cost}
            for row in report.rows
        ],
        "outcomes": [outcome_content(outcome) for outcome in entry.outcomes],
        "notes": study.notes,
    }  # fmt: skip


def outcome_content(outcome: Outcome) -> dict[str, Any]:
    """Return the verdict on an expectation, with its difference."""
    assert outcome.finding is not None
    finding, difference = outcome.finding, outcome.finding.difference
    low, high = difference.interval or (None, None)
    return {
        "id": outcome.id,
        "expectation": outcome.name,
        "verdict": finding.verdict,
        "reason": finding.reason,
        "opposite": outcome.opposite,
        "difference": difference.mean,
        "low": low,
        "high": high,
        "level": difference.level,
        "p": difference.p,
        "p_sign_flip": difference.flip_p,
        "ordering": list(finding.improvement) if finding.improvement else None,
        "values": by_seed(difference.values),
    }


def number_content(outcome: Outcome) -> dict[str, Any]:
    """Return the verdict on the stated number of a cell."""
    claim = outcome.claim
    return {
        "id": outcome.id,
        "verdict": outcome.verdict,
        "metric": claim.metric,
        "stated": claim.reported,
        "tolerance": claim.tolerance,
        "values": by_seed(outcome.values),
    }


def by_seed(values: Any) -> dict[str, float]:
    """Name values by their seed as text; "exact" for a number without a seed."""
    return {"exact" if seed is None else str(seed): value for seed, value in values.items()}
