"""Which rows of a ledger the report of a sweep is about. What validation chose is settled before anything is filtered.

While a sweep has no confirmed trials, its search is shown: the one trial of each candidate with the best validation
objective. Test scores choose nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import pandas as pd

from bench.errors import UnknownName
from bench.results.frames import PARAM
from bench.results.schema import Stage

COLUMNS = tuple(  # what of the ledger a report needs: reading only these is twice as fast
    """trial_id sweep sweep_id stage configuration role configuration_id method encoder seed draw status error
    error_file reused recorded_at dataset protocol variant split metric headline value samples low high objective
    config swept_numbers swept_texts device_seconds images_per_second peak_memory_bytes""".split()  # noqa: SIM905
)
PROVENANCE = tuple(  # what a result card needs beside them
    "dataset_fingerprint pretrain_dataset git_commit git_dirty versions device".split()  # noqa: SIM905
)
FINALITY = ("finished", "pruned", "failed")  # the first outweighs the later
_TRIAL = ["trial_id", "stage", "configuration"]  # one trial in its place


@dataclass(frozen=True)
class Best:
    """A candidate's best configuration: the highest validation objective among its finished search trials."""

    candidate: str
    configuration_id: str
    draw: int | None
    objective: float
    swept: dict[str, Any]


@dataclass(frozen=True)
class Filters:
    """What of the results is shown; an empty field shows everything. `metrics` replace each dataset's headline metric.

    No filter changes what validation chose, nor how many comparisons a p-value was adjusted for.
    """

    datasets: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()  # "knn", or one variant: "knn k=20"
    metrics: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()

    def __str__(self) -> str:
        """`dataset leaves; protocol knn, linear`; empty where everything is shown."""
        kinds = ("datasets", "methods", "protocols", "metrics", "stages")
        shown = [(kind[:-1], getattr(self, kind)) for kind in kinds]
        return "; ".join(f"{kind} {', '.join(values)}" for kind, values in shown if values)


NO_FILTERS = Filters()


def filters_for(frame: pd.DataFrame, **given: Sequence[str] | None) -> Filters:
    """Make filters of values as given (`dataset=["a,b", "c"]`): each is a known name, or several with commas.

    `frame` is a ledger frame, whose names are the known ones. Raises UnknownName with the nearest right name.
    """
    known = _known(frame)
    found: dict[str, tuple[str, ...]] = {}
    for kind, values in given.items():
        whole = set(known[kind])
        parts = [part for value in values or () for part in ([value] if value in whole else value.split(","))]
        names = tuple(dict.fromkeys(part if part in whole else part.strip() for part in parts))
        for name in names:
            if name not in whole:
                raise UnknownName(f"{kind} with results" if kind != "stage" else kind, name, whole)
        found[f"{kind}s"] = names
    return Filters(**found)


@dataclass(frozen=True)
class Selection:
    """The newest version of a sweep: all its `rows`, and those `shown`, each with a configuration's name and role.

    `bests`: what the search chose, the best first; `leader`: the candidate that validation prefers among those
    shown without failing, None where there is none; `objective`: the protocol that chose.
    """

    sweep: str
    rows: pd.DataFrame
    bests: list[Best]
    shown: pd.DataFrame
    leader: str | None = field(init=False)
    objective: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "leader", _leader(self.shown, self.bests))
        config = json.loads(str(self.shown["config"].iloc[0])) if len(self.shown) else {}
        object.__setattr__(self, "objective", str(config.get("objective", "linear")))


def select(frame: pd.DataFrame, sweep: str, filters: Filters = NO_FILTERS) -> Selection:
    """Select the newest version of a sweep from a ledger frame; of `filters` only the stages count here."""
    rows = of_sweep(frame, sweep)
    bests = bests_of(rows)
    return Selection(sweep, rows, bests, _shown(rows, bests, filters.stages))


def sweeps(frame: pd.DataFrame) -> list[str]:
    """The names of the sweeps in a ledger frame, in order."""
    return sorted(frame["sweep"].unique())


def of_sweep(frame: pd.DataFrame, sweep: str) -> pd.DataFrame:
    """The rows of the newest version of a sweep (the one recorded last). Raises UnknownName."""
    rows = where(frame, frame["sweep"] == sweep)
    if rows.empty:
        raise UnknownName("sweep with results", sweep, sweeps(frame))
    recorded = rows[["sweep_id", "recorded_at"]].groupby("sweep_id")["recorded_at"].max().reset_index()
    newest = recorded.sort_values(["recorded_at", "sweep_id"])["sweep_id"].iloc[-1]
    columns = {*COLUMNS, *PROVENANCE}
    wanted = [name for name in frame if name in columns or str(name).startswith(PARAM)]
    return where(rows, rows["sweep_id"] == newest)[wanted]


def where(frame: pd.DataFrame, wanted: pd.Series) -> pd.DataFrame:
    """`frame[wanted]`; of rows that lie together, as a ledger's do by sweep, version and stage, nothing is copied."""
    at = np.flatnonzero(wanted.to_numpy(dtype=bool, na_value=False))
    together = len(at) > 0 and at[-1] - at[0] + 1 == len(at)
    chosen: pd.DataFrame = frame.iloc[at[0] : at[-1] + 1] if together else frame.iloc[at]
    return chosen


def search_bests(frame: pd.DataFrame, sweep: str) -> list[Best]:
    """Each candidate's best finished configuration by validation objective (mean over its seeds), the best first."""
    return bests_of(of_sweep(frame, sweep))


def bests_of(rows: pd.DataFrame) -> list[Best]:
    """`search_bests` of the rows of one version of a sweep."""
    needed = [*_TRIAL, "configuration_id", "objective", "draw", "seed"]
    wanted = (rows["stage"] == "search") & (rows["status"] == "finished")
    params = [name for name in rows.columns if str(name).startswith(PARAM)]
    found = trials_of(rows.loc[wanted, [*needed, *params]]).dropna(subset="objective")
    bests = [_best(str(name), trials) for name, trials in found.groupby("configuration", sort=True)]
    return sorted(bests, key=lambda best: -best.objective)


def trials_of(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per trial and place."""
    return rows.drop_duplicates(_TRIAL)


def count_trials(rows: pd.DataFrame) -> dict[str, int]:
    """How many trials finished, were pruned, failed; and how many of them were reused: nothing was run for them.

    A trial in both stages counts once, by its most final status.
    """
    places = trials_of(rows[[*_TRIAL, "status", "reused"]])
    ranked = places.assign(status=places["status"].map({name: place for place, name in enumerate(FINALITY)}))
    trials = ranked.groupby("trial_id").agg(status=("status", "min"), reused=("reused", "all"))
    found = trials["status"].value_counts()
    counts = {name: int(found.get(place, 0)) for place, name in enumerate(FINALITY)}
    return counts | {"reused": int(trials["reused"].sum())}


def failed_trials(rows: pd.DataFrame) -> pd.DataFrame:
    """The failed trials, one row each: trial_id, stage, configuration, draw, seed, error, error_file."""
    columns = ["trial_id", "stage", "configuration", "draw", "seed", "error", "error_file"]
    failed: pd.DataFrame = rows.loc[rows["status"] == "failed", columns].sort_values(
        ["stage", "trial_id", "configuration"]
    )
    return failed.drop_duplicates(["trial_id", "stage"]).reset_index(drop=True)


def _best(candidate: str, trials: pd.DataFrame) -> Best:
    # Sorted, so that a mean does not depend on the order of the ledger's rows.
    groups = (
        trials[["configuration_id", "objective", "draw"]]
        .sort_values("objective")
        .groupby("configuration_id")
        .agg(objective=("objective", "mean"), draw=("draw", "min"))
    )
    groups = groups.reset_index().sort_values(["objective", "draw", "configuration_id"], ascending=[False, True, True])
    top = groups.iloc[0]
    trial = trials[trials["configuration_id"] == top["configuration_id"]].sort_values(["seed", "trial_id"]).iloc[0]
    swept = {
        str(name).removeprefix(PARAM): trial[name]
        for name in trials.columns
        if str(name).startswith(PARAM) and not pd.isna(trial[name])
    }
    draw = None if pd.isna(top["draw"]) else int(top["draw"])
    return Best(candidate, str(top["configuration_id"]), draw, float(top["objective"]), swept)


def _shown(rows: pd.DataFrame, bests: Sequence[Best], stages: Sequence[str]) -> pd.DataFrame:
    """The rows of the trials that the leaderboard shows: those confirmed, else what the search chose."""
    confirm = where(rows, rows["stage"] == "confirm")
    if set(stages) == {"confirm"} or (not confirm.empty and set(stages) != {"search"}):
        return _one_meaning_per_name(confirm, {best.candidate: best for best in bests})
    chosen = rows[(rows["status"] == "finished") & (rows["stage"] == "search")]
    wanted = chosen["configuration"].map({best.candidate: best.configuration_id for best in bests})
    return chosen[chosen["configuration_id"] == wanted].assign(role="best")


def _one_meaning_per_name(rows: pd.DataFrame, bests: Mapping[str, Best]) -> pd.DataFrame:
    """Keep one configuration id per name: the search's best for a candidate, otherwise the one recorded last.

    A search that went on can have found another best after the first was confirmed.
    """
    narrow = rows[["configuration", "recorded_at", "configuration_id"]].assign(place=np.arange(len(rows)))
    kept = [np.zeros(0, dtype=np.int64)]
    for name, group in narrow.groupby("configuration", sort=True):
        wanted = group.sort_values(["recorded_at", "configuration_id"])["configuration_id"].iloc[-1]
        best = bests.get(str(name))
        if best is not None and best.configuration_id in set(group["configuration_id"]):
            wanted = best.configuration_id
        kept.append(group.loc[group["configuration_id"] == wanted, "place"].to_numpy())
    together: pd.DataFrame = rows.iloc[np.concatenate(kept)]
    return together


def _leader(shown: pd.DataFrame, bests: Sequence[Best]) -> str | None:
    """The candidate with the highest validation objective of those that finished."""
    there = set(shown.loc[(shown["role"] == "best") & (shown["status"] == "finished"), "configuration"])
    return next((best.candidate for best in bests if best.candidate in there), min(there, default=None))


def _known(frame: pd.DataFrame) -> dict[str, list[str]]:
    """The names that a filter can have, by kind."""
    protocols = frame[["protocol", "variant"]].drop_duplicates().dropna(subset="protocol")
    variants = {" ".join(map(str, pair)).strip() for pair in protocols.itertuples(index=False, name=None)}
    metrics = set(frame.loc[frame["split"] == "test", "metric"].dropna().unique()) - {"confusion"}
    return {
        "dataset": sorted(frame["dataset"].dropna().unique()),
        "method": sorted(frame["method"].dropna().unique()),
        "protocol": sorted({*protocols["protocol"], *variants}),
        "metric": sorted(metrics),
        "stage": list(get_args(Stage)),
    }
