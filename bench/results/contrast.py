"""Two configurations against each other, paired over the seeds and datasets that both have.

Every number is made where the report's are made: the two are put together as a sweep of two configurations, the first
of which leads.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from bench.errors import BadInput
from bench.results import wording
from bench.results.comparisons import compared
from bench.results.differing import Differing, differing
from bench.results.frames import rows_of
from bench.results.leaderboard import Standing, by_configuration, heads_of, protocol_scores, standings
from bench.results.selection import NO_FILTERS, Filters, Selection, failed_trials
from bench.results.sides import Side
from bench.results.statistics import Mean, mean_over_seeds

ONE_SEED = (
    "No predictions of single test images are kept, so two runs cannot be paired over images: of one seed there is "
    "each score's own interval (bootstrap over test samples), and nothing about the spread between seeds."
)


@dataclass(frozen=True)
class Result:
    """One dataset under one protocol, or all that both have (`dataset` None).

    `first`, `second`: the means, each over all seeds of its side; `gap`: first minus second over the pairs, a row of
    `COMPARISON`, None where nothing is in common; `alone`: the seeds of each side that lack a partner.
    """

    dataset: str | None
    metric: str
    samples: int | None
    first: Mean | None
    second: Mean | None
    gap: Any
    alone: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Board:
    """The results of one protocol and its variant; `metric` where one was asked for."""

    protocol: str
    variant: str
    metric: str | None
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Contrast:
    """What is said of two configurations; `names` tell them apart, `costs` are means over a side's trials."""

    sides: tuple[Side, Side]
    names: tuple[str, str]
    answer: str
    boards: tuple[Board, ...]
    costs: tuple[Mapping[str, Any], Mapping[str, Any]]
    differing: Differing
    notes: tuple[str, ...]


def contrast(first: Side, second: Side, filters: Filters = NO_FILTERS) -> Contrast:
    """Compare two sides. Raises BadInput where they have trials in common, or nothing fits the filters."""
    ids = [set(side.finished["trial_id"]) for side in (first, second)]
    if ids[0] & ids[1]:
        raise BadInput(f"{wording.visible(first.name)!r} and {wording.visible(second.name)!r} have trials in common")
    names = _names(first, second)
    selection = _selection((first, second), names, filters)
    filters = replace(filters, datasets=())
    boards = standings(selection, filters)
    if not boards:
        raise BadInput(f"neither has a test score that fits the filters ({wording.visible(filters) or 'none given'})")
    gaps = compared(selection, filters)
    heads = heads_of(selection)
    found = tuple(_board(standing, selection, gaps, names) for standing in boards)
    answer = next(iter(wording.answers(gaps)), _nothing_common(names, found))
    notes = _notes((first, second), names, boards, gaps)
    costs = heads[names[0]], heads[names[1]]
    return Contrast((first, second), names, answer, found, costs, differing(first, second), tuple(notes))


def _names(first: Side, second: Side) -> tuple[str, str]:
    """The sides' names, with their sweeps where they are the same."""
    if first.name != second.name:
        return first.name, second.name
    return f"{first.sweep}/{first.name}", f"{second.sweep}/{second.name}"


def _selection(sides: tuple[Side, Side], names: tuple[str, str], filters: Filters) -> Selection:
    """Both as the configurations of one sweep, the first leading, with one name for each dataset."""
    parts = []
    for side, name, role in zip(sides, names, ("best", "baseline"), strict=True):
        rows = side.rows
        if filters.datasets:
            rows = rows[rows["dataset"].isin(filters.datasets) | (rows["status"] != "finished")]
        parts.append(rows.assign(configuration=name, role=role))
    shown = pd.concat(parts, ignore_index=True)
    shown = shown.assign(dataset=_datasets(shown, by_metric=not filters.metrics))
    return Selection("", shown, [], shown)


def _datasets(shown: pd.DataFrame, *, by_metric: bool) -> pd.Series:
    """A name for each row's dataset: one for the same content (and headline metric), another for any other."""
    content = shown["dataset_fingerprint"].fillna(shown["dataset"])
    metric = shown["metric"].where(shown["headline"].fillna(value=False).astype(bool) & by_metric)
    headline = metric.groupby([shown["configuration"], content]).transform("first").fillna("")
    keys = list(zip(content, headline, strict=True))
    named: dict[tuple[str, str], str] = {}
    for key, name in zip(keys, shown["dataset"], strict=True):
        if key not in named and not pd.isna(name):
            rivals = [other for other, said in named.items() if said == name]
            beside = key[1] if rivals and rivals[0][0] == key[0] else str(key[0])[:8]
            named[key] = f"{name} ({beside})" if rivals else str(name)
    return pd.Series([named.get(key) for key in keys], index=shown.index, dtype=shown["dataset"].dtype)


def _board(standing: Standing, selection: Selection, gaps: pd.DataFrame, names: tuple[str, str]) -> Board:
    place = standing.protocol, standing.variant
    scores = dict(protocol_scores(selection, NO_FILTERS, standing.metric))[place]
    table = by_configuration(scores)
    mine = gaps[(gaps["protocol"] == place[0]) & (gaps["variant"] == place[1])]
    mine = mine[mine["metric"].isna() if standing.metric is None else mine["metric"] == standing.metric]
    by_dataset = {None if pd.isna(row.dataset) else str(row.dataset): row for row in rows_of(mine)}
    results = []
    for dataset, cells in standing.rows.groupby("dataset", sort=False):
        head = {row.configuration: row for row in rows_of(cells)}
        both = [_mean(head.get(name)) for name in names]
        seeds = [set(table.get(name, {}).get(str(dataset), {})) for name in names]
        samples = next((int(each) for each in cells["samples"].dropna()), None)
        gap = by_dataset.get(str(dataset))
        results.append(
            Result(str(dataset), str(cells["metric"].iloc[0]), samples, both[0], both[1], gap, _alone(seeds))
        )
    common = [str(each) for each in standing.rows["dataset"].unique() if str(each) in by_dataset]
    if len(common) > 1:
        results.append(_over_all(common, table, by_dataset.get(None), names))
    return Board(*place, standing.metric, tuple(results))


def _over_all(
    datasets: list[str], table: Mapping[str, Mapping[str, Mapping[int, float]]], gap: Any, names: tuple[str, str]
) -> Result:
    """The mean over the datasets that both have: of each seed that is complete on them."""
    each = []
    for name in names:
        scores = [table[name][dataset] for dataset in datasets]
        complete = set.intersection(*(set(one) for one in scores))
        each.append({seed: math.fsum(one[seed] for one in scores) / len(scores) for seed in sorted(complete)})
    means = [_in_bounds(mean_over_seeds(values.values())) for values in each]
    return Result(None, "", None, means[0], means[1], gap, _alone([set(values) for values in each]))


def _in_bounds(mean: Mean) -> Mean:
    """Scores lie in 0..1, so the interval is cut there, as the leaderboard's are."""
    known = not math.isnan(mean.low)
    return replace(mean, low=max(0.0, mean.low), high=min(1.0, mean.high)) if known else mean


def _alone(seeds: list[set[int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    first, second = seeds
    return tuple(sorted(first - second)), tuple(sorted(second - first))


def _mean(row: Any) -> Mean | None:
    """A cell of the leaderboard; None where it is blank."""
    return None if row is None or pd.isna(row.value) else Mean(row.value, row.low, row.high, int(row.seeds))


def _nothing_common(names: tuple[str, str], boards: tuple[Board, ...]) -> str:
    shared = any(result.first and result.second for board in boards for result in board.results)
    first, second = map(wording.visible, names)
    return f"{first} and '{second}' have no {'seed' if shared else 'dataset under the same protocol'} in common."


def _notes(sides: tuple[Side, Side], names: tuple[str, str], boards: list[Standing], gaps: pd.DataFrame) -> list[str]:
    """What the reader must know beside the numbers."""
    notes = []
    pairs = gaps["seeds"].max() if len(gaps) else 0
    if pairs < 2:
        notes.append(ONE_SEED)
    else:
        notes += wording.seed_lines(boards[0].rows, gaps)
    notes += [_versions(sides)] if _versions(sides) else []
    for side, name in zip(sides, names, strict=True):
        said = wording.visible(name)
        stages = set(side.rows["stage"])
        if stages == {"search"}:
            notes.append(
                f"{said} is of the search, which chose it on validation: it is not confirmed on further seeds."
            )
        failed = failed_trials(side.rows)
        notes += [f"{said}: {wording.count(len(failed), 'trial')} failed and is not in it."] if len(failed) else []
    return notes


def _versions(sides: tuple[Side, Side]) -> str:
    """What to say where the two were judged by unlike versions of a protocol."""
    first, second = (side.config.get("protocol_versions") or {} for side in sides)
    unlike = [name for name in first if name in second and first[name] != second[name]]
    told = ", ".join(f"{name} (version {first[name]} and {second[name]})" for name in sorted(unlike))
    return (
        f"Judged by unlike versions of a protocol, so differences are of both: {wording.visible(told)}." if told else ""
    )
