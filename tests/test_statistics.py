"""The statistics of comparison, against hand-worked values and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from bench.results.statistics import (
    average_ranks,
    holm,
    mean_over_seeds,
    paired,
    paired_over_datasets,
    ties,
)


def test_mean_interval_by_hand():
    # 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.302653
    result = mean_over_seeds([1.0, 2.0, 3.0])
    assert result.mean == 2.0
    assert result.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert result.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)
    assert (result.seeds, result.label) == (3, "t over 3 seeds")


def test_mean_interval_agrees_with_scipy():
    values = np.random.default_rng(0).normal(0.7, 0.02, size=7)
    result = mean_over_seeds(values.tolist())
    expected = stats.t.interval(0.95, 6, loc=values.mean(), scale=stats.sem(values))
    assert (result.low, result.high) == pytest.approx(expected, rel=1e-12)
    wider = mean_over_seeds(values.tolist(), confidence=0.99)
    assert wider.low < result.low < result.high < wider.high


def test_mean_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = [
        result.low <= 0.5 <= result.high
        for result in (mean_over_seeds(rng.normal(0.5, 0.1, size=4).tolist()) for _ in range(2000))
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_mean_of_one_seed_has_no_interval():
    result = mean_over_seeds([0.7])
    assert result.mean == 0.7
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    assert result.label == "one seed"


def test_mean_leaves_out_nan_and_counts_the_rest():
    assert mean_over_seeds([0.5, math.nan, 0.7]).mean == pytest.approx(0.6)
    assert mean_over_seeds([0.5, math.nan, 0.7]).seeds == 2
    nothing = mean_over_seeds([math.nan])
    assert math.isnan(nothing.mean)
    assert (nothing.seeds, nothing.label) == (0, "no seeds")


def test_mean_of_equal_values_has_an_interval_of_width_zero():
    result = mean_over_seeds([0.7, 0.7, 0.7])
    assert (result.low, result.high) == pytest.approx((0.7, 0.7), abs=1e-12)


def test_paired_difference_on_the_sleep_data():
    # "Student" (1908), the worked example of the paired test: extra hours of sleep under two drugs, ten patients.
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    result = paired(dict(enumerate(second)), dict(enumerate(first)))
    assert result.mean == pytest.approx(1.58)
    assert result.p_value == pytest.approx(0.002833, abs=1e-6)
    assert (result.low, result.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert result.separated is True
    assert result.missing == 0


def test_paired_agrees_with_scipy_and_changes_sign():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.70, 0.05, 5), rng.normal(0.69, 0.05, 5)
    result = paired(dict(enumerate(a)), dict(enumerate(b)))
    scipy_result = stats.ttest_rel(a, b)
    interval = scipy_result.confidence_interval(0.95)
    assert result.p_value == pytest.approx(scipy_result.pvalue, rel=1e-12)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    other = paired(dict(enumerate(b)), dict(enumerate(a)))
    assert (other.mean, other.low, other.high) == pytest.approx((-result.mean, -result.high, -result.low))


def test_paired_removes_the_spread_that_both_sides_share():
    a = {0: 0.50, 1: 0.60, 2: 0.70}
    b = {0: 0.48, 1: 0.581, 2: 0.679}
    assert paired(a, b).separated is True
    assert stats.ttest_ind(list(a.values()), list(b.values())).pvalue > 0.5


def test_paired_uses_common_seeds_and_counts_the_missing():
    result = paired({0: 0.6, 1: 0.7, 2: 0.9, 4: math.nan}, {0: 0.5, 1: 0.5, 3: 0.1, 4: 0.2})
    assert result.mean == pytest.approx(0.15)
    assert (result.seeds, result.missing) == (2, 3)


def test_paired_of_one_seed_claims_nothing():
    result = paired({0: 0.7}, {0: 0.6})
    assert result.mean == pytest.approx(0.1)
    assert result.separated is None
    assert math.isnan(result.p_value)
    assert result.label == "one seed"
    assert paired({0: 0.7}, {0: 0.7}).separated is None


def test_paired_without_common_seeds():
    result = paired({0: 0.7}, {1: 0.6})
    assert math.isnan(result.mean)
    assert (result.seeds, result.missing, result.separated, result.label) == (0, 2, None, "no seeds")


def test_equal_differences_are_no_certainty():
    result = paired({0: 0.50, 1: 0.75, 2: 0.625}, {0: 0.25, 1: 0.50, 2: 0.375})
    assert result.mean == 0.25
    assert result.separated is None
    assert math.isnan(result.p_value)
    assert result.label == "3 equal differences: no spread to judge by"


def test_equal_differences_are_found_despite_rounding():
    a = {seed: 0.1 * seed + 0.3 for seed in range(4)}
    b = {seed: 0.1 * seed for seed in range(4)}
    assert paired(a, b).separated is None


def test_identical_scores_are_a_tie():
    result = paired({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6})
    assert (result.mean, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert result.separated is False


def test_over_datasets_is_the_mean_of_the_differences_per_dataset():
    a = {"x": {0: 0.8, 1: 0.7}, "y": {0: 0.5, 1: 0.6}}
    b = {"x": {0: 0.7, 1: 0.7}, "y": {0: 0.5, 1: 0.3}}
    result = paired_over_datasets(a, b)
    per_dataset = [paired(a[name], b[name]).mean for name in "xy"]
    assert result.mean == pytest.approx(np.mean(per_dataset))
    assert (result.seeds, result.datasets) == (2, 2)
    # One number per seed (0.05 and 0.15), not one per seed and dataset.
    expected = stats.ttest_1samp([0.05, 0.15], 0.0)
    assert result.p_value == pytest.approx(expected.pvalue)


def test_over_datasets_drops_seeds_that_lack_a_dataset():
    a = {"x": {0: 0.8, 1: 0.7, 2: 0.9}, "y": {0: 0.5, 1: 0.6}, "only a": {0: 1.0}}
    b = {"x": {0: 0.7, 1: 0.6, 2: 0.1}, "y": {0: 0.4, 1: 0.3}}
    result = paired_over_datasets(a, b)
    assert (result.seeds, result.missing, result.datasets) == (2, 1, 2)
    assert result.mean == pytest.approx((0.1 + 0.2) / 2)
    nothing = paired_over_datasets({"x": {0: 1.0}}, {"y": {0: 1.0}})
    assert (nothing.seeds, nothing.datasets) == (0, 0)


def test_average_ranks_by_hand():
    # Demsar (2006): tied scores get the mean of their ranks.
    ranks = average_ranks(
        {
            "a": {"x": 0.9, "y": 0.5, "z": 0.7},
            "b": {"x": 0.9, "y": 0.6, "z": 0.6},
            "c": {"x": 0.1, "y": 0.5, "z": 0.5},
        }
    )
    assert ranks == pytest.approx({"a": (1.5 + 2.5 + 1) / 3, "b": (1.5 + 1 + 2) / 3, "c": (3 + 2.5 + 3) / 3})


def test_average_ranks_leave_out_the_incomplete():
    ranks = average_ranks({"a": {"x": 0.9, "y": 0.9}, "b": {"x": 0.8, "y": 0.95}, "part": {"x": 1.0}})
    assert (ranks["a"], ranks["b"]) == (1.5, 1.5)
    assert math.isnan(ranks["part"])
    assert average_ranks({}) == {}
    assert math.isnan(average_ranks({"a": {"x": math.nan}})["a"])


def test_ties_are_what_the_data_cannot_separate():
    verdicts = ties(
        {
            "best": {0: 0.80, 1: 0.82, 2: 0.84},
            "close": {0: 0.81, 1: 0.80, 2: 0.83},
            "far": {0: 0.50, 1: 0.53, 2: 0.52},
            "once": {0: 0.70},
            "never": {},
        }
    )
    assert verdicts == {"best": True, "close": True, "far": False, "once": None}
    assert ties({}) == {}


def test_holm_by_hand():
    # Holm (1979): 0.01 * 4, 0.02 * 3, then never less than the step before.
    assert holm([0.02, 0.01, 0.05, 0.03]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    adjusted = holm([math.nan, 0.04])
    assert math.isnan(adjusted[0])
    assert adjusted[1] == 0.04
