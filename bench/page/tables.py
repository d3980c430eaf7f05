"""The leaderboard and the paired differences as tables for the page's template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.page.trials import Detail
from bench.results import wording
from bench.results.findings import Findings
from bench.results.frames import rows_of
from bench.results.leaderboard import Standing


@dataclass(frozen=True)
class Column:
    """A dataset's column: its name, metric and number of test samples."""

    name: str
    metric: str
    samples: str


@dataclass(frozen=True)
class Cell:
    """A score, `beside` it macro F1 where classes are unequal; `sort` is what it sorts by.

    `low` to `high` and `at` are places in 0..100 on the dataset's scale.
    """

    text: str = ""
    interval: str = ""
    beside: str = ""
    sort: str = ""
    best: bool = False
    tie: bool = False
    low: float | None = None
    high: float | None = None
    at: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Row:
    """A configuration: its scores by column, and what it cost. `seeds` are its trials: (seed, anchor or "")."""

    name: str
    role: str
    method: str
    seeds: tuple[tuple[int, str], ...]
    count: int
    rank: str
    rank_sort: str
    group: str
    cells: tuple[Cell, ...]
    costs: tuple[tuple[str, str], ...]  # text, and what it sorts by
    published: str


@dataclass(frozen=True)
class Board:
    """The leaderboard of one protocol."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    published: bool
    grouped: bool


@dataclass(frozen=True)
class Gap:
    """The leader minus another configuration, paired over seeds."""

    protocol: str
    dataset: str
    baseline: str
    role: str
    difference: str
    interval: str
    p_value: str
    adjusted: str
    seeds: int
    sort: str
    separated: bool


def board(standing: Standing, details: Sequence[Detail]) -> Board:
    """The table of one standing; seeds link to the `details`."""
    rows = standing.rows
    columns, scales = [], {}
    for dataset, cells in rows.groupby("dataset", sort=False):
        metric = wording.metric_name(next(iter(cells["metric"].dropna()), ""))
        columns.append(Column(str(dataset), metric, str(next(iter(cells["samples"].dropna()), ""))))
        ends = cells[["low", "high", "value"]].astype(float)
        scales[str(dataset)] = (float(ends.min().min()), float(ends.max().max()))
    trials: dict[str, list[tuple[int, str]]] = {}
    for detail in details:
        trials.setdefault(detail.configuration, []).append((detail.seed, detail.anchor))
    lines = [
        _row(str(name), cells, columns, scales, trials) for name, cells in rows.groupby("configuration", sort=False)
    ]
    return Board(
        name=wording.standing_name(standing),
        columns=tuple(columns),
        rows=tuple(lines),
        published=bool(rows["published"].notna().any()),
        grouped=bool(rows["group"].fillna("").astype(bool).any()),
    )


def _row(
    name: str,
    cells: pd.DataFrame,
    columns: Sequence[Column],
    scales: Mapping[str, tuple[float, float]],
    trials: Mapping[str, Sequence[tuple[int, str]]],
) -> Row:
    head = cells.iloc[0]
    by_dataset = {str(row.dataset): row for row in rows_of(cells)}
    costs = (
        (wording.percent(head["objective"]), _sortable(head["objective"])),
        (wording.duration(head["device_seconds"]), _sortable(head["device_seconds"])),
        (_speed(head["images_per_second"]), _sortable(head["images_per_second"])),
        (wording.memory(head["peak_memory_bytes"]), _sortable(head["peak_memory_bytes"])),
    )
    return Row(
        name=name,
        role=str(head["role"]),
        method=str(head["method"]),
        seeds=tuple(sorted(set(trials.get(name, ())))) if head["stage"] == "confirm" else (),
        count=int(cells["seeds"].max()),
        rank="" if pd.isna(head["rank"]) else f"{head['rank']:.1f}",
        rank_sort=_sortable(head["rank"]),
        group="" if pd.isna(head["group"]) else str(head["group"]),
        cells=tuple(_cell(by_dataset.get(column.name), scales[column.name]) for column in columns),
        costs=costs,
        published=wording.percent(head["published"]),
    )


def _cell(row: Any, scale: tuple[float, float]) -> Cell:
    """A leaderboard cell; blank without a value."""
    if row is None or pd.isna(row.value):
        return Cell()
    best = bool(row.best)
    return Cell(
        text=wording.percent(row.value),
        interval=wording.interval(row.low, row.high),
        beside="" if pd.isna(row.macro_f1) else f"F1 {wording.percent(row.macro_f1)}",
        sort=_sortable(row.value),
        best=best,
        tie=not best and not pd.isna(row.tie) and bool(row.tie),
        low=_place(row.low, scale),
        high=_place(row.high, scale),
        at=_place(row.value, scale),
        why=str(row.interval),
    )


def gaps(found: Findings) -> list[Gap]:
    """All comparisons of the leader, over all datasets first."""
    rows = rows_of(found.gaps)
    return [_gap(row) for row in sorted(rows, key=lambda row: not pd.isna(row.dataset))]


def _gap(row: Any) -> Gap:
    return Gap(
        protocol=wording.protocol_name(row.protocol, row.variant),
        dataset="all" if pd.isna(row.dataset) else str(row.dataset),
        baseline=str(row.baseline),
        role=str(row.role),
        difference=wording.points(row.difference),
        interval=wording.interval(row.low, row.high, signed=True),
        p_value=wording.p_value(row.p_value) or ("one seed" if row.seeds == 1 else ""),
        adjusted=wording.p_value(row.p_adjusted),
        seeds=int(row.seeds),
        sort=_sortable(row.difference),
        separated=not pd.isna(row.separated) and bool(row.separated),
    )


def _place(value: Any, scale: tuple[float, float]) -> float | None:
    low, high = scale
    if pd.isna(value) or not high > low:
        return None
    return round(100 * min(1.0, max(0.0, (float(value) - low) / (high - low))), 1)


def _sortable(value: Any) -> str:
    return "" if pd.isna(value) else f"{float(value):.9g}"


def _speed(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:,.0f}"
