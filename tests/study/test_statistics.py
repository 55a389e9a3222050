"""Intervals cover what they should, verdicts raise few false alarms, both say when they cannot."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from attention_vision.errors import InputError
from attention_vision.report.statistics import (
    Expectation,
    bca_interval,
    holm,
    judge,
    mean_interval,
    paired_difference,
    t_interval,
)

REPETITIONS = 1000


def simulated(random: np.random.Generator, seeds: int, effects: dict[str, float]):
    """Cells by seed: an accuracy with an effect of the cell, one of the seed, and noise."""
    shared = random.normal(0, 0.02, seeds)
    return {
        cell: dict(enumerate(0.9 + effect + shared + random.normal(0, 0.01, seeds)))
        for cell, effect in effects.items()
    }


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_covers_the_truth(seeds):
    random = np.random.default_rng(seeds)
    covered = 0
    for _ in range(REPETITIONS):
        cells = simulated(random, seeds, {"none": 0.0, "se": 0.012})
        low, high = paired_difference(cells["se"], cells["none"]).interval
        covered += low <= 0.012 <= high
    assert 0.93 <= covered / REPETITIONS <= 0.97


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_planted_null_is_not_found(seeds):
    random = np.random.default_rng(seeds)
    expectations = [Expectation.parse(line) for line in ("b > a", "c > b", "a < d")]
    alarms = 0
    for _ in range(REPETITIONS):
        cells = simulated(random, seeds, dict.fromkeys("abcd", 0.0))
        alarms += any(one.verdict != "undecided" for one in judge(expectations, cells))
    assert alarms / REPETITIONS <= 0.05


def test_a_planted_effect_is_found():
    random = np.random.default_rng(0)
    expectations = [Expectation.parse(line) for line in ("b > a", "b < a")]
    verdicts = []
    for _ in range(200):
        cells = simulated(random, 5, {"a": 0.0, "b": 0.06})
        verdicts.append([one.verdict for one in judge(expectations, cells)])
    assert verdicts.count(["supported", "contradicted"]) >= 190
    assert all(both in (["supported", "contradicted"], ["undecided"] * 2) for both in verdicts)


def test_what_a_seed_moves_in_both_cells_falls_out():
    first, second = {0: 0.90, 1: 0.92, 2: 0.91}, {0: 0.89, 1: 0.90, 2: 0.90}
    plain = paired_difference(first, second)
    moved = [{seed: value + 10 * seed for seed, value in cell.items()} for cell in (first, second)]
    assert paired_difference(*moved).interval == pytest.approx(plain.interval)


def test_difference_by_hand():
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t of 2 degrees 4.3027."""
    difference = paired_difference({0: 1.0, 1: 2.0, 2: 3.0, 7: 9.0}, {2: 0.0, 0: 0.0, 1: 0.0})
    assert difference.values == {0: 1.0, 1: 2.0, 2: 3.0}
    assert difference.mean == 2
    assert difference.interval == pytest.approx(
        (2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4
    )


@pytest.mark.parametrize("seeds", [2, 5, 19])
def test_p_is_that_of_the_paired_t_test(seeds):
    first, second = np.random.default_rng(seeds).normal(size=(2, seeds))
    difference = paired_difference(dict(enumerate(first)), dict(enumerate(second)), level=0.9)
    expected = stats.ttest_rel(first, second)
    assert difference.p == pytest.approx(expected.pvalue)
    assert difference.interval == pytest.approx(tuple(expected.confidence_interval(0.9)))


def test_the_bootstrap_begins_at_20_seeds_and_follows_the_skew():
    skewed = list(np.random.default_rng(0).exponential(size=20))
    assert mean_interval(skewed[:19]) == t_interval(skewed[:19])
    assert mean_interval(skewed) == bca_interval(skewed)
    low, high = bca_interval(skewed)
    assert high - np.mean(skewed) > 1.1 * (np.mean(skewed) - low)


def test_the_bootstrap_is_bca_at_widened_levels():
    values = np.random.default_rng(0).exponential(size=25)
    level = 2 * ndtr((25 / 24) ** 0.5 * stats.t(24).ppf(0.975)) - 1
    expected = stats.bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert bca_interval(values) == pytest.approx(tuple(expected), rel=0.02)


def test_holm_by_hand():
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx([0.03, None, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ({0: 1.0}, {0: 0.0}, "one seed"),
        ({0: 1.0, 1: 2.0}, {0: 0.0, 1: 1.0}, "equal differences"),
        ({0: 0.5, 1: 0.7}, {0: 0.5, 1: 0.7}, "equal differences"),
        ({0: 1.0}, {1: 0.0}, "no seed in common"),
        ({}, {}, "no seed in common"),
    ],
)
def test_where_there_is_no_interval_a_verdict_is_undecided(first, second, why):
    (finding,) = judge([Expectation("a", ">", "b")], {"a": first, "b": second})
    assert finding.difference.interval is finding.difference.p is None
    assert finding.verdict == "undecided"
    assert why in finding.reason


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [(2.0, 1.0, "supported"), (1.0, 2.0, "contradicted"), (1.0, 1.0, "contradicted")],
)
def test_exact_numbers_need_no_seeds(first, second, verdict):
    (finding,) = judge([Expectation("a", ">", "b")], {"a": {None: first}, "b": {None: second}})
    assert finding.verdict == verdict


def test_intervals_of_verdicts_widen_with_their_number():
    cells = {"a": {0: 1.0, 1: 2.0, 2: 4.0}, "b": dict.fromkeys(range(3), 0.0)}
    (one,) = judge([Expectation("a", ">", "b")], cells)
    five = judge([Expectation("a", ">", "b")] * 5, cells)
    assert one.difference.level == pytest.approx(0.95)
    assert {finding.difference.level for finding in five} == {0.99}
    assert five[0].difference.interval[0] < one.difference.interval[0]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("cbam > se", ("cbam", ">", "se")),
        ("a<b", ("a", "<", "b")),
        (" spectral norm in G  >  neither ", ("spectral norm in G", ">", "neither")),
        ("relative, ViT-B/16 < absolute", ("relative, ViT-B/16", "<", "absolute")),
    ],
)
def test_an_expectation_is_an_ordering(line, parts):
    assert Expectation.parse(line) == Expectation(*parts)


@pytest.mark.parametrize("line", ["cbam", "a >= b", "a > b > c", "> b", "a >", "", 3])
def test_what_is_no_ordering(line):
    with pytest.raises(InputError, match="is not an ordering such as"):
        Expectation.parse(line)
