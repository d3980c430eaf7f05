"""The Parquet ledger: one small file per trial and place in a sweep, written whole or not at all.

A file's name says everything that scheduling asks, so that one directory listing answers it:
`TRIAL.SWEEP.VERSION.STAGE.CONFIGURATION.STATUS.parquet`, where SWEEP and CONFIGURATION are names made safe for file
names and VERSION is the first 12 letters of the sweep's id. No lock, any number of writers; nothing
half-written is ever read, as a file is written under a name that readers pass over (a leading dot, another ending)
and then renamed.
"""

import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.errors import UnknownName
from bench.results.schema import SCHEMA, SCHEMA_VERSION, Membership, Stage, Status

if TYPE_CHECKING:
    import pandas as pd

_NAME = re.compile(
    rf"(?P<trial_id>[0-9A-Za-z]+)\.(?P<sweep>[^.]+)\.(?P<version>[^.]+)"
    rf"\.(?P<stage>{'|'.join(get_args(Stage))})\.(?P<configuration>[^.]+)\.(?P<status>{'|'.join(get_args(Status))})\.parquet"
)
_FINALITY: tuple[Status, ...] = ("finished", "pruned", "failed")  # the first outweighs the later
_READERS = 4  # threads; reading small files is half waiting, half work that frees the interpreter


@dataclass(frozen=True)
class Entry:
    """One ledger file, known from its name alone; `sweep` and `version` are as they stand in the name."""

    path: Path
    trial_id: str
    sweep: str
    version: str
    stage: Stage
    configuration: str
    status: Status

    @property
    def place(self) -> tuple[str, ...]:
        """What may exist once: the trial and its place."""
        return self.trial_id, self.sweep, self.version, self.stage, self.configuration


class Reading(NamedTuple):
    """The ledger's rows, and one line per file that could not be used."""

    frame: "pd.DataFrame"
    problems: list[str]


@dataclass(frozen=True)
class Listing:
    """What the ledger's folder held at one moment. Take one, ask it about any number of trials."""

    entries: tuple[Entry, ...]
    strangers: tuple[Path, ...] = ()  # *.parquet files whose names are no ledger file's

    def status(
        self, trial_id: str, sweep: str | None = None, sweep_id: str | None = None, configuration: str | None = None
    ) -> Status | None:
        """The trial's most final status, None where it is unknown.

        A finished trial is finished for everybody. With `sweep` (and `sweep_id`), a pruned or failed trial
        counts for that sweep (and version) only, and with `configuration` a pruned one for that candidate only,
        because pruning depends on the trials around it.
        """
        found = {
            entry.status
            for entry in self._by_trial.get(trial_id, ())
            if entry.status == "finished"
            or (
                _within(entry, sweep, sweep_id)
                and (entry.status == "failed" or configuration is None or entry.configuration == _slug(configuration))
            )
        }
        return next((status for status in _FINALITY if status in found), None)

    def membership(self, sweep: str, stage: Stage, sweep_id: str | None = None) -> dict[str, Status]:
        """The status of each trial recorded under a sweep's stage, by trial id."""
        members: dict[str, Status] = {}
        for entry in reversed(self.entries):  # the most final last
            if entry.stage == stage and _within(entry, sweep, sweep_id):
                members[entry.trial_id] = entry.status
        return members

    def finished(self) -> set[str]:
        """The ids of all finished trials."""
        return {entry.trial_id for entry in self.entries if entry.status == "finished"}

    @cached_property
    def _by_trial(self) -> dict[str, list[Entry]]:
        trials: dict[str, list[Entry]] = {}
        for entry in self.entries:
            trials.setdefault(entry.trial_id, []).append(entry)
        return trials


class Ledger:
    """The ledger of a results folder; the folder is made by the first write."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "ledger"

    def listing(self, prefix: str = "") -> Listing:
        """List the folder once, or its files whose names start so; 20,000 files take a fraction of a second."""
        entries, strangers = [], []
        for name in sorted(name for name in _parquet_names(self.folder) if name.startswith(prefix)):
            match = _NAME.fullmatch(name)
            if match:
                entries.append(Entry(path=self.folder / name, **match.groupdict()))  # type: ignore[arg-type]
            else:
                strangers.append(self.folder / name)
        entries.sort(key=lambda entry: _FINALITY.index(entry.status))
        return Listing(tuple(entries), tuple(strangers))

    def status(
        self, trial_id: str, sweep: str | None = None, sweep_id: str | None = None, configuration: str | None = None
    ) -> Status | None:
        """`Listing.status` of a fresh listing; to ask about many trials, take one `listing()`."""
        return self.listing(f"{trial_id}.").status(trial_id, sweep, sweep_id, configuration)

    def membership(self, sweep: str, stage: Stage, sweep_id: str | None = None) -> dict[str, Status]:
        """`Listing.membership` of a fresh listing."""
        return self.listing().membership(sweep, stage, sweep_id)

    def write(self, table: Any) -> Path:
        """Write the rows of one trial (see `rows_table`) and return the file's path.

        Takes the place of what was recorded for the same trial, sweep and stage. Raises ValueError for a
        table that is not of the ledger's schema or holds several trials.
        """
        entry = self._entry(table)
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_whole(table, entry.path)
        # Only now: a kill between the two leaves both, and the listing then believes the more final one.
        self._discard(other for other in self._of_trial(entry.trial_id) if _replaced(other, entry))
        return entry.path

    def adopt(self, trial_id: str, membership: Membership, *, objective: float | None = None) -> Path | None:
        """Record a finished trial under another sweep or stage: its rows, copied, with `reused` true.

        Costs stay as they were measured. `objective` replaces the trial's where the new sweep weighs its
        validation scores differently. Returns the new file, the present one if the place is taken by a
        finished trial already, None if the trial is finished nowhere (or its file cannot be read).
        """
        finished = [entry for entry in self._of_trial(trial_id) if entry.status == "finished"]
        for entry in finished:
            there = entry.stage == membership.stage and entry.configuration == _slug(membership.configuration)
            if there and _within(entry, membership.sweep, membership.sweep_id):
                return entry.path
        for entry in finished:
            table = _read_file(entry.path, None)
            if not isinstance(table, str):
                return self.write(_moved(table, membership, objective))
        return None

    def renew(self, sweep: str, sweep_id: str) -> None:
        """Make a version of a sweep the one recorded last, where another is; its rows stay as they are otherwise."""
        entries = [entry for entry in self.listing().entries if _within(entry, sweep, None)]
        own = [entry for entry in entries if entry.stage == "search" and _within(entry, sweep, sweep_id)]
        table = _read_file(own[0].path, None) if own and len({entry.version for entry in entries}) > 1 else ""
        if not isinstance(table, str):
            _write_whole(_with_columns(table, {"recorded_at": datetime.now(UTC)}), own[0].path)

    def remove(self, trial_id: str, *, sweep: str | None = None, status: Status | None = None) -> int:
        """Forget a trial, or only its records in `sweep` or with `status`; returns the number of files removed."""
        return self._discard(
            entry
            for entry in self._of_trial(trial_id)
            if _within(entry, sweep, None) and status in (None, entry.status)
        )

    def read(self, sweep: str | None = None, columns: Sequence[str] | None = None) -> Reading:
        """Read the rows of all sweeps or one into a typed frame; a file that cannot be read is a problem line.

        `columns` keeps only those (`param.*` columns come where `swept_numbers` and `swept_texts` are among
        them, as they are by default). Swept numbers become float64, swept booleans `boolean`, texts strings.
        A missing folder gives an empty frame of the same types.
        """
        unknown = set(columns or ()) - set(SCHEMA.names)
        if unknown:
            raise UnknownName("ledger column", min(unknown), SCHEMA.names)
        from bench.results.frames import to_frame  # imports pandas, which listing and writing do without

        listing = self.listing()
        chosen = [entry for entry in _deduplicated(listing.entries) if _within(entry, sweep, None)]
        with ThreadPoolExecutor(_READERS) as pool:
            read: Callable[[Path], Any] = partial(_read_file, columns=columns)
            results = list(pool.map(read, [entry.path for entry in chosen]))
        tables = [result for result in results if not isinstance(result, str)]
        problems = [f"{path}: not a ledger file: its name does not say which trial" for path in listing.strangers]
        problems += [result for result in results if isinstance(result, str)]
        empty = SCHEMA.empty_table() if columns is None else SCHEMA.empty_table().select(list(columns))
        return Reading(to_frame(pa.concat_tables([empty, *tables])), problems)

    def _entry(self, table: Any) -> Entry:
        if not table.schema.equals(SCHEMA):
            raise ValueError("the table is not of the ledger's schema; build it with rows_table")
        keys = ("trial_id", "sweep", "sweep_id", "stage", "configuration", "status")
        values = {key: pc.unique(table[key]).to_pylist() for key in keys}
        if any(len(value) != 1 for value in values.values()):
            raise ValueError("a ledger file holds exactly one trial in one sweep and stage")
        trial_id, sweep, sweep_id, stage, configuration, status = (values[key][0] for key in keys)
        parts = (trial_id, _slug(sweep), _version(sweep_id), stage, _slug(configuration), status)
        return Entry(self.folder / f"{'.'.join(parts)}.parquet", *parts)

    def _of_trial(self, trial_id: str) -> list[Entry]:
        return list(self.listing(f"{trial_id}.").entries)

    def _discard(self, entries: Iterable[Entry]) -> int:
        paths = [entry.path for entry in entries]
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)


def _slug(sweep: str) -> str:
    """A sweep's name as a part of a file name: unlike names give unlike slugs, also where case does not count."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", sweep.lower())[:60] or "-"
    # "~" is in no plain slug, so a changed name never meets an unchanged one.
    return plain if plain == sweep else f"{plain}~{hashlib.sha256(sweep.encode()).hexdigest()[:10]}"


def _version(sweep_id: str) -> str:
    """The short form of a sweep's id."""
    return _slug(sweep_id) if len(sweep_id) <= 12 else _slug(sweep_id[:12])


def _within(entry: Entry, sweep: str | None, sweep_id: str | None) -> bool:
    same_sweep = sweep is None or entry.sweep == _slug(sweep)
    return same_sweep and (sweep_id is None or entry.version == _version(sweep_id))


def _replaced(other: Entry, entry: Entry) -> bool:
    """Whether the new `entry` takes the place of `other`."""
    return other.place == entry.place and other.path != entry.path


def _deduplicated(entries: Iterable[Entry]) -> list[Entry]:
    """One entry per trial and place, the most final; ordered by file name."""
    kept: dict[tuple[str, ...], Entry] = {}
    for entry in entries:
        kept.setdefault(entry.place, entry)
    return sorted(kept.values(), key=lambda entry: entry.path.name)


def _parquet_names(folder: Path) -> Iterator[str]:
    """The names of the visible Parquet files; none where there is no folder."""
    try:
        with os.scandir(folder) as listing:
            for item in listing:
                if item.name.endswith(".parquet") and not item.name.startswith("."):
                    yield item.name
    except FileNotFoundError:
        return


def _write_whole(table: Any, path: Path) -> None:
    partial_path = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with partial_path.open("xb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)


def _read_file(path: Path, columns: Sequence[str] | None) -> Any:
    """The file's table, or one line that says why it cannot be used."""
    try:
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow
            if not found.equals(SCHEMA):
                version = (found.metadata or {}).get(b"version", b"unknown").decode(errors="replace")
                return f"{path}: not a ledger file of schema {SCHEMA_VERSION} (its version: {version})"
            table = file.read(columns=columns, use_threads=False)
            return table if columns is None else table.select(list(columns))
    except FileNotFoundError:
        return f"{path}: removed while the ledger was read"
    except (pa.ArrowException, OSError) as error:
        return f"{path}: cannot be read: {' '.join(str(error).split())}"


def _moved(table: Any, membership: Membership, objective: float | None) -> Any:
    """The rows of `table` under another membership."""
    changed = membership.columns() | {"reused": True, "recorded_at": datetime.now(UTC)}
    if objective is not None:
        changed["objective"] = objective
    return _with_columns(table, changed)


def _with_columns(table: Any, changed: Mapping[str, Any]) -> Any:
    """`table` with a value for all rows in each column of `changed`."""
    for name, value in changed.items():
        index = SCHEMA.get_field_index(name)
        column = pa.array([value] * table.num_rows, type=SCHEMA.field(index).type)
        table = table.set_column(index, SCHEMA.field(index), column)
    return pa.table(table.columns, schema=SCHEMA)
