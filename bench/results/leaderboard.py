"""From ledger rows to leaderboards: what is shown, what it is compared with, and what it cost.

A leaderboard ranks configurations that were chosen on validation by their test scores. It never chooses by a test
score: while a sweep has no confirmed trials, it shows the one search trial with the best validation objective.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.errors import UnknownName
from bench.results.frames import COMPARISON, LEADERBOARD, PARAM, typed_frame
from bench.results.statistics import Difference, average_ranks, mean_over_seeds, paired, paired_over_datasets, ties

COLUMNS = tuple(  # what of the ledger a leaderboard needs: reading only these is twice as fast
    """trial_id sweep sweep_id stage configuration role configuration_id method encoder seed draw status error
    error_file reused recorded_at dataset protocol variant split metric headline value samples low high objective
    config swept_numbers swept_texts device_seconds images_per_second peak_memory_bytes""".split()  # noqa: SIM905
)
_SCORES = "configuration protocol variant dataset metric seed value low high samples".split()  # noqa: SIM905
ROLES = ("baseline", "best", "control")  # the order in which the leading candidate is compared with them
Heads = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Best:
    """A candidate's best configuration: the highest validation objective among its finished search trials."""

    candidate: str
    configuration_id: str
    draw: int | None
    objective: float
    swept: dict[str, Any]


def sweeps(frame: pd.DataFrame) -> list[str]:
    """The names of the sweeps in a ledger frame, in order."""
    return sorted(frame["sweep"].unique())


def of_sweep(frame: pd.DataFrame, sweep: str) -> pd.DataFrame:
    """The rows of the newest version of a sweep (the one recorded last). Raises UnknownName."""
    rows = frame[frame["sweep"] == sweep]
    if rows.empty:
        raise UnknownName("sweep with results", sweep, sweeps(frame))
    recorded = rows.groupby("sweep_id")["recorded_at"].max().reset_index()
    newest = recorded.sort_values(["recorded_at", "sweep_id"])["sweep_id"].iloc[-1]
    wanted = [name for name in frame if name in COLUMNS or str(name).startswith(PARAM)]
    chosen: pd.DataFrame = rows.loc[rows["sweep_id"] == newest, wanted]
    return chosen


def search_bests(frame: pd.DataFrame, sweep: str) -> list[Best]:
    """Each candidate's best finished configuration by validation objective (mean over its seeds), the best first."""
    rows = of_sweep(frame, sweep)
    found = _trials(rows[(rows["stage"] == "search") & (rows["status"] == "finished")]).dropna(subset="objective")
    bests = [_best(str(name), trials) for name, trials in found.groupby("configuration", sort=True)]
    return sorted(bests, key=lambda best: -best.objective)


def _best(candidate: str, trials: pd.DataFrame) -> Best:
    groups = trials.groupby("configuration_id").agg(objective=("objective", "mean"), draw=("draw", "min"))
    groups = groups.reset_index().sort_values(["objective", "draw", "configuration_id"], ascending=[False, True, True])
    top = groups.iloc[0]
    trial = trials[trials["configuration_id"] == top["configuration_id"]].iloc[0]
    swept = {
        str(name).removeprefix(PARAM): trial[name]
        for name in trials.columns
        if str(name).startswith(PARAM) and not pd.isna(trial[name])
    }
    draw = None if pd.isna(top["draw"]) else int(top["draw"])
    return Best(candidate, str(top["configuration_id"]), draw, float(top["objective"]), swept)


def leaderboard(frame: pd.DataFrame, sweep: str, metric: str | None = None) -> pd.DataFrame:
    """The sweep's leaderboard as a tidy frame of the columns of `LEADERBOARD`.

    A row per configuration x protocol x variant x dataset, scored by each dataset's headline metric or by
    `metric`; where a configuration lacks what others have, its value is null. The objective's protocol first, best
    rank first. Controls come last and without a rank: they are what the rest is measured against.
    """
    shown = _shown(frame, sweep)
    scores = _scores(shown, metric)
    heads = _heads(shown)
    groups = _by_protocol(scores, _objective(shown))
    blocks = [_block(heads, rows, protocol, variant) for (protocol, variant), rows in groups]
    records = [record for block in blocks for record in block]
    return typed_frame(records, LEADERBOARD)


def comparison(frame: pd.DataFrame, sweep: str, metric: str | None = None) -> pd.DataFrame:
    """The leading candidate against each other configuration, paired over seeds: per dataset, then over all (null).

    The candidate that leads is the one with the highest validation objective in the search, of those that were
    confirmed without failing: test scores have no say in it.
    """
    shown = _shown(frame, sweep)
    candidates = shown[(shown["role"] == "best") & (shown["status"] == "finished")]
    if candidates.empty:
        return typed_frame([], COMPARISON)
    there = set(candidates["configuration"])
    leader = next((best.candidate for best in search_bests(frame, sweep) if best.candidate in there), min(there))
    best = candidates[candidates["configuration"] == leader]
    others = shown[shown["configuration"] != leader][["configuration", "role"]].drop_duplicates()
    head = {name: best[name].iloc[0] for name in ("sweep", "sweep_id", "configuration")}
    records = []
    for (protocol, variant), rows in _by_protocol(_scores(shown, metric), _objective(shown)):
        table = _by_configuration(rows)
        ours = table.get(head["configuration"], {})
        for name, role in sorted(
            others.itertuples(index=False, name=None), key=lambda pair: (ROLES.index(pair[1]), pair)
        ):
            place = head | {"protocol": protocol, "variant": variant, "baseline": name, "role": role}
            theirs = table.get(name, {})
            common = sorted(set(ours) & set(theirs))
            records += [place | _gap(paired(ours[each], theirs[each]), each) for each in common]
            if common:
                records.append(place | _gap(paired_over_datasets(ours, theirs), None))
    return typed_frame(records, COMPARISON)


def trial_counts(frame: pd.DataFrame, sweep: str) -> dict[str, int]:
    """How many trials finished, were pruned, failed; and how many of them were reused: nothing was run for them.

    A trial in both stages counts once, by its most final status.
    """
    trials = _trials(of_sweep(frame, sweep)).groupby("trial_id").agg(status=("status", set), reused=("reused", "all"))
    finality = ("finished", "pruned", "failed")
    final = [next(status for status in finality if status in found) for found in trials["status"]]
    return {status: final.count(status) for status in finality} | {"reused": int(trials["reused"].sum())}


def failures(frame: pd.DataFrame, sweep: str) -> pd.DataFrame:
    """The failed trials, one row each: trial_id, stage, configuration, draw, seed, error, error_file."""
    rows = of_sweep(frame, sweep)
    columns = ["trial_id", "stage", "configuration", "draw", "seed", "error", "error_file"]
    failed: pd.DataFrame = rows.loc[rows["status"] == "failed", columns]
    once: pd.DataFrame = failed.drop_duplicates(["trial_id", "stage"]).sort_values(["stage", "trial_id"])
    return once.reset_index(drop=True)


def _shown(frame: pd.DataFrame, sweep: str) -> pd.DataFrame:
    """The rows of the trials that the leaderboard shows, each with a configuration's name and role."""
    rows = of_sweep(frame, sweep)
    bests = {best.candidate: best for best in search_bests(frame, sweep)}
    confirm = rows[rows["stage"] == "confirm"]
    if not confirm.empty:
        return _one_meaning_per_name(confirm, bests)
    chosen = rows[(rows["status"] == "finished") & (rows["stage"] == "search")]
    wanted = chosen["configuration_id"] == chosen["configuration"].map(
        {name: best.configuration_id for name, best in bests.items()}
    )
    return chosen[wanted].assign(role="best")


def _one_meaning_per_name(rows: pd.DataFrame, bests: Mapping[str, Best]) -> pd.DataFrame:
    """Keep one configuration id per name: the search's best for a candidate, otherwise the one recorded last.

    A search that went on can have found another best after the first was confirmed.
    """
    kept = []
    for name, group in rows.groupby("configuration", sort=True):
        wanted = group.sort_values(["recorded_at", "configuration_id"])["configuration_id"].iloc[-1]
        best = bests.get(str(name))
        if best is not None and best.configuration_id in set(group["configuration_id"]):
            wanted = best.configuration_id
        kept.append(group[group["configuration_id"] == wanted])
    together: pd.DataFrame = pd.concat(kept)
    return together


def _scores(shown: pd.DataFrame, metric: str | None) -> pd.DataFrame:
    """The test rows that a leaderboard scores by; finished trials only."""
    wanted = shown["headline"] if metric is None else shown["metric"] == metric
    wanted &= (shown["split"] == "test") & (shown["status"] == "finished") & shown["value"].notna()
    scores: pd.DataFrame = shown.loc[wanted, _SCORES]
    return scores


def _objective(shown: pd.DataFrame) -> str:
    """The protocol that the configurations were chosen by."""
    config = json.loads(str(shown["config"].iloc[0])) if len(shown) else {}
    return str(config.get("objective", "linear"))


def _by_protocol(rows: pd.DataFrame, objective: str) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """The rows by protocol and variant: the objective's first, then linear, k=20 before k=200."""
    groups = [((str(key[0]), str(key[1])), group) for key, group in rows.groupby(["protocol", "variant"])]
    return sorted(groups, key=lambda item: _place(item[0], objective))


def _place(group: tuple[str, str], objective: str) -> tuple[Any, ...]:
    protocol, variant = group
    return protocol != objective, protocol != "linear", protocol, len(variant), variant


def _by_configuration(rows: pd.DataFrame) -> dict[str, dict[str, dict[int, float]]]:
    """Scores by configuration, dataset and seed."""
    table: dict[str, dict[str, dict[int, float]]] = {}
    columns = ("configuration", "dataset", "seed", "value")
    for name, dataset, seed, value in rows[list(columns)].itertuples(index=False, name=None):
        table.setdefault(name, {}).setdefault(dataset, {})[int(seed)] = float(value)
    return table


def _block(heads: Heads, rows: pd.DataFrame, protocol: str, variant: str) -> list[dict[str, Any]]:
    """The leaderboard's records of one protocol and variant."""
    table = _by_configuration(rows)
    means = {
        name: {dataset: mean_over_seeds(scores.values()).mean for dataset, scores in by_dataset.items()}
        for name, by_dataset in table.items()
    }
    rivals = [name for name in heads if heads[name]["role"] != "control"]  # controls are shown, not ranked
    ranks = average_ranks({name: means.get(name, {}) for name in rivals})
    order = sorted(heads, key=lambda name: (name not in rivals, _nan_last(ranks.get(name, math.nan)), name))
    records: list[dict[str, Any]] = []
    for dataset in sorted(rows["dataset"].unique()):
        verdicts = ties({name: table.get(name, {}).get(dataset, {}) for name in rivals})
        top = max((means[name][dataset] for name in verdicts), default=math.nan)
        for name in order:
            place = {"protocol": protocol, "variant": variant, "dataset": dataset, "rank": ranks.get(name)}
            here = rows[(rows["dataset"] == dataset) & (rows["configuration"] == name)]
            best = {"best": name in rivals and means.get(name, {}).get(dataset) == top, "tie": verdicts.get(name)}
            records.append(heads[name] | place | best | _cell(here))
    return sorted(records, key=lambda record: order.index(record["configuration"]))


def _cell(rows: pd.DataFrame) -> dict[str, Any]:
    """One configuration's score on one dataset, from its rows (one per seed); nothing where there are none."""
    rows = rows.drop_duplicates("seed")
    if rows.empty:
        return {"seeds": 0}
    over = mean_over_seeds(rows["value"])
    cell = {
        "metric": rows["metric"].iloc[0],
        "value": over.mean,
        "seeds": over.seeds,
        "samples": rows["samples"].iloc[0],
    }
    if over.seeds > 1:
        return cell | {"low": over.low, "high": over.high, "interval": over.label}
    low, high = rows["low"].iloc[0], rows["high"].iloc[0]
    kind = "one seed" if pd.isna(low) else "one seed: bootstrap over test samples"
    return cell | {"low": low, "high": high, "interval": kind}


def _heads(shown: pd.DataFrame) -> Heads:
    """What identifies each configuration, and what its finished trials cost on average."""
    heads: Heads = {}
    same = ("sweep", "sweep_id", "stage", "configuration", "role", "configuration_id", "method", "encoder")
    mean = ("objective", "device_seconds", "images_per_second", "peak_memory_bytes")
    for name, group in shown.groupby("configuration", sort=True):
        finished = _trials(group[group["status"] == "finished"])
        identity = {column: group[column].iloc[0] for column in same}
        heads[str(name)] = identity | {column: finished[column].astype(float).mean() for column in mean}
    return heads


def _trials(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per trial and stage."""
    return rows.drop_duplicates(["trial_id", "stage", "configuration"])


def _gap(gap: Difference, dataset: str | None) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "difference": gap.mean,
        "low": gap.low,
        "high": gap.high,
        "p_value": gap.p_value,
        "interval": gap.label,
        "seeds": gap.seeds,
        "missing": gap.missing,
        "datasets": gap.datasets,
        "separated": gap.separated,
    }


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
