"""Printed costs are read with their rounding, and compared with those that the package has."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from attention_vision.claims.claim import Claim, Costs
from attention_vision.claims.costs import (
    RESULTS,
    CostRow,
    cost_page,
    cost_rows,
    experiments_with_costs,
)
from attention_vision.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "number", "half"),
    [("28.1 M", 28.1e6, 0.05e6), ("86M", 86e6, 0.5e6), ("3.860 G", 3.86e9, 5e5), ("304", 304, 0.5)],
)
def test_a_printed_number_is_rounded_to_its_last_digit(
    text: str, number: float, half: float
) -> None:
    (claim,) = Claim("a", "val/top1", 0.7, costs=Costs(parameters=text)).cost_claims()
    assert (claim.metric, claim.source) == ("cost/parameters", "a")
    assert (claim.reported, claim.tolerance) == pytest.approx((number, half))
    assert claim.reproduced(number - half)
    assert not claim.reproduced(number - 1.02 * half)


@pytest.mark.parametrize("text", ["28,1 M", "28.1 m", "28.1 MB", "-1 M", "1e6"])
def test_what_is_not_a_printed_number(text: str) -> None:
    with pytest.raises(InputError, match=r"is not a number such as 28\.1 M"):
        Costs(macs=text)


def test_costs_are_not_empty() -> None:
    with pytest.raises(InputError, match=r"claim\.costs is empty"):
        Costs(source="a paper")


def test_the_page_says_what_is_contradicted_first(tmp_path: Path) -> None:
    assert cost_rows(tmp_path) == []
    claim = Claim("a paper", "cost/macs", 3.87e9, 5e6)
    wrong = CostRow("se", claim, "3.87 G", 3.86e9, "without the gates")
    right = CostRow("plain", claim, "3.87 G", 3.8701e9, "")
    page = "\n".join(cost_page([wrong, right]))
    assert "1 of 2 printed parameters and multiply-adds are reproduced." in page
    assert "- multiply-adds 3.87 G printed, 3,860,000,000 counted<br>without the gates" in page
    assert "| `plain` | multiply-adds | 3.87 G | 3,870,100,000 |" in page


@pytest.fixture
def benchmark() -> ModuleType:
    path = ROOT / "experiments/benchmarks/costs.py"
    spec = importlib.util.spec_from_file_location("costs_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_counts_are_still_those_of_the_package(benchmark: ModuleType) -> None:
    """The small networks, parameters and both kinds of multiply-adds among them."""
    runs = json.loads((ROOT / RESULTS).read_text())["runs"]
    committed = {run["cell"]: run["metrics"] for run in runs}
    claims = experiments_with_costs(ROOT)
    assert set(claims) == set(committed)
    small = ["cct_4_3x2_cifar10", "vit_lite_6_4_cifar10", "efficientnet_b0_imagenet"]
    for name in (f"classification/{one}" for one in small):
        assert benchmark.count(name, claims[name]) == committed[name]
