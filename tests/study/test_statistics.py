"""Intervals cover what they should, verdicts raise few false alarms, both say when they cannot."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from attention_vision.errors import InputError
from attention_vision.report import statistics
from attention_vision.report.aggregate import stratified_difference
from attention_vision.report.power import Power, Spread
from attention_vision.report.statistics import (
    Expectation,
    Plan,
    bca_interval,
    holm,
    judge,
    mean_interval,
    needed,
    paired_difference,
    probability,
    sign_flip_p,
    smallest_flip_p,
    t_interval,
)

REPETITIONS = 1000
ALARMS = 0.05 + 2 * (0.05 * 0.95 / REPETITIONS) ** 0.5  # a rate of 5 %, as far as these show it


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
    names = [f"b{number}" for number in range(5)]
    five = judge(
        [Expectation("a", ">", b) for b in names], cells | dict.fromkeys(names, cells["b"])
    )
    again = judge([Expectation.parse(line) for line in ("a > b", "b < a", "a > b by 0.5")], cells)
    assert {one.difference.level for one in again} == {one.difference.level}
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
        ("a > b by 0.01", ("a", ">", "b", 0.01)),
        ("stand by < by  by .5 ", ("stand by", "<", "by", 0.5)),
        ("a > b by 2e-05", ("a", ">", "b", 2e-5)),
    ],
)
def test_an_expectation_is_an_ordering(line, parts):
    parsed = Expectation.parse(line)
    assert parsed == Expectation(*parts)
    assert Expectation.parse(str(parsed)) == parsed


@pytest.mark.parametrize("line", ["a > b by 0.01x", "a > b by 1e999"])
def test_what_is_no_margin(line):
    with pytest.raises(InputError, match="is not a number"):
        Expectation.parse(line)


@pytest.mark.parametrize("line", ["cbam", "a >= b", "a > b > c", "> b", "a >", "", 3])
def test_what_is_no_ordering(line):
    with pytest.raises(InputError, match="is not an ordering such as"):
        Expectation.parse(line)


ZERO = dict.fromkeys(range(5), 0.0)
SPREAD = 0.01 * np.array([-2, -1, 0, 1, 2])  # the half-width at 95 % is 0.0196


@pytest.mark.parametrize(
    ("line", "mean", "effect", "verdict", "reason"),
    [
        ("a > b", 0.03, None, "supported", "all of the interval on one side of zero"),
        ("a < b", 0.03, None, "contradicted", "all of the interval on one side of zero"),
        ("a > b", 0.03, 0.06, "supported", "on one side of zero, and smaller than 0.06"),
        ("a > b", 0.01, 0.03, "no difference", "all of the interval within ±0.03"),
        ("a < b", -0.01, 0.03, "no difference", "all of the interval within ±0.03"),
        ("a > b", 0.01, 0.02, "undecided", "the interval spans zero"),
        ("a > b by 0.01", 0.03, None, "supported", "all of the interval on one side of 0.01"),
        ("a > b by 0.02", 0.03, None, "undecided", "the interval spans 0.02"),
        ("a > b by 0.05", 0.03, None, "contradicted", "all of the interval on one side of 0.05"),
        ("a < b by 0.01", -0.03, None, "supported", "all of the interval on one side of 0.01"),
        ("a < b by 0.01", 0.03, None, "contradicted", "all of the interval on one side of 0.01"),
        ("a > b by 0.01", 0.0, 0.03, "no difference", "all of the interval within ±0.03"),
    ],
)
def test_a_verdict_follows_from_the_interval(line, mean, effect, verdict, reason):
    cells = {"a": dict(enumerate(mean + SPREAD)), "b": ZERO}
    (finding,) = judge([Expectation.parse(line)], cells, Plan(effect))
    assert finding.verdict == verdict
    assert finding.reason.endswith(reason)
    beyond = f" beyond {effect}" if verdict == "no difference" else ""
    assert str(finding) == verdict + beyond


@pytest.mark.parametrize("line", ["a > b", "a < b", "a > b by 0.01", "a < b by 0.015"])
@pytest.mark.parametrize("effect", [None, 0.015, 0.03, 0.1])
def test_the_opposite_verdict_is_where_it_is_said_to_be(line, effect):
    def finding(mean):
        cells = {"a": dict(enumerate(mean + SPREAD)), "b": ZERO}
        return judge([Expectation.parse(line)], cells, Plan(effect))[0]

    ranges = needed(finding(0.004))
    assert {"supported", "contradicted"} <= set(ranges)
    for mean in np.linspace(-0.0993, 0.0993, 40):
        inside = {verdict for verdict, (low, high) in ranges.items() if low < mean < high}
        assert inside == {finding(mean).verdict} - {"undecided"}


def test_exact_numbers_may_be_equal_within_the_effect():
    cells = {"a": {None: 1.0}, "b": {None: 1.0}}
    (finding,) = judge([Expectation("a", ">", "b")], cells, Plan(0.5))
    assert finding.verdict == "no difference"
    assert finding.improvement is finding.difference.flip_p is None


def test_verdicts_count_at_the_looks():
    """Seeds 9 and 8 are not planned: they replace those that failed, behind the planned ones."""
    plan = Plan(seeds=(4, 3, 2, 1, 0), looks=(3, 5))
    cells = {"a": {9: 9.0, 8: 8.0, 1: 1.2, 2: 1.1, 3: 1.0}, "b": dict.fromkeys(range(10), 0.0)}

    def judged(*seeds):
        first = {seed: cells["a"][seed] for seed in seeds}
        (finding,) = judge([Expectation("a", ">", "b")], {"a": first, "b": cells["b"]}, plan)
        return list(finding.difference.values), finding.verdict, finding.reason

    assert judged(3, 1)[1:] == (
        "undecided",
        "2 of 3 seeds: verdicts count when the plan is done",
    )
    assert judged(1, 2, 3)[0] == judged(9, 1, 2, 3)[0] == [3, 2, 1]
    assert judged(1, 2, 3)[1] == "supported"
    assert judged(*cells["a"])[0] == [3, 2, 1, 9, 8]
    both = [Expectation("a", ">", "b"), Expectation("c", ">", "b")]
    assert plan.level(both) == pytest.approx(1 - 0.05 / 4)
    assert Plan().judged([7, None]) == [7, None]


@pytest.mark.parametrize(
    ("effect", "seeds", "looks", "line"),
    [
        ("small", [], None, "effect: 'small' is not a number"),
        (True, [], None, "effect: True is not a number"),
        (0, [], None, "effect is 0: it has to be above 0"),
        (float("nan"), [], None, "effect is nan: it has to be above 0"),
        (None, [], [5, 3], "looks: \\[5, 3\\] is not an increasing list"),
        (None, [], [1, 3], "is not an increasing list"),
        (None, [], 5, "looks: 5 is not an increasing list"),
        (None, [0, 1, 2, 3], [2, 3], "the last one is at 3 of 4 seeds: add 4"),
    ],
)
def test_bad_plans(effect, seeds, looks, line):
    with pytest.raises(InputError, match=line):
        Plan.parse(effect, seeds, looks)


@pytest.mark.parametrize("seeds", [2, 5, 9])
def test_the_sign_flip_p_is_that_of_all_flips(seeds):
    values = np.random.default_rng(seeds).normal(0.5, 1, seeds)

    expected = stats.permutation_test(
        (values, np.zeros(seeds)), lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples", n_resamples=np.inf,
    )  # fmt: skip
    assert sign_flip_p(values) == pytest.approx(expected.pvalue)
    assert sign_flip_p([1.0] * seeds) == smallest_flip_p(seeds) == 2 / 2**seeds


def test_more_seeds_are_flipped_at_random(monkeypatch):
    values = np.random.default_rng(1).normal(0.4, 1, 20)
    exact = sign_flip_p(values)
    monkeypatch.setattr(statistics, "ENUMERATED", 10)
    assert sign_flip_p(values) == pytest.approx(exact, rel=0.05)
    assert sign_flip_p(values) == sign_flip_p(values)


def test_the_probability_of_improvement():
    assert probability([1.0, 0.0, -1.0, 2.0])[0] == 2.5 / 4
    for wins in (0, 3, 5):
        interval = stats.binomtest(wins, 5).proportion_ci(0.95, method="exact")
        share, *ends = probability([1.0] * wins + [-1.0] * (5 - wins))
        assert (share, ends) == (wins / 5, pytest.approx([interval.low, interval.high]))
    cells = {"a": {0: 0.0, 1: 0.02, 2: -0.02}, "b": ZERO}
    lines = ("a > b", "a < b", "a > b by 0.01", "a > b by 0.02")
    found = judge([Expectation.parse(line) for line in lines], cells)
    assert [one.improvement[0] for one in found] == [0.5, 0.5, 1 / 3, 1 / 6]


# Simulations of new verdicts, each with the truth where an error is most likely


def verdicts_of(lines, plan, effects, noise, seeds, random, looks=None):
    """Verdicts of `REPETITIONS` studies, by look."""
    expectations = [Expectation.parse(line) for line in lines]
    for _ in range(REPETITIONS):
        table = random.normal(0, noise, (len(effects), seeds)) + random.normal(0, 0.02, seeds)
        found = []
        for count in looks or [seeds]:
            cells = {
                cell: dict(enumerate(effect + row[:count]))
                for (cell, effect), row in zip(effects.items(), table, strict=True)
            }
            found += [one.verdict for one in judge(expectations, cells, plan)]
        yield found


@pytest.mark.parametrize("seeds", [5, 10])
def test_no_difference_is_rarely_said_of_one_as_large_as_the_effect(seeds):
    noise = 0.005 if seeds == 5 else 0.01  # a half-width of about half the effect
    lines, effects = ("b > a", "c < a", "d > a"), {"a": 0.0, "b": 0.02, "c": -0.02, "d": 0.02}
    random = np.random.default_rng(seeds)
    found = list(verdicts_of(lines, Plan(0.02), effects, noise, seeds, random))
    wrong = sum("no difference" in one or "contradicted" in one for one in found)
    assert wrong / REPETITIONS <= 0.05


def test_no_difference_is_found_where_there_is_none():
    random, effects = np.random.default_rng(0), dict.fromkeys("abc", 0.0)
    found = list(verdicts_of(("b > a", "b > c"), Plan(0.02), effects, 0.007, 10, random))
    assert sum("supported" in one or "contradicted" in one for one in found) / REPETITIONS <= ALARMS
    assert sum(one == ["no difference"] * 2 for one in found) / REPETITIONS >= 0.9


def test_a_difference_as_large_as_the_margin_is_rarely_on_a_side_of_it():
    lines, effects = ("b > a by 0.01", "a < c by 0.01", "d < a by 0.02"), dict.fromkeys("abcd", 0.0)
    effects |= {"b": 0.01, "c": 0.01, "d": -0.02}
    random = np.random.default_rng(0)
    found = list(verdicts_of(lines, Plan(), effects, 0.01, 5, random))
    assert sum(one != ["undecided"] * 3 for one in found) / REPETITIONS <= ALARMS


def test_looks_keep_the_level_that_looking_on_would_lose():
    random, effects = np.random.default_rng(1), dict.fromkeys("ab", 0.0)
    alarms = []
    for plan, looks in ((Plan(looks=(5, 10)), (5, 7, 10)), (Plan(), (3, 5, 7, 9, 10))):
        found = verdicts_of(("b > a",), plan, effects, 0.01, 10, random, looks)
        alarms.append(sum(set(one) != {"undecided"} for one in found) / REPETITIONS)
    planned, unplanned = alarms
    assert planned <= ALARMS
    assert unplanned > 0.1


def test_the_sign_flip_p_is_uniform_whatever_the_distribution():
    random = np.random.default_rng(0)
    draws = random.standard_t(1.5, (REPETITIONS, 7))  # without a variance
    ps = np.array([sign_flip_p(values) for values in draws])
    for share in (1 / 64, 4 / 64, 16 / 64, 32 / 64, 48 / 64):
        sd = (share * (1 - share) / REPETITIONS) ** 0.5
        assert abs((ps <= share).mean() - share) < 3 * sd


@pytest.mark.parametrize("truth", [0.5, 0.75, 0.95])
def test_the_interval_of_the_probability_covers_it(truth):
    chances = stats.binom(10, truth).pmf(range(11))
    intervals = [probability([1.0] * wins + [-1.0] * (10 - wins))[1:] for wins in range(11)]
    covered = [low <= truth <= high for low, high in intervals]
    assert chances @ covered >= 0.95


@pytest.mark.parametrize("level", [0.95, 0.98])
def test_the_interval_over_data_sets_covers_the_truth(level):
    """Data sets of unequal noise, effects and numbers of seeds."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(REPETITIONS):
        samples = [
            random.normal(effect, noise, count)
            for effect, noise, count in ((0.0, 0.01, 5), (0.03, 0.03, 8), (0.0, 0.01, 3))
        ]
        low, high = stratified_difference(samples, level).interval
        covered += low <= 0.01 <= high
    assert level - 0.02 <= covered / REPETITIONS <= level + 0.02


@pytest.mark.parametrize(("effect", "level"), [(0.012, 0.95), (0.02, 0.99)])
def test_the_seeds_for_80_percent_power_have_it(effect, level):
    power = Power(Spread(0.014, ""), 5, level, effect)
    draws = np.random.default_rng(0).normal(effect, 0.014, (4 * REPETITIONS, power.needed_to_see))
    error = draws.std(1, ddof=1) / power.needed_to_see**0.5
    seen = draws.mean(1) > stats.t(power.needed_to_see - 1).ppf((1 + level) / 2) * error
    assert 0.78 <= seen.mean() <= 0.9  # the fewest seeds: one less would be below 80 %
