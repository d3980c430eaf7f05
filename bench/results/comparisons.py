"""The leading candidate against every other configuration, paired over seeds and corrected for their number."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from bench.results.frames import typed_frame
from bench.results.leaderboard import by_configuration, protocol_scores
from bench.results.selection import NO_FILTERS, Filters, Selection, select
from bench.results.statistics import CONFIDENCE, Difference, Scores, holm, paired, paired_over_datasets

COMPARISON: Any = pa.schema(
    [
        ("sweep", pa.string()),
        ("sweep_id", pa.string()),
        ("protocol", pa.string()),
        ("variant", pa.string()),
        ("metric", pa.string()),  # null: each dataset's headline metric
        ("configuration", pa.string()),
        ("baseline", pa.string()),
        ("role", pa.string()),  # the baseline's
        ("dataset", pa.string()),  # null: over all datasets
        ("difference", pa.float64()),  # configuration minus baseline, fraction
        ("low", pa.float64()),  # 95 % interval of this comparison alone
        ("high", pa.float64()),
        ("p_value", pa.float64()),  # of this comparison alone
        ("p_adjusted", pa.float64()),  # Holm's, over `comparisons`
        ("comparisons", pa.int64()),  # how many were tested together: all but controls, or the controls
        ("interval", pa.string()),
        ("seeds", pa.int64()),
        ("missing", pa.int64()),  # seeds without a pair
        ("datasets", pa.int64()),
        ("separated", pa.bool_()),  # p_adjusted below 5 %; null where it cannot be told
    ]
)
Table = Mapping[str, Mapping[str, Scores]]  # by configuration, dataset, seed


def comparison(frame: pd.DataFrame, sweep: str, filters: Filters = NO_FILTERS) -> pd.DataFrame:
    """The leading candidate minus each other configuration: per dataset, then over all (dataset null).

    The candidate that leads is the one with the highest validation objective in the search, of those that were
    confirmed without failing: test scores have no say in it. What the sweep asks comes first: the other candidates, the
    next best on validation first, then baselines, then controls. Empty where a filter hides the leader.
    """
    return compared(select(frame, sweep, filters), filters)


def compared(selection: Selection, filters: Filters = NO_FILTERS) -> pd.DataFrame:
    """`comparison` of a selection."""
    others = _others(selection)
    kept = {name for name, (role, method) in others.items() if role == "control" or _shown(method, filters)}
    leaders = selection.shown.loc[selection.shown["configuration"] == selection.leader]
    if leaders.empty or not _shown(leaders["method"].iloc[0], filters):
        return typed_frame([], COMPARISON)
    head = {name: leaders[name].iloc[0] for name in ("sweep", "sweep_id", "configuration")}
    records = []
    for metric in filters.metrics or (None,):
        for (protocol, variant), rows in protocol_scores(selection, filters, metric):
            place = head | {"protocol": protocol, "variant": variant, "metric": metric}
            gaps = _adjusted(_gaps(by_configuration(rows), str(selection.leader), others))
            records += [place | gap for gap in gaps if gap["baseline"] in kept]
    return typed_frame(records, COMPARISON)


def _shown(method: str, filters: Filters) -> bool:
    return not filters.methods or method in filters.methods


def _others(selection: Selection) -> dict[str, tuple[str, str]]:
    """Role and method of all but the leader, in the order of `comparison`."""
    columns = ["configuration", "role", "method"]
    rows = selection.shown[columns].drop_duplicates("configuration")
    places = {best.candidate: place for place, best in enumerate(selection.bests)}
    roles = ("best", "baseline", "control")
    found = sorted(
        (roles.index(role), places.get(name, len(places)), name, method)
        for name, role, method in rows.itertuples(index=False, name=None)
        if name != selection.leader
    )
    return {name: (roles[role], method) for role, _, name, method in found}


def _gaps(table: Table, leader: str, others: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """One protocol's differences: leader minus each other, per dataset and over all."""
    ours = table.get(leader, {})
    records: list[dict[str, Any]] = []
    for name, (role, _) in others.items():
        theirs = table.get(name, {})
        common = sorted(set(ours) & set(theirs))
        rows: list[tuple[Difference, str | None]] = [(paired(ours[each], theirs[each]), each) for each in common]
        rows += [(paired_over_datasets(ours, theirs), None)] if common else []
        records += [{"baseline": name, "role": role, "dataset": dataset} | _record(gap) for gap, dataset in rows]
    return records


def _adjusted(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adjust the p-values of each dataset's comparisons together; those with controls are a family of their own."""
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        families.setdefault((record["dataset"], record["role"] == "control"), []).append(record)
    for family in families.values():
        p_values = [record["p_value"] for record in family]
        tested = sum(not math.isnan(p) for p in p_values)
        for record, p in zip(family, holm(p_values), strict=True):
            separated = None if math.isnan(p) else p < 1 - CONFIDENCE
            record.update(p_adjusted=p, comparisons=tested, separated=separated)
    return records


def _record(gap: Difference) -> dict[str, Any]:
    return {
        "difference": gap.mean,
        "low": gap.low,
        "high": gap.high,
        "p_value": gap.p_value,
        "interval": gap.label,
        "seeds": gap.seeds,
        "missing": gap.missing,
        "datasets": gap.datasets,
    }
