"""The statistics of comparison, against hand-worked values and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from bench.evaluation.metrics import bootstrap
from bench.results.ranking import average_ranks, critical_difference, friedman, letters, means_of, rank_ranges
from bench.results.statistics import (
    holm,
    holm_pairs,
    mean_over_seeds,
    needed_reach,
    paired,
    paired_over_datasets,
    pairwise_p,
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


def test_the_mean_does_not_depend_on_the_order():
    values = [0.1, 0.7, 0.3, 0.2, 0.6]
    assert mean_over_seeds(values) == mean_over_seeds(values[::-1])
    ranks = average_ranks({"a": {"x": 0.1 + 0.2}, "b": {"x": 0.3}})
    assert ranks == {"a": 1.5, "b": 1.5}


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


def test_ranks_and_critical_differences_are_those_of_scipy():
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 4, (7, 5)) / 10
    ranks = stats.rankdata(-scores, axis=0).mean(axis=1)
    table = {str(row): {str(column): value for column, value in enumerate(scores[row])} for row in range(7)}
    assert list(average_ranks(table).values()) == ranks.tolist()
    for names in (2, 3, 10, 30, 31):
        q = stats.studentized_range.isf(0.05, names, np.inf)
        assert critical_difference(names, 6) == pytest.approx(q * np.sqrt(names * (names + 1) / 72), rel=1e-9)


def test_average_ranks_leave_out_the_incomplete():
    ranks = average_ranks({"a": {"x": 0.9, "y": 0.9}, "b": {"x": 0.8, "y": 0.95}, "part": {"x": 1.0}})
    assert (ranks["a"], ranks["b"]) == (1.5, 1.5)
    assert math.isnan(ranks["part"])
    assert average_ranks({}) == {}
    assert math.isnan(average_ranks({"a": {"x": math.nan}})["a"])


def test_holm_by_hand():
    # Holm (1979): 0.01 * 4, 0.02 * 3, then never less than the step before.
    assert holm([0.02, 0.01, 0.05, 0.03]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    adjusted = holm([math.nan, 0.04])
    assert math.isnan(adjusted[0])
    assert adjusted[1] == 0.04


# Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7 (2006), table 6: the ranks of four
# variants of C4.5 on 14 datasets. Ranks stand for scores here, as the printed scores are rounded.
C45 = {
    "C4.5": [4, 1, 4, 4, 4, 1, 3, 2.5, 4, 2.5, 4, 3, 4, 3],
    "C4.5+m": [3, 2, 1, 1, 2, 2.5, 2, 2.5, 3, 2.5, 2.5, 2, 1, 1],
    "C4.5+cf": [2, 3, 2, 3, 3, 4, 4, 4, 2, 2.5, 1, 4, 2, 4],
    "C4.5+m+cf": [1, 4, 3, 2, 1, 2.5, 1, 1, 1, 2.5, 2.5, 1, 3, 2],
}


def demsar() -> dict[str, dict[str, float]]:
    return {name: {str(place): -rank for place, rank in enumerate(ranks)} for name, ranks in C45.items()}


def test_friedman_and_iman_davenport_on_demsars_example():
    test = friedman(demsar())
    assert test is not None
    assert list(test.ranks) == ["C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"]
    assert list(test.ranks.values()) == pytest.approx([1.964, 2.000, 2.893, 3.143], abs=5e-4)
    assert test.chi2 == pytest.approx(9.28, abs=5e-3)
    assert test.f == pytest.approx(3.69, abs=5e-3)
    assert test.freedom == (3, 39)
    assert stats.f.isf(0.05, 3, 39) == pytest.approx(2.85, abs=5e-3)  # the critical value that he compares with
    assert test.p_value == pytest.approx(stats.f.sf(3.69, 3, 39), rel=0.02)
    assert test.caveat == ""


def test_nemenyis_critical_difference_on_demsars_example():
    # Section 3.2.2: 1.25 at 5 %, which separates nothing, and 1.12 at 10 %, which gives two groups.
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=5e-3)
    assert critical_difference(4, 14, 0.10) == pytest.approx(1.12, abs=5e-3)
    strict, loose = friedman(demsar()), friedman(demsar(), alpha=0.10)
    assert strict is not None
    assert loose is not None
    assert strict.cliques == (("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"),)
    assert loose.cliques == (("C4.5+m+cf", "C4.5+m", "C4.5+cf"), ("C4.5+cf", "C4.5"))


@pytest.mark.parametrize(
    ("alpha", "values"),
    # The same article's table 5a: critical values of the two-tailed Nemenyi test for 2 to 10 classifiers.
    [
        (0.05, [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]),
        (0.10, [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920]),
    ],
)
def test_nemenyis_critical_values(alpha: float, values: list[float]):
    for k, q in enumerate(values, start=2):
        assert critical_difference(k, 6, alpha) == pytest.approx(q * math.sqrt(k * (k + 1) / 36), abs=2e-3)


def test_holm_on_demsars_example():
    # Section 3.2.2: C4.5 against the others: z = 2.416, 2.342, 0.512, of which Holm rejects the first two at 5 %.
    error = math.sqrt(4 * 5 / (6 * 14))
    ranks = average_ranks(demsar())
    z = [(ranks["C4.5"] - ranks[name]) / error for name in ("C4.5+m+cf", "C4.5+m", "C4.5+cf")]
    p = [2 * stats.norm.sf(value) for value in z]
    assert p == pytest.approx([0.016, 0.019, 0.607], abs=2e-3)
    assert holm(p) == pytest.approx([3 * p[0], 3 * p[0], p[2]])
    assert [value < 0.05 for value in holm(p)] == [True, True, False]


def test_friedman_without_equal_scores_agrees_with_scipy():
    scores = np.random.default_rng(3).normal(size=(5, 12))
    test = friedman({str(name): dict(enumerate_text(row)) for name, row in enumerate(scores)})
    expected = stats.friedmanchisquare(*scores)
    assert test is not None
    assert test.chi2 == pytest.approx(expected.statistic, rel=1e-12)


def enumerate_text(row: np.ndarray) -> list[tuple[str, float]]:
    return [(str(place), float(value)) for place, value in enumerate(row)]


def test_three_datasets_give_friedman_no_power():
    # All three datasets rank the four alike, and still Nemenyi parts the first from the last only.
    scores = {
        name: {"x": value, "y": value, "z": value} for name, value in zip("abcd", (0.9, 0.8, 0.7, 0.6), strict=True)
    }
    test = friedman(scores)
    assert test is not None
    assert test.critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / 18), abs=2e-3)
    assert test.cliques == (("a", "b", "c"), ("b", "c", "d"))
    assert test.p_value == pytest.approx(1 / 24**2)  # of (4!)^2 equally likely outcomes; the F distribution says 0
    assert test.powerless
    assert "3 datasets give Friedman's test over 4 configurations no power" in test.caveat
    assert "differ by 2.71 of at most 3" in test.caveat
    middle = friedman({name: {str(each): value for each in range(8)} for name, value in (("a", 0.9), ("b", 0.8))})
    assert middle is not None
    assert (middle.powerless, middle.caveat) == (False, "8 datasets are few for this test, which wants more than 10.")


def test_friedman_needs_two_of_both():
    assert friedman({}) is None
    assert friedman({"a": {"x": 1.0, "y": 0.5}}) is None
    assert friedman({"a": {"x": 1.0}, "b": {"x": 0.5}}) is None
    test = friedman({"a": {"x": 1.0, "y": 0.5}, "b": {"x": 0.5, "y": 0.5}, "part": {"x": 0.1}})
    assert test is not None
    assert test.ranks == {"a": 1.25, "b": 1.75}


def test_pairwise_p_values_are_those_of_the_paired_test():
    scores = np.random.default_rng(4).normal(size=(4, 6))
    scores[2, 0] = scores[3, 1:] = math.nan  # a missing seed; a single seed
    scores = np.vstack([scores, scores[0], scores[0] + 0.25])  # the same again; equal differences
    table = pairwise_p(scores)
    rows = [dict(enumerate(row)) for row in scores]
    expected = np.array([[paired(a, b).p_value for b in rows] for a in rows])
    np.fill_diagonal(expected, 1.0)
    np.testing.assert_allclose(table, expected, rtol=1e-9)
    assert math.isnan(table[0, 3])
    assert table[0, 4] == 1.0
    assert math.isnan(table[0, 5])


def test_holm_over_all_pairs():
    p = np.array([[1.0, 0.01, 0.03], [0.01, 1.0, math.nan], [0.03, math.nan, 1.0]])
    adjusted = holm_pairs(p)
    np.testing.assert_allclose(adjusted, [[1, 0.02, 0.03], [0.02, 1, math.nan], [0.03, math.nan, 1]])


def test_compact_letters():
    # Piepho (2004): b separates from d and a from c and d gives the groups ab, bc, cd.
    separated = np.zeros((4, 4), dtype=bool)
    for i, j in ((0, 2), (0, 3), (1, 3)):
        separated[i, j] = separated[j, i] = True
    assert letters(separated) == ["a", "ab", "bc", "c"]
    assert letters(np.zeros((3, 3), dtype=bool)) == ["a", "a", "a"]
    assert letters(~np.eye(3, dtype=bool)) == ["a", "b", "c"]
    assert letters(np.zeros((0, 0), dtype=bool)) == []
    assert set(letters(np.zeros((41, 41), dtype=bool))) == {""}


def test_compact_letters_say_exactly_what_is_separated():
    random = np.random.default_rng(5)
    for _ in range(30):
        upper = np.triu(random.random((9, 9)) < 0.4, 1)
        separated = upper | upper.T
        named = letters(separated)
        shared = np.array([[bool(set(a) & set(b)) for b in named] for a in named])
        assert (shared == ~separated).all()


def test_rank_ranges():
    better = np.zeros((4, 4), dtype=bool)
    better[0, 2] = better[0, 3] = better[1, 3] = True
    assert rank_ranges(better) == [(1, 2), (1, 3), (2, 4), (3, 4)]


def test_means_leave_out_missing_seeds():
    found = means_of(np.array([[1.0, math.nan, 3.0], [math.nan] * 3]))
    assert found[0] == 2.0
    assert math.isnan(found[1])


def test_the_difference_that_few_seeds_need():
    # t(0.975, 2) = 4.302653; Bonferroni's first step over four: t(0.99375, 2) = 8.8602 (both over sqrt(3)).
    assert needed_reach(3) == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert needed_reach(3, 4) == pytest.approx(stats.t.ppf(1 - 0.05 / 8, 2) / math.sqrt(3))
    assert needed_reach(1) == math.inf


def test_the_interval_of_one_run_is_the_percentile_bootstrap_over_its_samples():
    # Efron and Tibshirani (1993), chapter 13: for a proportion the resampled count is binomial, so the percentiles
    # are the binomial's. Their aspirin study (page 3): 119 of 11037.
    right, samples = 11037 - 119, 11037
    matrix = torch.tensor([[right, samples - right], [0, 0]])
    low, high = bootstrap(matrix, None, seed=0, resamples=20_000)["top1"]
    exact = stats.binom.ppf([0.025, 0.975], samples, right / samples) / samples
    assert (low, high) == pytest.approx(tuple(exact), abs=2e-4)
    other = stats.bootstrap(
        (np.repeat([1.0, 0.0], [40, 10]),), np.mean, method="percentile", n_resamples=5000, rng=0
    ).confidence_interval
    ours = bootstrap(torch.tensor([[40, 10], [0, 0]]), None, seed=0, resamples=20_000)["top1"]
    assert ours == pytest.approx((other.low, other.high), abs=0.021)  # one sample of 50 is 0.02
