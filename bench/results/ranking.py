"""Ranks over datasets and what they are worth: Friedman's test, critical differences, tie groups.

Follows Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7 (2006), section 3.2.2. Datasets
are what is replicated here, so a handful of them shows nothing: `RankTest.caveat` says so.
"""

import math
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bench.results.statistics import Table

ALPHA = 0.05
POWERLESS, FEW = 5, 10  # datasets: below the first no power, up to the second the approximation is poor (Demsar)
LETTERED = 40  # beyond so many configurations letters would not help, and finding them could take long
EXACT = 12  # decimals: scores that differ by less are equal but for rounding
_RANGE_05 = (  # studentized range exceeded with 5 %, of 2 and more names: importing scipy.stats takes half a second
    2.771807648699355,
    3.314493155398122,
    3.6331595749026278,
    3.857655510378623,
    4.030092053180576,
    4.169554155006547,
    4.286309409349043,
    4.38650911549537,
    4.474124221725907,
    4.551863584065974,
    4.621655471868518,
    4.684919847313499,
    4.7427317076846975,
    4.795923860431186,
    4.845154183957343,
    4.890951125576789,
    4.933745358126922,
    4.973892348748306,
    5.0116887941184425,
    5.0473848150087655,
    5.081193155799909,
    5.1132962282719765,
    5.143851577247147,
    5.17299617312959,
    5.200849820280358,
    5.227517890554401,
    5.25309353580552,
    5.27765949383823,
    5.30128957403117,
)
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class RankTest:
    """Friedman's test over datasets, with what a critical-difference diagram draws.

    `ranks`: average rank by name, the best first. `chi2` is Friedman's statistic, `f` Iman and Davenport's with
    (k - 1, (k - 1)(N - 1)) degrees of freedom, `p_value` that of `f`. `critical_difference` is Nemenyi's: average ranks
    that differ by less are not separated. `cliques`: the maximal runs of such names, the bars of the diagram.
    """

    ranks: dict[str, float]
    datasets: int
    chi2: float
    f: float
    p_value: float
    critical_difference: float
    cliques: tuple[tuple[str, ...], ...]

    @property
    def freedom(self) -> tuple[int, int]:
        """The degrees of freedom of `f`."""
        return len(self.ranks) - 1, (len(self.ranks) - 1) * (self.datasets - 1)

    @property
    def powerless(self) -> bool:
        """Whether so few datasets cannot show a difference, however they rank."""
        return self.datasets < POWERLESS

    @property
    def caveat(self) -> str:
        """What these few datasets cannot show; empty where there are enough."""
        if self.powerless:
            most = len(self.ranks) - 1
            return (
                f"{self.datasets} datasets give Friedman's test over {len(self.ranks)} configurations no power: "
                f"average ranks would have to differ by {self.critical_difference:.2f} of at most {most} (Nemenyi). "
                "They describe, and show no difference."
            )
        return f"{self.datasets} datasets are few for this test, which wants more than {FEW}." if self.few else ""

    @property
    def few(self) -> bool:
        """Whether the distribution of `f` is a poor approximation."""
        return self.datasets <= FEW


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
        each = _ranked(-np.round([table[name] for name in complete], EXACT))
        ranks.update(zip(complete, each.mean(axis=1).tolist(), strict=True))
    return ranks


def friedman(scores: Mapping[str, Mapping[str, float]], alpha: float = ALPHA) -> RankTest | None:
    """Test whether the names with all datasets rank alike; None below two names or two datasets.

    Not corrected for equal scores, as in Demsar's worked example, which errs on the side of no difference.
    `p_value` is never below that of full agreement of all datasets, k!^(1 - N), which the F distribution ignores.
    """
    known = {name: rank for name, rank in average_ranks(scores).items() if not math.isnan(rank)}
    datasets = len({dataset for row in scores.values() for dataset in row})
    k = len(known)
    if k < 2 or datasets < 2:
        return None
    ranks = dict(sorted(known.items(), key=lambda item: (item[1], item[0])))
    squares = math.fsum(rank**2 for rank in ranks.values())
    chi2 = max(0.0, 12 * datasets / (k * (k + 1)) * (squares - k * (k + 1) ** 2 / 4))
    rest = datasets * (k - 1) - chi2
    f = (datasets - 1) * chi2 / rest if rest > 1e-9 else math.inf
    agreement = math.exp((1 - datasets) * math.lgamma(k + 1))
    p_value = max(float(special.fdtrc(k - 1, (k - 1) * (datasets - 1), f)), agreement)
    reach = critical_difference(k, datasets, alpha)
    return RankTest(ranks, datasets, chi2, f, p_value, reach, _cliques(ranks, reach))


@lru_cache
def critical_difference(names: int, datasets: int, alpha: float = ALPHA) -> float:
    """Nemenyi's critical difference of average ranks, from the studentized range."""
    q = _studentized_range(names, alpha) / math.sqrt(2)
    return q * math.sqrt(names * (names + 1) / (6 * datasets))


def letters(separated: Flags) -> list[str]:
    """A compact letter display: rows that share a letter are not separated (`[K,K]`, symmetric, best first).

    By Piepho's insert-and-absorb (2004). More than `LETTERED` rows get no letters.
    """
    count = len(separated)
    groups = {frozenset(range(count))}
    pairs = zip(*np.nonzero(np.triu(separated)), strict=True) if count <= LETTERED else ()
    for i, j in pairs:
        split: set[frozenset[int]] = set()
        for part in groups:
            split |= {part - {int(i)}, part - {int(j)}} if {i, j} <= part else {part}
        groups = {part for part in split if not any(part < other for other in split)}
    if count > LETTERED or len(groups) > len(string.ascii_letters):
        return [""] * count
    named = list(zip(sorted(map(sorted, groups)), string.ascii_letters, strict=False))
    return ["".join(name for members, name in named if row in members) for row in range(count)]


def rank_ranges(better: Flags) -> list[tuple[int, int]]:
    """The ranks that cannot be excluded for each row, from which row is separated above which (`better` `[K,K]`).

    The lowest is one more than the rows that are better, the highest leaves out those that are worse.
    """
    above, below = better.sum(0), better.sum(1)
    return [(int(1 + a), int(len(better) - b)) for a, b in zip(above, below, strict=True)]


def means_of(scores: Table) -> Table:
    """The mean of each row of `[K,S]` over the seeds that it has; NaN without any."""
    known = ~np.isnan(scores)
    total = np.where(known, scores, 0.0).sum(-1)
    means: Table = np.divide(total, known.sum(-1), out=np.full(len(scores), math.nan), where=known.any(-1))
    return means


def _ranked(values: Table) -> Table:
    """Each column's ranks in `[K,D]`, 1 for the lowest; equal values share the mean of theirs."""
    ordered = np.sort(values, axis=0)
    pairs = list(zip(ordered.T, values.T, strict=True))
    below = np.stack([np.searchsorted(column, own, "left") for column, own in pairs], axis=1)
    up_to = np.stack([np.searchsorted(column, own, "right") for column, own in pairs], axis=1)
    ranks: Table = (below + 1 + up_to) / 2
    return ranks


def _studentized_range(names: int, alpha: float) -> float:
    """The studentized range of so many names that is exceeded with probability `alpha`, for infinite freedom."""
    if alpha == ALPHA and names - 2 < len(_RANGE_05):
        return _RANGE_05[names - 2]
    from scipy import stats

    return float(stats.studentized_range.isf(alpha, names, math.inf))


def _cliques(ranks: Mapping[str, float], reach: float) -> tuple[tuple[str, ...], ...]:
    """Maximal runs of two or more names whose average ranks differ by less than `reach`; `ranks` in order."""
    names, values = list(ranks), list(ranks.values())
    runs: list[tuple[str, ...]] = []
    end = 0
    for start, low in enumerate(values):
        last = max(index for index, value in enumerate(values) if value - low < reach)
        if last > max(end, start):
            runs.append(tuple(names[start : last + 1]))
            end = last
    return tuple(runs)
