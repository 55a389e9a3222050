"""Parameters and multiply-adds that sources print, beside those that were counted here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_vision.claims.claim import Claim
from attention_vision.errors import InputError
from attention_vision.report.results import parse_result
from attention_vision.report.tables import markdown_table
from attention_vision.yaml_json import read_dataclass, read_json, read_yaml, require

RESULTS = "experiments/results/exact_costs.json"
INTRODUCTION = """\
# Costs of networks, as printed and as counted

Parameters and multiply-adds that papers and repositories print for the networks of the experiments,
and what the networks here have. A number is *reproduced* if the count lies within half a unit of
the last printed digit, and *contradicted* otherwise. Nothing is trained. Multiply-adds are those of
convolutions and of products of matrices; *of layers* leaves out the products of queries and keys
and of attention weights and values, as some counters do.
An experiment has the printed numbers under `claim.costs`;
`python experiments/benchmarks/costs.py` counts again and writes this page.
"""
NAMES = {
    "cost/parameters": "parameters",
    "cost/macs": "multiply-adds",
    "cost/layer_macs": "multiply-adds of layers",
}


@dataclass(frozen=True)
class CostRow:
    """One printed cost of the network of an experiment.

    Args:
        experiment: path below experiments, without the suffix.
        claim: the printed number, with half a unit of its last digit as the tolerance.
        printed: the number as its source prints it.
        counted: the exact number here.
        note: what is known of a difference.
    """

    experiment: str
    claim: Claim
    printed: str
    counted: float
    note: str

    @property
    def verdict(self) -> str:
        return "reproduced" if self.claim.reproduced(self.counted) else "contradicted"


def experiments_with_costs(root: Path) -> dict[str, Claim]:
    """Return the claims that have costs by the path of their experiment below experiments."""
    found = {}
    for file in sorted((root / "experiments").rglob("*.yaml")):
        content = read_yaml(file).get("claim")
        if isinstance(content, dict) and content.get("costs"):
            path = file.relative_to(root / "experiments").with_suffix("").as_posix()
            found[path] = read_dataclass(Claim, content, f"{file}: claim")
    return found


def cost_rows(root: Path) -> list[CostRow]:
    """Join printed costs with the counted ones, the contradicted first.

    Raises:
        InputError: a printed cost was not counted.
    """
    runs = require(read_json(root / RESULTS), "runs", list, root / RESULTS)
    counted = {one.cell: one.metrics for one in (parse_result(run, root / RESULTS) for run in runs)}
    rows = []
    for path, claim in experiments_with_costs(root).items():
        for cost in claim.cost_claims():
            assert claim.costs is not None
            printed = getattr(claim.costs, cost.metric.removeprefix("cost/"))
            number = number_of(counted, path, cost.metric)
            note = "" if cost.reproduced(number) else claim.costs.note
            rows.append(CostRow(path, cost, printed, number, note))
    return sorted(rows, key=lambda row: row.verdict)


def number_of(counted: Mapping[str, Mapping[str, Any]], path: str, metric: str) -> float:
    """Return a counted number."""
    if (number := counted.get(path, {}).get(metric)) is None:
        raise InputError(
            f"{RESULTS} has no {metric} of {path}: run experiments/benchmarks/costs.py"
        )
    return number


def render(rows: Sequence[CostRow]) -> str:
    """Render the page of all printed costs."""
    reproduced = sum(row.verdict == "reproduced" for row in rows)
    table = [["experiment", "source", "", "printed", "counted", "verdict"]]
    for row in rows:
        name, counted = NAMES[row.claim.metric], f"{row.counted:,.0f}"
        verdict = f"{row.verdict}: {row.note}" if row.note else row.verdict
        table.append([f"`{row.experiment}`", row.claim.source, name, row.printed, counted, verdict])
    first = f"{reproduced} of {len(rows)} printed numbers are reproduced."
    return f"{INTRODUCTION}\n{first}\n\n{markdown_table(table, [3, 4])}"
