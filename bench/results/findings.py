"""Everything that a report says of one sweep, whatever its format: made once, then written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from bench.results.comparisons import compared
from bench.results.leaderboard import Standing, standings, together
from bench.results.selection import (
    NO_FILTERS,
    Best,
    Filters,
    Selection,
    count_trials,
    failed_trials,
    select,
    sweeps,
)

Records = Mapping[str, Mapping[str, Any]]  # the sweeps' definitions as the runs kept them, by sweep id


@dataclass(frozen=True)
class Findings:
    """One sweep's results: standings, the leader's comparisons (what the sweep asks first), choices and ends.

    `title` is its question, `record` its definition as the run kept it; both are empty where it was not kept.
    """

    selection: Selection
    filters: Filters
    standings: list[Standing]
    gaps: pd.DataFrame
    counts: dict[str, int]
    failures: pd.DataFrame
    versions: int  # earlier versions of the sweep in the ledger
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sweep(self) -> str:
        """The sweep's name."""
        return self.selection.sweep

    @property
    def title(self) -> str:
        """The sweep's question."""
        return str(self.record.get("title", ""))

    @cached_property
    def board(self) -> pd.DataFrame:
        """The leaderboard's rows."""
        return together(self.standings)

    @property
    def bests(self) -> list[Best]:
        """What the search chose."""
        return self.selection.bests


def findings(
    frame: pd.DataFrame, sweep: str | None, filters: Filters = NO_FILTERS, records: Records | None = None
) -> list[Findings]:
    """The findings of one sweep, or of each in turn where `sweep` is None. Raises UnknownName."""
    names = sweeps(frame) if sweep is None else [sweep]
    return [_of(frame, name, filters, records or {}) for name in names]


def _of(frame: pd.DataFrame, sweep: str, filters: Filters, records: Records) -> Findings:
    selection = select(frame, sweep, filters)
    record = records.get(str(selection.rows["sweep_id"].iloc[0]), {})
    gaps = compared(selection, filters)
    return Findings(
        selection=selection,
        filters=filters,
        standings=standings(selection, filters),
        gaps=_in_order(gaps, _baselines(record)),
        counts=count_trials(selection.rows),
        failures=failed_trials(selection.rows),
        versions=int(frame.loc[frame["sweep"] == sweep, "sweep_id"].nunique()) - 1,
        record=record,
    )


def _baselines(record: Mapping[str, Any]) -> list[str]:
    """The baselines' names in the order of the sweep's definition."""
    confirm = record.get("confirm")
    rows = confirm.get("baselines") if isinstance(confirm, Mapping) else None
    return [str(row.get("name")) for row in rows or () if isinstance(row, Mapping)]


def _in_order(gaps: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The comparisons with baselines in the order of `names`; all else stays where it is."""
    if gaps.empty or not names:
        return gaps
    order = {name: place for place, name in enumerate(names)}
    shown = gaps["baseline"].drop_duplicates()
    baselines = [name for name in shown if name in order]
    ranked = iter(sorted(baselines, key=order.__getitem__))
    places = {name: place for place, name in enumerate(next(ranked) if name in order else name for name in shown)}
    blocks = [rows for _, rows in gaps.groupby(["metric", "protocol", "variant"], sort=False, dropna=False)]
    sorted_blocks = [
        block.sort_values("baseline", key=lambda column: column.map(places), kind="stable") for block in blocks
    ]
    return pd.concat(sorted_blocks, ignore_index=True)
