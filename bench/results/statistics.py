"""The statistics of comparison: means and intervals over seeds, paired differences, correction for several of them.

What is replicated is the pretraining seed. Intervals are Student's t over seeds; a paired difference compares the
same seeds on the same data, which removes the spread that both sides share. Over several datasets the datasets are
held fixed: each seed gives one difference, its mean over the datasets, so that scores of one encoder on several
datasets are not counted as if they were independent. One seed gives no interval, and that is said. (The interval of
one run, over its test samples, is drawn where the run is scored: `bench.evaluation.metrics.bootstrap`.)
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

CONFIDENCE = 0.95
Scores = Mapping[int, float]  # value by seed
Values = np.ndarray[tuple[int], np.dtype[np.float64]]
Table = NDArray[np.float64]
EQUAL = 1e-12  # differences whose spread is less than this part of their mean are equal but for rounding


@dataclass(frozen=True)
class Mean:
    """A mean over seeds; `low` and `high` are NaN where there is no interval."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def label(self) -> str:
        """What the interval is over."""
        return _label(self.seeds)


@dataclass(frozen=True)
class Difference:
    """A mean paired difference over seeds.

    `low`, `high` and `p_value` are NaN where the seeds give no interval; `missing` counts the seeds that only one
    side has, or that lack a dataset; `datasets` is the number of datasets in the mean.
    """

    mean: float
    low: float
    high: float
    p_value: float
    seeds: int
    missing: int = 0
    datasets: int = 1

    @property
    def separated(self) -> bool | None:
        """Whether the interval excludes 0; None where there is no interval."""
        return None if math.isnan(self.low) else bool(self.low > 0 or self.high < 0)

    @property
    def label(self) -> str:
        """What the interval is over, or why there is none."""
        if self.seeds > 1 and math.isnan(self.low):
            return f"{self.seeds} equal differences: no spread to judge by"
        return _label(self.seeds)


def mean_over_seeds(values: Iterable[float], confidence: float = CONFIDENCE) -> Mean:
    """Mean and t interval of `values`; NaN values are left out. Equal values give an interval of width 0."""
    # Sorted, so that equal scores give equal means to the last bit, whatever order the ledger has them in.
    kept = np.sort(np.array([value for value in values if not math.isnan(value)], dtype=float))
    if kept.size == 0:
        return Mean(math.nan, math.nan, math.nan, 0)
    low, high = _t_interval(kept, confidence)
    return Mean(float(kept.mean()), low, high, int(kept.size))


def paired(a: Scores, b: Scores, confidence: float = CONFIDENCE) -> Difference:
    """The paired difference a - b over the seeds that both have, with Student's paired t test."""
    return paired_over_datasets({"": a}, {"": b}, confidence)


def paired_over_datasets(
    a: Mapping[str, Scores], b: Mapping[str, Scores], confidence: float = CONFIDENCE
) -> Difference:
    """The paired difference a - b averaged over the datasets that both have, by dataset then seed.

    Only seeds complete on all those datasets count, so every seed averages over the same datasets.
    """
    datasets = [dataset for dataset in a if dataset in b]
    seeds = {seed for dataset in datasets for seed in (*a[dataset], *b[dataset])}
    differences = []
    for seed in sorted(seeds):
        gaps = [a[name].get(seed, math.nan) - b[name].get(seed, math.nan) for name in datasets]
        if not any(math.isnan(gap) for gap in gaps):
            differences.append(math.fsum(gaps) / len(gaps))
    missing = len(seeds) - len(differences)
    return _difference(np.array(differences, dtype=float), missing, len(datasets), confidence)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjusted p-values, in the given order; NaN stays NaN and is not counted."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)  # NaN last
    order = order[: int(np.isfinite(p).sum())]
    steps = np.arange(order.size, 0, -1) * p[order]
    adjusted = np.full(p.shape, math.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in adjusted]


def pairwise_p(scores: Table) -> Table:
    """The p-value of `paired` for every pair of rows of `scores` `[K,S]` (NaN where a seed is missing): `[K,K]`.

    Symmetric, 1 on the diagonal; NaN where two rows share fewer than two seeds, or all their differences are equal.
    """
    gaps = scores[:, None, :] - scores[None, :, :]
    known = ~np.isnan(gaps)
    seeds = known.sum(-1)
    gaps = np.where(known, gaps, 0.0)
    mean = gaps.sum(-1) / np.maximum(seeds, 1)
    square = (np.where(known, gaps - mean[..., None], 0.0) ** 2).sum(-1)
    error = np.sqrt(square / np.maximum(seeds - 1, 1) / np.maximum(seeds, 1))
    spread = np.where(known, np.abs(gaps - mean[..., None]), 0.0).max(-1, initial=0.0)
    testable = (seeds > 1) & (spread > EQUAL * np.abs(mean))
    t = np.divide(mean, error, out=np.zeros_like(mean), where=testable)
    p = np.where(testable, 2 * special.stdtr(np.maximum(seeds - 1, 1), -np.abs(t)), math.nan)
    same = (seeds > 1) & ~gaps.any(-1)
    p[same | np.eye(len(scores), dtype=bool)] = 1.0
    return p


def holm_pairs(p_values: Table) -> Table:
    """Holm's adjustment over all pairs of a symmetric `[K,K]` table of p-values; the diagonal stays 1."""
    upper = np.triu_indices(len(p_values), 1)
    adjusted = np.ones_like(p_values)
    adjusted[upper] = holm(p_values[upper].tolist())
    return np.triu(adjusted) + np.triu(adjusted, 1).T


def needed_reach(seeds: int, comparisons: int = 1) -> float:
    """How many standard deviations of the paired differences a mean difference must exceed to be separated.

    By Student's t over `seeds` at 5 % shared by `comparisons` (Holm's first step). Infinite for one seed.
    """
    if seeds < 2:
        return math.inf
    return float(special.stdtrit(seeds - 1, 1 - (1 - CONFIDENCE) / 2 / comparisons)) / math.sqrt(seeds)


def _difference(values: Values, missing: int, datasets: int, confidence: float) -> Difference:
    """The estimate from one difference per seed."""
    count = int(values.size)
    mean = float(values.mean()) if count else math.nan
    low = high = p_value = math.nan
    if count > 1 and not values.any():
        low, high, p_value = 0.0, 0.0, 1.0
    elif count > 1 and np.ptp(values) > EQUAL * abs(mean):
        # Not for equal differences: scores are counts over a few hundred samples, so they come about by chance,
        # and an interval of width 0 with p = 0 would claim a certainty that is not there.
        low, high = _t_interval(values, confidence)
        t = mean / (float(values.std(ddof=1)) / math.sqrt(count))
        p_value = 2 * float(special.stdtr(count - 1, -abs(t)))  # stats.ttest_1samp, which takes 50 times as long
    return Difference(mean, low, high, p_value, count, missing, datasets)


def _t_interval(values: Values, confidence: float) -> tuple[float, float]:
    """Student's t interval of the mean; NaN for fewer than two values."""
    if values.size < 2:
        return math.nan, math.nan
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(values.size)
    reach = error * float(special.stdtrit(values.size - 1, (1 + confidence) / 2))
    return mean - reach, mean + reach


def _label(seeds: int) -> str:
    return "no seeds" if seeds == 0 else "one seed" if seeds == 1 else f"t over {seeds} seeds"
