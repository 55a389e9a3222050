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
Parameters and multiply-adds that papers and repositories print for the networks of the experiments,
under `claim.costs`, and what the networks here have. A number is *reproduced* if the count lies
within half a unit of the last printed digit, and *contradicted* otherwise. Nothing is trained.
Multiply-adds are those of convolutions and of products of matrices; *of layers* leaves out the
products of queries and keys and of attention weights and values, as some counters do.
The tables of SENet, CBAM, DETR and Attention U-Net were read in copies that others typed, the rest
in the sources. `python experiments/benchmarks/costs.py` counts again.
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
    claims = experiments_with_costs(root)
    if not claims:
        return []
    runs = require(read_json(root / RESULTS), "runs", list, root / RESULTS)
    counted = {one.cell: one.metrics for one in (parse_result(run, root / RESULTS) for run in runs)}
    rows = []
    for path, claim in claims.items():
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


def cost_page(rows: Sequence[CostRow]) -> list[str]:
    """Return the parts of the page of all printed costs: what is contradicted first."""
    wrong = [row for row in rows if row.verdict == "contradicted"]
    right = [row for row in rows if row.verdict == "reproduced"]
    table = [["experiment", "", "printed", "counted"]]
    for row in right:
        what = NAMES[row.claim.metric]
        table.append([f"`{row.experiment}`", what, row.printed, f"{row.counted:,.0f}"])
    parts = ["# Costs of networks, as printed and as counted", INTRODUCTION, summary(rows) + "."]
    if wrong:
        parts += ["## Contradicted", "\n".join(map(cost_line, wrong))]
    return parts + (["## Reproduced", markdown_table(table, [2, 3])] if right else [])


def summary(rows: Sequence[CostRow]) -> str:
    """Count the printed costs that are reproduced."""
    reproduced = sum(row.verdict == "reproduced" for row in rows)
    return f"{reproduced} of {len(rows)} printed parameters and multiply-adds are reproduced"


def cost_line(row: CostRow) -> str:
    """Format a contradicted cost as an item of a list."""
    what = f"{NAMES[row.claim.metric]} {row.printed} printed, {row.counted:,.0f} counted"
    lines = [what, row.note, row.claim.source, f"`experiments/{row.experiment}.yaml`"]
    return f"- {'<br>'.join(filter(None, lines))}"
