"""The trials that the page shows in detail: which, and everything that was recorded of each."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bench import mirror
from bench.errors import short
from bench.results import wording
from bench.results.files import read_record
from bench.results.findings import Findings
from bench.results.frames import PARAM, rows_of
from bench.results.ledger import Ledger
from bench.results.listing import Entry, version
from bench.results.selection import trials_of
from bench.safe import pretty_json

MOST_DETAILS = 240  # trials in detail on a page, over all its sweeps
LEAST_DETAILS = 24  # of one sweep, however many sweeps there are
LARGEST_FACTS = 4_000_000  # bytes of a trial.json that are read

_PROVENANCE = tuple(
    """git_commit git_dirty versions device host pretrain_dataset epochs epochs_planned workers wall_seconds
    device_seconds images_per_second peak_memory_bytes encoder_parameters pretext started_at finished_at""".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix of counts `[K][K]`, true by predicted, on test."""

    dataset: str
    protocol: str
    variant: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Detail:
    """One trial in full. `facts` are the ledger's columns; `curves` its epochs; `files` its files below the results."""

    trial_id: str
    anchor: str
    configuration: str
    stage: str
    status: str
    method: str
    seed: int
    draw: int | None
    objective: float | None
    swept: Mapping[str, Any]
    error: str
    config: str  # as recorded
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    curves: tuple[Mapping[str, Any], ...] = ()
    confusions: tuple[Confusion, ...] = ()
    chosen: Mapping[str, str] = field(default_factory=dict)  # by dataset fingerprint: of the linear probe

    @property
    def label(self) -> str:
        """`simclr, draw 3`, `simclr, seed 1`."""
        number = f"draw {self.draw}" if self.draw is not None else f"seed {self.seed}"
        return f"{self.configuration}, {number}"

    @property
    def pretty(self) -> str:
        """The configuration, indented."""
        return pretty_json(self.config)


def pick(found: Findings, most: int) -> list[Any]:
    """The rows (one per trial) of the `most` trials that matter most.

    Those on the leaderboard come first, then the failed, then the others by their validation objective.
    """
    shown = set(found.selection.shown["trial_id"])
    trials = trials_of(found.selection.rows).drop_duplicates("trial_id")
    objective = trials["objective"].astype(float).fillna(-1.0)
    place = trials["trial_id"].isin(shown) * -2 + (trials["status"] == "failed") * -1
    columns = ["place", "known", "configuration", "seed", "draw", "trial_id"]
    ranked = trials.assign(place=place, known=-objective * (place != -2)).sort_values(columns)
    rows: list[Any] = rows_of(ranked.head(most))
    return rows


def details(found: Findings, out: Path | None, most: int) -> list[Detail]:
    """The sweep's trials in detail; `out` is the results' folder, None where there is only a frame."""
    rows = pick(found, most)
    records = _records(out, found, [row.trial_id for row in rows]) if out else {}
    swept = [name for name in found.selection.rows if str(name).startswith(PARAM)]
    frame = trials_of(found.selection.rows).drop_duplicates("trial_id").set_index("trial_id")[swept]
    return [_detail(row, dict(frame.loc[row.trial_id]), records.get(row.trial_id, []), out) for row in rows]


def anchor(trial_id: str) -> str:
    """What the page's links to a trial name."""
    return "trial-" + re.sub(r"[^0-9A-Za-z]", "", trial_id)[:16]


def _records(out: Path, found: Findings, wanted: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """All ledger rows of the wanted trials in the sweep's version that is shown; unreadable records are left out."""
    known, tag = set(wanted), version(str(found.selection.rows["sweep_id"].iloc[0]))
    rows: dict[str, list[dict[str, Any]]] = {}
    for entry in _newest(Ledger(out).listing().entries, known, tag):
        try:
            table = read_record(entry)
        except OSError:
            continue
        if not isinstance(table, str) and entry.trial_id not in rows:
            rows[entry.trial_id] = [row for row in table.to_pylist() if row["split"] != "val"]
    return rows


def _newest(entries: Iterable[Entry], known: set[str], tag: str) -> list[Entry]:
    """The records of known trials in one version of a sweep, those of the confirm stage first."""
    return sorted(
        (entry for entry in entries if entry.trial_id in known and entry.version == tag), key=lambda entry: entry.stage
    )


def _detail(row: Any, swept: Mapping[str, Any], record: list[dict[str, Any]], out: Path | None) -> Detail:
    first = record[0] if record else {name: getattr(row, name, None) for name in _PROVENANCE}
    folder = _folder(first, out)
    error_file = None if pd.isna(row.error_file) else str(row.error_file)
    return Detail(
        trial_id=str(row.trial_id),
        anchor=anchor(str(row.trial_id)),
        configuration=str(row.configuration),
        stage=str(row.stage),
        status=str(row.status),
        method=str(row.method),
        seed=int(row.seed),
        draw=None if pd.isna(row.draw) else int(row.draw),
        objective=None if pd.isna(row.objective) else float(row.objective),
        swept={name.removeprefix(PARAM): value for name, value in swept.items() if not pd.isna(value)},
        error="" if pd.isna(row.error) else short(str(row.error)),
        config=str(row.config),
        facts=_facts(first),
        files=tuple([error_file] if error_file else []) + (_files(folder, out) if folder and out else ()),
        curves=_curves(folder) if folder else (),
        confusions=tuple(_confusions(record)),
        chosen=_chosen(record),
    )


def _facts(first: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of how the trial ran, by name, as text."""
    values = {name: first.get(name) for name in _PROVENANCE}
    write: dict[str, Callable[[Any], str]] = {
        "wall_seconds": wording.duration,
        "device_seconds": wording.duration,
        "peak_memory_bytes": wording.memory,
        "images_per_second": lambda value: f"{value:,.0f}",
        "encoder_parameters": lambda value: f"{value:,}",
        "versions": _pairs,
        "pretext": _pairs,
        "started_at": lambda value: f"{value:%Y-%m-%d %H:%M:%S} UTC",
        "finished_at": lambda value: f"{value:%Y-%m-%d %H:%M:%S} UTC",
    }
    known = {name: value for name, value in values.items() if value is not None and not pd.isna(value)}
    return {name.replace("_", " "): write.get(name, wording.visible)(value) for name, value in known.items()}


def _pairs(text: Any) -> str:
    """A JSON object as `torch 2.14.1, ray 2.60.0`."""
    try:
        return ", ".join(f"{name} {wording.number(value)}" for name, value in json.loads(text).items())
    except (ValueError, AttributeError, TypeError):
        return wording.visible(text)


def _folder(first: Mapping[str, Any], out: Path | None) -> Path | None:
    """The trial's folder, where its name is a hash and it exists."""
    name = str(first.get("pretrain_id") or "")[:16]
    folder = out / "trials" / name if out and re.fullmatch("[0-9a-f]{16}", name) else None
    if folder:
        mirror.refresh(folder, without=".safetensors")  # weights are fetched where a picture needs them
    return folder if folder and folder.is_dir() else None


def _files(folder: Path, out: Path) -> tuple[str, ...]:
    return tuple((folder / name).relative_to(out).as_posix() for name in mirror.names(folder))


def _curves(folder: Path) -> tuple[Mapping[str, Any], ...]:
    """The epochs of trial.json; none where it is damaged."""
    path = folder / "trial.json"
    try:
        if path.stat().st_size > LARGEST_FACTS:
            return ()
        epochs = json.loads(path.read_bytes())["epochs"]
        return tuple(epoch for epoch in epochs if isinstance(epoch, Mapping) and isinstance(epoch["losses"], Mapping))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ()


def _confusions(record: list[dict[str, Any]]) -> Iterable[Confusion]:
    for row in record:
        classes, flat = row["classes"] or (), row["confusion"] or ()
        if row["split"] == "test" and classes and len(flat) == len(classes) ** 2:
            size = len(classes)
            counts = tuple(tuple(flat[start : start + size]) for start in range(0, len(flat), size))
            yield Confusion(row["dataset"], row["protocol"], row["variant"] or "", tuple(classes), counts)


def _chosen(record: list[dict[str, Any]]) -> dict[str, str]:
    rows = [row for row in record if row["protocol"] == "linear" and row["split"] == "test"]
    return {str(row["dataset_fingerprint"]): str(row["chosen"]) for row in rows}
