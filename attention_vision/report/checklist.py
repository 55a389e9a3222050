"""Checklist of a study: runs, seeds, compute, hardware, data and selection rule, as text by title.

The items that reproducibility checklists of conferences ask for, such as that of NeurIPS.
"""

from collections.abc import Iterable

from attention_vision.report.results import MeasuredStudy, defined

SELECTION = {
    "val": "the last validation of each run, not its best epoch",
    "test": "the best checkpoint of each run by validation, else the last one",
}


def checklist(study: MeasuredStudy) -> dict[str, str]:
    """Items with their values; facts that are not known are left out."""
    seconds = list(filter(defined, (one.cost.get("seconds") for one in study.results)))
    runs = len(study.results) + len(study.waiting) + len(study.left_out)
    hours = f"{sum(seconds) / 3600:,.2f} h" + (
        f", of {len(seconds)} runs" if len(seconds) < len(study.results) else " in all runs"
    )
    facts = study.facts
    items = {
        "runs": f"{len(study.results)} finished of {runs}, {len(study.cells)} cells",
        "seeds": listed(seed for seed in study.seeds if seed is not None),
        "planned seeds": listed(study.plan.seeds),
        "looks": looks(study),
        "effect": "" if study.plan.effect is None else f"{study.plan.effect:.15g}",
        "selection": "" if study.exact else SELECTION.get(study.metric.partition("/")[0], ""),
        "compute": hours if seconds else "",
        **{key: facts.get(key, "") for key in ("hardware", "data", "images", "budget")},
        **{key: facts.get(key, "") for key in ("versions", "commit", "date")},
    }
    return {title: text for title, text in items.items() if text}


def looks(study: MeasuredStudy) -> str:
    """Words on the looks of a study; empty for exact numbers."""
    if study.exact:
        return ""
    if study.plan.looks:
        return f"at {listed(study.plan.looks)} seeds"
    return "one, at all planned seeds" if study.plan.seeds else "not planned: at the seeds it has"


def listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
