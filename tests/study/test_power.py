"""Power: the spread of paired differences, what seeds show of it, and what an effect needs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from study_folders import STUDY, write_file

from attention_vision.report.power import (
    ABOVE_FLOOR,
    Power,
    Spread,
    binomial_spread,
    compared_cells,
    half_width,
    measured_spread,
    planned_power,
    sentences,
)
from attention_vision.report.results import read_study
from attention_vision.report.statistics import Expectation, Plan, paired_difference
from attention_vision.report.summary import Report

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def cells_of(table: np.ndarray) -> dict[str, dict[int | None, float]]:
    return {f"c{cell}": dict(enumerate(map(float, row))) for cell, row in enumerate(table)}


def test_two_cells_have_the_spread_of_their_differences():
    table = np.random.default_rng(0).normal(size=(2, 7))
    spread = measured_spread(cells_of(table), "here")
    assert spread.deviation == pytest.approx((table[0] - table[1]).std(ddof=1))
    assert spread.source == "7 seeds of 2 cells here, 6 degrees of freedom"
    low, high = paired_difference(*cells_of(table).values(), level=0.99).interval
    assert half_width(spread.deviation, 7, 0.99) == pytest.approx((high - low) / 2)


def test_the_spread_of_many_cells_is_that_of_their_noise():
    random = np.random.default_rng(0)
    table = random.normal(0, 0.1, (60, 80))
    effects = random.normal(size=(60, 1)) + random.normal(size=80)
    spread = measured_spread(cells_of(table + effects), "")
    assert spread.deviation == pytest.approx(0.1 * 2**0.5, rel=0.03)
    assert spread.deviation == pytest.approx(measured_spread(cells_of(table), "").deviation)


@pytest.mark.parametrize(
    "cells",
    [
        {},
        {"a": {0: 1.0, 1: 2.0}},
        {"a": {0: 1.0, 1: 2.0}, "b": {0: 1.0}},
        {"a": {0: 1.0, 1: 2.0}, "b": {1: 1.0, 2: 2.0}},
        {"a": {0: 1.0, 1: 2.0}, "b": {0: 2.0, 1: 3.0}},
        {"a": {None: 1.0}, "b": {None: 2.0}},
    ],
)
def test_where_no_spread_is_known(cells):
    assert measured_spread(cells, "") is None


@pytest.mark.parametrize(("shift", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.2, 8)])
def test_seeds_for_80_percent_power_are_those_of_the_paired_t_test(shift, seeds):
    """Numbers of Cohen's tables and of G*Power for a two-sided test at 5 %."""
    assert Power(Spread(1.0, ""), 5, 0.95, shift).needed_to_see == seeds


@pytest.mark.filterwarnings("error")
def test_an_effect_of_any_size_has_its_seeds():
    tiny, huge = (Power(Spread(0.03, ""), 5, 0.95, effect) for effect in (1e-320, 1e150))
    assert (tiny.needed_to_see, huge.needed_to_see) == (None, 2)


@pytest.mark.parametrize("deviation", [1e-9, 0.003, 0.03, 1.0])
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_seeds_are_the_fewest(deviation, level):
    power = Power(Spread(deviation, ""), 5, level, 0.01)
    for found, holds in (
        (power.needed, lambda n: half_width(deviation, n, level) <= 0.005),
        (power.needed_to_see, None),
    ):
        assert (found is None) == (deviation == 1)
        if found is not None and holds:
            assert holds(found)
            assert found == 2 or not holds(found - 1)
    if power.needed:
        assert power.decides == (power.needed <= 5)
        assert power.needed_to_see <= power.needed


def test_an_accuracy_has_a_floor_without_runs():
    spread = binomial_spread("val/top1", 0.94, 10_000)
    assert spread.deviation == pytest.approx(ABOVE_FLOOR * 0.00245, rel=0.01)
    assert "10,000 images, error 0.06 of the baseline" in spread.source
    assert "error 0.1 assumed" in binomial_spread("val/top1", None, 500).source
    assert binomial_spread("val/ap", 0.4, 500) is None
    assert binomial_spread("val/top1", 0.9, None) is None


def test_words_on_a_study_that_cannot_decide():
    plan = Plan(0.01, seeds=(0, 1, 2), looks=(3, 5))
    expectations = [Expectation("a", ">", "b"), Expectation("b", ">", "c")]
    power = planned_power(Spread(0.0225, "of a pilot"), plan, expectations, 9)
    assert (power.seeds, power.level) == (5, pytest.approx(1 - 0.05 / 4))
    last = sentences(power)[-1]
    assert last == (
        f"this study cannot decide what it expects: {power.needed} seeds needed, 5 planned"
    )
    enough = planned_power(Spread(0.001, ""), plan, expectations, 9)
    assert "cannot decide" not in " ".join(sentences(enough))
    assert compared_cells(expectations[:1], ["c", "b", "a"]) == ["b", "a"]


# What is predicted, against what is reached


def error_of_prediction(report: Report) -> float:
    """Logarithm of the predicted half-width over the reached one, root mean square."""
    return math.log(report.predicted / np.sqrt(np.square(report.reached).mean()))


def test_half_the_seeds_predict_the_half_width(tmp_path):
    random = np.random.default_rng(0)
    study = STUDY | {"expect": ["c1 > c0", "c2 > c0", "c3 > c0"], "baseline": "c0"}
    errors = []
    for _ in range(100):
        table = random.normal(0.9, 0.01, (4, 10)) + random.normal(0, 0.02, 10)
        errors.append(error_of_prediction(report_of(tmp_path, cells_of(table), study)))
    assert abs(np.mean(errors)) < 0.1
    assert np.mean(np.abs(errors) < math.log(1.3)) > 0.6


def report_of(folder: Path, values: dict, study: dict) -> Report:
    return Report.of(read_study(write_file(folder / "results.json", values, study=study)))


def finished() -> dict[str, Report]:
    """Committed studies of six seeds or more."""
    found = {}
    for file in sorted(RESULTS.glob("*.json")):
        if "study" in json.loads(file.read_text()):
            report = Report.of(read_study(file))
            seeds = [len(one.difference.values) for one in report.findings if one.difference.values]
            if not report.study.exact and min(seeds, default=0) >= 6:
                found[file.stem] = report
    return found


def test_half_the_seeds_predict_the_half_width_of_committed_studies():
    errors = {name: error_of_prediction(report) for name, report in finished().items()}
    assert len(errors) >= 5
    assert np.median(np.abs(list(errors.values()))) <= math.log(1.3), errors
