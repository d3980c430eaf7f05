"""Leaderboards as plain tables of texts, the same for Markdown and LaTeX: each format adds its marks and escapes."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from bench.results import wording
from bench.results.findings import Findings
from bench.results.frames import rows_of
from bench.results.leaderboard import Standing
from bench.results.published import published

BEST = "best"


@dataclass(frozen=True)
class Entry:
    """A cell: its text, and whether it is the best of its column."""

    text: str = ""
    best: bool = False


@dataclass(frozen=True)
class TextTable:
    """A table with a title; the first column is words, the rest numbers. `controls`: the rows that are controls."""

    title: str
    heads: list[str]
    rows: list[list[Entry]] = field(default_factory=list)
    controls: set[int] = field(default_factory=set)


def tables(found: Findings) -> list[TextTable]:
    """The leaderboards, the costs and the comparisons of one sweep."""
    boards = [_standing(board, found.sweep, first=not index) for index, board in enumerate(found.standings)]
    gaps = [] if found.gaps.empty else [_gaps(found.gaps)]
    return [*boards, *([_costs(found.standings[0])] if boards else []), *gaps]


def _standing(board: Standing, sweep: str, *, first: bool) -> TextTable:
    """Configurations by datasets."""
    rows = board.rows
    study = published(sweep) if first and rows["published"].notna().any() else None
    datasets = rows.drop_duplicates("dataset")
    heads = [f"{row.dataset} ({wording.metric_name(row.metric)})" for row in rows_of(datasets)]
    heads = ["configuration", "seeds", "rank", "group", *heads]
    table = TextTable(f"{wording.standing_name(board)}, test score in %", heads)
    if study:
        table.heads.append(f"published ({study.dataset})")
    for name, cells in rows.groupby("configuration", sort=False):
        head = cells.iloc[0]
        rank = "" if pd.isna(head["rank"]) else f"{head['rank']:.1f}"
        group = "" if pd.isna(head["group"]) else str(head["group"])
        lead = [_named(table, name, head["role"]), str(int(cells["seeds"].max())), rank, group]
        after = [wording.percent(head["published"])] if study else []
        table.rows.append([*map(Entry, lead), *(_score(row) for row in rows_of(cells)), *map(Entry, after)])
    return table


def _score(row: Any) -> Entry:
    if pd.isna(row.value):
        return Entry()
    tie = not pd.isna(row.tie) and bool(row.tie) and not row.best
    beside = "" if pd.isna(row.macro_f1) else f" F1 {wording.percent(row.macro_f1)}"
    mark = "=" if tie else ""
    return Entry(
        f"{wording.percent(row.value)}{mark} {wording.interval(row.low, row.high)}".rstrip() + beside, row.best
    )


def _costs(board: Standing) -> TextTable:
    """What a trial of each configuration cost, and its validation objective."""
    table = TextTable("cost per trial", ["configuration", "validation %", "device time", "images/s", "memory"])
    for row in rows_of(board.rows.drop_duplicates("configuration")):
        speed = "" if pd.isna(row.images_per_second) else f"{row.images_per_second:,.0f}"
        time, memory = wording.duration(row.device_seconds), wording.memory(row.peak_memory_bytes)
        cells = [_named(table, row.configuration, row.role), wording.percent(row.objective), time, speed, memory]
        table.rows.append(list(map(Entry, cells)))
    return table


def _gaps(gaps: pd.DataFrame) -> TextTable:
    """The leader against the others over all datasets, protocol by protocol."""
    name = wording.visible(gaps["configuration"].iloc[0])
    heads = ["other", "protocol", "difference", "95 % interval", "p", "p (Holm)", "separated"]
    table = TextTable(f"{name} minus the others, paired over seeds, in points", heads)
    for row in rows_of(gaps[gaps["dataset"].isna()]):
        metric = "" if pd.isna(row.metric) else f", {wording.metric_name(row.metric)}"
        verdict = "cannot be told" if pd.isna(row.separated) else "yes" if row.separated else "no"
        cells = [
            _named(table, row.baseline, row.role),
            wording.protocol_name(row.protocol, row.variant) + metric,
            wording.points(row.difference),
            wording.interval(row.low, row.high, signed=True),
            wording.p_value(row.p_value).removeprefix("p = ").removeprefix("p "),
            wording.p_value(row.p_adjusted).removeprefix("p = ").removeprefix("p "),
            verdict,
        ]
        table.rows.append(list(map(Entry, cells)))
    return table


def _named(table: TextTable, name: object, role: object) -> str:
    """A configuration's name for the row that comes next."""
    if role != "control":
        return wording.visible(name)
    table.controls.add(len(table.rows))
    return f"{wording.visible(name)} (control)"
