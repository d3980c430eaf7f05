"""The statistics of comparison. Means and intervals over seeds, paired differences, average ranks, ties.

What is replicated is the pretraining seed. Intervals are Student's t over seeds; a paired difference compares the
same seeds on the same data, which removes the spread that both sides share. Over several datasets the datasets are
held fixed: each seed gives one difference, its mean over the datasets, so that scores of one encoder on several
datasets are not counted as if they were independent. One seed gives no interval, and that is said.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

CONFIDENCE = 0.95
Scores = Mapping[int, float]  # value by seed
Values = np.ndarray[tuple[int], np.dtype[np.float64]]


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
    kept = np.array([value for value in values if not math.isnan(value)], dtype=float)
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


def average_ranks(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Each name's rank averaged over datasets (`scores[name][dataset]`, higher is better, 1 is best).

    Equal scores share the mean of their ranks. A name that lacks a dataset of the others is not ranked (NaN):
    an average over other datasets would not be comparable.
    """
    datasets = sorted({dataset for row in scores.values() for dataset in row})
    table = {name: [row.get(dataset, math.nan) for dataset in datasets] for name, row in scores.items()}
    complete = [name for name, row in table.items() if row and not any(math.isnan(value) for value in row)]
    ranks = dict.fromkeys(scores, math.nan)
    if complete:
        each = stats.rankdata(-np.array([table[name] for name in complete]), axis=0)
        ranks.update(zip(complete, each.mean(axis=1).tolist(), strict=True))
    return ranks


def ties(scores: Mapping[str, Scores]) -> dict[str, bool | None]:
    """For each name, whether it cannot be separated from the name with the best mean (`scores[name][seed]`).

    True: its paired interval to the best includes 0 (the best ties with itself). False: it excludes 0. None: it
    cannot be told (no two common seeds, or no spread). Names without a value are left out.
    """
    means = {name: mean_over_seeds(row.values()).mean for name, row in scores.items()}
    known = [name for name, mean in means.items() if not math.isnan(mean)]
    if not known:
        return {}
    best = max(known, key=lambda name: means[name])
    verdicts: dict[str, bool | None] = {}
    for name in known:
        separated = paired(scores[best], scores[name]).separated
        verdicts[name] = True if name == best else None if separated is None else not separated
    return verdicts


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order; NaN stays NaN and is not counted."""
    order = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = highest
    return adjusted


def _difference(values: Values, missing: int, datasets: int, confidence: float) -> Difference:
    """The estimate from one difference per seed."""
    count = int(values.size)
    mean = float(values.mean()) if count else math.nan
    low = high = p_value = math.nan
    if count > 1 and not values.any():
        low, high, p_value = 0.0, 0.0, 1.0
    elif count > 1 and np.ptp(values) > 1e-12 * abs(mean):
        # Not for equal differences: scores are counts over a few hundred samples, so they come about by chance,
        # and an interval of width 0 with p = 0 would claim a certainty that is not there.
        low, high = _t_interval(values, confidence)
        p_value = float(stats.ttest_1samp(values, 0.0).pvalue)
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
