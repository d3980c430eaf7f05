"""From ledger rows to leaderboards: scores, intervals, ranks and ties of configurations that validation chose.

A leaderboard ranks them by their test scores and never chooses by a test score.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from bench.results.frames import typed_frame
from bench.results.published import published_value
from bench.results.ranking import RankTest, average_ranks, friedman, letters, means_of, rank_ranges
from bench.results.selection import NO_FILTERS, Filters, Selection, select, trials_of
from bench.results.statistics import CONFIDENCE, Table, holm_pairs, mean_over_seeds, pairwise_p

LEADERBOARD: Any = pa.schema(
    [
        ("sweep", pa.string()),
        ("sweep_id", pa.string()),
        ("stage", pa.string()),  # "search" while nothing is confirmed
        ("configuration", pa.string()),
        ("role", pa.string()),  # best, baseline or control
        ("configuration_id", pa.string()),
        ("method", pa.string()),
        ("encoder", pa.string()),
        ("protocol", pa.string()),
        ("variant", pa.string()),
        ("dataset", pa.string()),
        ("metric", pa.string()),
        ("headline", pa.bool_()),  # the metric is the dataset's headline metric
        ("value", pa.float64()),  # mean over seeds of the test score, fraction; null where there is none
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("interval", pa.string()),  # what low and high are over
        ("macro_f1", pa.float64()),  # mean over seeds, where the metric is top-1 and the classes are unequal
        ("seeds", pa.int64()),
        ("samples", pa.int64()),  # test samples
        ("rank", pa.float64()),  # average over the datasets; null for a configuration that lacks one
        ("rank_low", pa.int64()),  # the ranks that the seeds do not exclude; null where they cannot tell
        ("rank_high", pa.int64()),
        ("group", pa.string()),  # tie groups: configurations that share a letter are not separated
        ("best", pa.bool_()),  # the highest value of the dataset
        ("tie", pa.bool_()),  # not separated from the best on the dataset; null where it cannot be told
        ("objective", pa.float64()),  # mean over seeds of the validation objective
        ("published", pa.float64()),  # a publication's figure, never compared
        ("device_seconds", pa.float64()),  # per trial, mean
        ("images_per_second", pa.float64()),  # per trial, mean
        ("peak_memory_bytes", pa.float64()),  # per trial, mean
    ]
)
UNEQUAL = 0.02  # classes are unequal where top-1 and the mean per class differ by so much for any configuration
MOST_PAIRED = 400  # configurations; more are not compared pair by pair
_SCORES = "configuration protocol variant dataset metric headline seed value low high samples".split()  # noqa: SIM905
_IDENTITY = ("sweep", "sweep_id", "stage", "configuration", "role", "configuration_id", "method", "encoder")
_COSTS = ("objective", "device_seconds", "images_per_second", "peak_memory_bytes")
Heads = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Standing:
    """The leaderboard of one protocol and its variant: `rows` of the columns of `LEADERBOARD`.

    `metric` is None where each dataset is scored by its headline metric; `test` is Friedman's over the datasets, None
    below two datasets or two configurations.
    """

    protocol: str
    variant: str
    metric: str | None
    rows: pd.DataFrame
    test: RankTest | None


def leaderboard(frame: pd.DataFrame, sweep: str, filters: Filters = NO_FILTERS) -> pd.DataFrame:
    """The sweep's leaderboard as a tidy frame of the columns of `LEADERBOARD`.

    A row per configuration x protocol x variant x dataset, scored by each dataset's headline metric or by those
    of `filters`; where a configuration lacks what others have, its value is null. The objective's protocol first, best
    rank first. Controls come last and without a rank: they are what the rest is measured against.
    """
    return together(standings(select(frame, sweep, filters), filters))


def together(boards: Sequence[Standing]) -> pd.DataFrame:
    """The rows of all standings; an empty typed frame where there are none."""
    return pd.concat([board.rows for board in boards], ignore_index=True) if boards else typed_frame([], LEADERBOARD)


def standings(selection: Selection, filters: Filters = NO_FILTERS) -> list[Standing]:
    """A standing per metric asked for, protocol and variant: the objective's protocol first."""
    heads = heads_of(selection)
    boards = []
    for metric in filters.metrics or (None,):
        for (protocol, variant), rows in protocol_scores(selection, filters, metric):
            block = _Block(heads, rows, filters.methods, _beside(selection.shown, rows))
            place = {"protocol": protocol, "variant": variant}
            frame = typed_frame([record | place for record in block.records()], LEADERBOARD)
            boards.append(Standing(protocol, variant, metric, frame, block.test))
    return boards


def heads_of(selection: Selection) -> Heads:
    """What identifies each configuration, and what its finished trials cost on average."""
    heads: Heads = {}
    shown = selection.shown
    trials = shown[["trial_id", "stage", "configuration", *_COSTS]]
    trials = trials_of(trials[shown["status"] == "finished"]).astype(dict.fromkeys(_COSTS, float))
    finished = dict(list(trials.groupby("configuration")))
    first = shown[list(_IDENTITY)].drop_duplicates("configuration").set_index("configuration", drop=False)
    for name in sorted(first.index):
        mine = finished.get(name, trials.iloc[:0])
        costs = {column: mean_over_seeds(mine[column].to_numpy()).mean for column in _COSTS}
        beside = {"published": published_value(selection.sweep, str(name))}
        heads[str(name)] = {column: first.at[name, column] for column in _IDENTITY} | costs | beside
    return heads


def protocol_scores(
    selection: Selection, filters: Filters, metric: str | None
) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """The test rows to score by, of finished trials, by protocol and variant: the objective's first, then linear."""
    shown = selection.shown
    wanted = shown["headline"] if metric is None else shown["metric"] == metric
    wanted &= (shown["split"] == "test") & (shown["status"] == "finished") & shown["value"].notna()
    if filters.datasets:
        wanted &= shown["dataset"].isin(filters.datasets)
    scores = shown.loc[wanted, _SCORES]
    found = [((str(key[0]), str(key[1])), group) for key, group in scores.groupby(["protocol", "variant"])]
    kept = [(key, group) for key, group in found if _asked(key, filters.protocols)]
    return sorted(kept, key=lambda item: _place(item[0], selection.objective))


def by_configuration(rows: pd.DataFrame) -> dict[str, dict[str, dict[int, float]]]:
    """Scores by configuration, dataset and seed."""
    table: dict[str, dict[str, dict[int, float]]] = {}
    columns = ("configuration", "dataset", "seed", "value")
    for name, dataset, seed, value in zip(*(rows[name].tolist() for name in columns), strict=True):
        table.setdefault(name, {}).setdefault(dataset, {})[int(seed)] = float(value)
    return table


@dataclass
class _Block:
    """One protocol and variant in the making: `heads` of all configurations, their score `rows`."""

    heads: Heads
    rows: pd.DataFrame
    methods: Sequence[str]  # those shown; all where empty
    macro_f1: Mapping[tuple[str, str], float]  # by configuration and dataset
    test: RankTest | None = field(init=False)

    def __post_init__(self) -> None:
        self.cells = _cells(self.rows)
        self.datasets: list[str] = sorted(self.rows["dataset"].unique())
        self.metrics = self.rows.drop_duplicates("dataset").set_index("dataset")[["metric", "headline"]]
        self.rivals = [name for name in self.heads if self.heads[name]["role"] != "control"]  # controls have no rank
        self.contest = [name for name in self.rivals if self._kept(name)]
        means = {
            name: {each: self.cells[name, each]["value"] for each in self.datasets if (name, each) in self.cells}
            for name in self.contest
        }
        self.ranks = average_ranks(means)
        self.test = friedman(means)

    def records(self) -> list[dict[str, Any]]:
        """The rows of the leaderboard, configuration by configuration."""
        order = sorted(filter(self._kept, self.heads), key=self._position)
        cube = _cube(self.rows, self.rivals, self.datasets)
        overall = self._overall(cube, order)
        ties = [self._ties(cube[:, index], dataset) for index, dataset in enumerate(self.datasets)]
        return [
            self.heads[name] | overall.get(name, {}) | self._record(name, dataset, verdicts.get(name, {}))
            for name in order
            for dataset, verdicts in zip(self.datasets, ties, strict=True)
        ]

    def _kept(self, name: str) -> bool:
        head = self.heads[name]
        return not self.methods or head["role"] == "control" or head["method"] in self.methods

    def _position(self, name: str) -> tuple[bool, float, str]:
        rank = self.ranks.get(name, math.nan)
        return name not in self.rivals, math.inf if math.isnan(rank) else rank, name

    def _record(self, name: str, dataset: str, verdict: Mapping[str, Any]) -> dict[str, Any]:
        cell = self.cells.get((name, dataset), {"seeds": 0})
        metric = {column: self.metrics.at[dataset, column] for column in ("metric", "headline")}
        place = {"dataset": dataset, "rank": self.ranks.get(name), "macro_f1": self.macro_f1.get((name, dataset))}
        return {**metric, **place, "best": False, **verdict, **cell}

    def _overall(self, cube: Table, order: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Tie groups and possible ranks of the configurations that have all datasets, over the datasets' mean."""
        rows = [self.rivals.index(name) for name in order if not math.isnan(self.ranks.get(name, math.nan))]
        adjusted = _adjusted(cube.mean(1))[np.ix_(rows, rows)]
        if np.isnan(adjusted[~np.eye(len(rows), dtype=bool)]).all():
            return {}
        means = means_of(cube.mean(1)[rows])
        separated = adjusted < 1 - CONFIDENCE
        ranges = rank_ranges(separated & (means[:, None] > means[None, :]))
        named = zip(rows, letters(separated), ranges, strict=True)
        return {self.rivals[row]: {"group": group, "rank_low": r[0], "rank_high": r[1]} for row, group, r in named}

    def _ties(self, scores: Table, dataset: str) -> dict[str, dict[str, Any]]:
        """On one dataset, for each configuration whether it is the best, and whether it ties with it."""
        known = [row for row, name in enumerate(self.rivals) if name in self.contest and (name, dataset) in self.cells]
        if not known:
            return {}
        values = {row: self.cells[self.rivals[row], dataset]["value"] for row in known}
        top = max(known, key=values.__getitem__)
        adjusted = _adjusted(scores)[top]
        verdicts = {
            row: True if row == top else None if math.isnan(adjusted[row]) else bool(adjusted[row] >= 1 - CONFIDENCE)
            for row in known
        }
        return {self.rivals[row]: {"best": values[row] == values[top], "tie": verdicts[row]} for row in known}


def _cube(rows: pd.DataFrame, names: Sequence[str], datasets: Sequence[str]) -> Table:
    """Scores `[K,D,S]` of the named configurations by dataset and seed, NaN where there is none."""
    rows = rows[rows["configuration"].isin(names)]
    seeds, seed_index = np.unique(rows["seed"].to_numpy(dtype=np.int64), return_inverse=True)
    cube = np.full((len(names), len(datasets), len(seeds)), math.nan)
    first = pd.Index(names).get_indexer(pd.Index(rows["configuration"]))
    second = pd.Index(datasets).get_indexer(pd.Index(rows["dataset"]))
    cube[first, second, seed_index] = rows["value"].to_numpy(dtype=float)
    return cube


def _adjusted(scores: Table) -> Table:
    """Holm's adjusted p-values of all pairs of `[K,S]`; NaN everywhere for too many configurations."""
    if len(scores) > MOST_PAIRED:
        return np.full((len(scores), len(scores)), math.nan)
    return holm_pairs(pairwise_p(scores))


def _cells(rows: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """The score of each configuration on each dataset, from its rows (one per seed)."""
    rows = rows.drop_duplicates(["configuration", "dataset", "seed"])
    values, low, high = (rows[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
    samples = rows["samples"].array
    groups: Mapping[Any, Any] = rows.groupby(["configuration", "dataset"]).indices
    return {
        (str(key[0]), str(key[1])): _cell(values[at], samples[at[0]], low[at[0]], high[at[0]])
        for key, at in groups.items()
    }


def _cell(values: Any, samples: Any, low: float, high: float) -> dict[str, Any]:
    """One configuration's score on one dataset: over seeds, or of its one seed between `low` and `high`.

    Scores lie in 0..1, so an interval over seeds is cut there.
    """
    over = mean_over_seeds(values)
    cell = {"value": over.mean, "seeds": over.seeds, "samples": samples}
    if over.seeds > 1:
        return cell | {"low": max(0.0, over.low), "high": min(1.0, over.high), "interval": over.label}
    kind = "one seed" if pd.isna(low) else "one seed: bootstrap over test samples"
    return cell | {"low": low, "high": high, "interval": kind}


def _beside(shown: pd.DataFrame, rows: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Mean macro F1 by configuration and dataset, for datasets of unequal classes that `rows` score by top-1."""
    scored = set(rows.loc[rows["metric"] == "top1", "dataset"])
    protocol, variant = rows["protocol"].iloc[0], rows["variant"].iloc[0]
    wanted = shown["metric"].isin(["top1", "mean_per_class", "macro_f1"]) & shown["dataset"].isin(scored)
    wanted &= (shown["split"] == "test") & (shown["protocol"] == protocol) & (shown["variant"] == variant)
    keys = ["configuration", "dataset", "metric"]
    means = shown.loc[wanted, [*keys, "value"]].sort_values("value").groupby(keys)["value"].mean().unstack("metric")
    if not {"top1", "mean_per_class", "macro_f1"} <= set(means.columns):
        return {}
    gap = (means["top1"] - means["mean_per_class"]).abs().groupby(level="dataset").max()
    unequal = means.index.get_level_values("dataset").isin(gap.index[gap > UNEQUAL])
    chosen = means.loc[unequal, "macro_f1"].dropna()
    return {(str(key[0]), str(key[1])): float(value) for key, value in chosen.items()}


def _asked(key: tuple[str, str], protocols: Sequence[str]) -> bool:
    return not protocols or key[0] in protocols or " ".join(key).strip() in protocols


def _place(group: tuple[str, str], objective: str) -> tuple[Any, ...]:
    protocol, variant = group
    return protocol != objective, protocol != "linear", protocol, len(variant), variant
