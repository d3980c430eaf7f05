"""Which trials of a ledger a name means: a configuration as leaderboards call it, or one trial by its id."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bench.errors import BadInput, UnknownName
from bench.results.ledger import Reading
from bench.results.reading import read_shown
from bench.results.selection import COLUMNS, PROVENANCE, select, sweeps, trials_of
from bench.results.wording import count, visible

TRIAL = re.compile("[0-9a-f]{4,64}")  # a trial's id, or how it begins
LISTED = 8  # choices that an error names
_SCORE = ["trial_id", "dataset", "dataset_fingerprint", "protocol", "variant", "split", "metric"]


@dataclass(frozen=True, eq=False)
class Side:
    """The ledger rows of one configuration's trials, or of one trial: each trial once, wherever it was recorded.

    `name` is the configuration's, or the trial's; `sweep` that of the first sweep that shows it.
    """

    name: str
    sweep: str
    rows: pd.DataFrame = field(repr=False)
    single: bool = False  # one trial was asked for by its id

    @property
    def config(self) -> dict[str, Any]:
        """What decides its results, without the seed."""
        config = json.loads(str(self.rows["config"].iloc[0]))
        return {key: value for key, value in config.items() if key != "seed"}

    @property
    def finished(self) -> pd.DataFrame:
        """One row for each finished trial."""
        return trials_of(self.rows[self.rows["status"] == "finished"]).drop_duplicates("trial_id")

    @property
    def seeds(self) -> list[int]:
        """The seeds of its finished trials."""
        return sorted(int(seed) for seed in self.finished["seed"].unique())


def read_sides(out: Path, names: Sequence[str], sweep: str | None) -> Reading:
    """The rows that `find_side` needs for these names."""
    return read_shown(out, sweep, COLUMNS + PROVENANCE, trials=[name for name in names if TRIAL.fullmatch(name)])


def find_side(frame: pd.DataFrame, text: str) -> Side:
    """The side that a name means: SWEEP/CONFIGURATION, a configuration's name, or a trial's id or its beginning.

    Raises UnknownName with the nearest name, BadInput for a name that several configurations or trials have, and for
    what has no finished trial.
    """
    shown = {name: select(frame, name).shown for name in sweeps(frame)}
    groups = {(sweep, str(name)): rows for sweep, rows in shown.items() for name, rows in rows.groupby("configuration")}
    whole = {f"{sweep}/{name}": [(sweep, name)] for sweep, name in groups}
    found = whole.get(text) or [place for place in groups if place[1] == text]
    if found:
        return _with_results(_configuration(text, {place: groups[place] for place in found}))
    if TRIAL.fullmatch(text) and frame["trial_id"].str.startswith(text).any():
        return _with_results(_trial(frame, text))
    raise UnknownName("configuration with results, and no trial,", text, {name for _, name in groups})


def _configuration(text: str, groups: dict[tuple[str, str], pd.DataFrame]) -> Side:
    """One configuration; sweeps that show the very same one (as a control) all give their trials."""
    ids = {rows["configuration_id"].iloc[0] for rows in groups.values()}
    if len(ids) > 1:
        named = [f"{sweep}/{name}" for sweep, name in groups]
        raise BadInput(
            f"{visible(text)!r} is {count(len(ids), 'configuration')}: {_listed(named)}; name one as "
            "SWEEP/CONFIGURATION, or give --sweep"
        )
    (sweep, name), *_ = groups
    rows = pd.concat(list(groups.values())).drop_duplicates(_SCORE)
    return Side(name, sweep, rows)


def _trial(frame: pd.DataFrame, text: str) -> Side:
    """One trial, in the first place where it was recorded; a confirmed place goes before one of the search."""
    rows = frame[frame["trial_id"].str.startswith(text)]
    ids = rows["trial_id"].unique()
    if len(ids) > 1:
        named = [f"{trial[: len(text) + 8]} ({_told(rows[rows['trial_id'] == trial].iloc[0])})" for trial in ids]
        raise BadInput(f"{text!r} begins the ids of {count(len(ids), 'trial')}: {_listed(named)}")
    first = rows.sort_values("stage", kind="stable").iloc[0]  # "confirm" sorts before "search"
    keys = ["sweep", "sweep_id", "stage", "configuration"]
    place = rows[(rows[keys] == first[keys]).all(axis=1)].drop_duplicates(_SCORE)
    return Side(f"{_told(first)} ({first['trial_id'][:8]})", str(first["sweep"]), place, single=True)


def _with_results(side: Side) -> Side:
    if side.finished.empty:
        status = ", ".join(sorted(side.rows["status"].unique()))
        raise BadInput(f"{visible(side.name)!r} of sweep {visible(side.sweep)} has no finished trial ({status})")
    return side


def _told(row: Any) -> str:
    """`simclr, seed 1`, `simclr, draw 3`."""
    which = f"seed {row['seed']}" if pd.isna(row["draw"]) else f"draw {row['draw']}"
    return f"{row['configuration']}, {which}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return visible(", ".join(sorted(names)[:LISTED])) + more
