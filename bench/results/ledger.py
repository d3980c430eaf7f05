"""The Parquet ledger: the rows of each trial and place in a sweep, written whole or not at all.

A run writes one small file per record; `bench compact` merges them into large ones (see `compact`). Names say
everything that scheduling asks (see `listing`), so that one directory listing answers it. No lock, any number of
writers; nothing half-written is ever read, as a file is written under a name that readers pass over (a leading dot,
another ending) and then renamed.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench import mirror
from bench.errors import UnknownName
from bench.results import files
from bench.results.files import Depth, Part
from bench.results.listing import REMOVED, Entry, Listing, slug, take_listing, version, within
from bench.results.schema import SCHEMA, Membership, Stage, Status

if TYPE_CHECKING:
    import pandas as pd

_READERS = 4  # threads; reading small files is half waiting, half work that frees the interpreter
_BATCH = 128  # files that a thread reads before it drops what is not asked for
_ROUNDS = 100  # of reading, while files go because others take their place


class Reading(NamedTuple):
    """The ledger's rows, and one line per file that could not be used."""

    frame: "pd.DataFrame"
    problems: list[str]


class Ledger:
    """The ledger of a results folder; the folder is made by the first write."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "ledger"

    def listing(self, prefix: str = "") -> Listing:
        """List the folder once, or its records whose names start so; 20,000 files take a fraction of a second."""
        return take_listing(self.folder, prefix, files.members)

    def status(
        self, trial_id: str, sweep: str | None = None, sweep_id: str | None = None, configuration: str | None = None
    ) -> Status | None:
        """`Listing.status` of a fresh listing; to ask about many trials, take one `listing()`."""
        return self.listing(f"{trial_id}.").status(trial_id, sweep, sweep_id, configuration)

    def membership(self, sweep: str, stage: Stage, sweep_id: str | None = None) -> dict[str, Status]:
        """`Listing.membership` of a fresh listing."""
        return self.listing().membership(sweep, stage, sweep_id)

    def next_generation(self, trial_id: str) -> int:
        """A generation beyond all of the trial's records."""
        return 1 + max((entry.generation for entry in self.listing(f"{trial_id}.").records), default=-1)

    def write(self, table: Any, generation: int = 0) -> Path:
        """Write the rows of one trial (see `rows_table`) and return the file's path.

        Takes the place of what was recorded for the same trial, sweep and stage; `generation` is that of the record
        at least, for a writer that may not have all records at hand. Raises ValueError for a
        table that is not of the ledger's schema or holds several trials.
        """
        entry = self._entry(table)
        self.folder.mkdir(parents=True, exist_ok=True)
        return self._record(entry, entry.status, table, generation)

    def adopt(self, trial_id: str, membership: Membership, *, objective: float | None = None) -> Path | None:
        """Record a finished trial under another sweep or stage: its rows, copied, with `reused` true.

        Costs stay as they were measured. `objective` replaces the trial's where the new sweep weighs its
        validation scores differently. Returns the new file, the present one if the place is taken by a
        finished trial already, None if the trial is finished nowhere (or its file cannot be read).
        """
        finished = [entry for entry in self._of_trial(trial_id) if entry.status == "finished"]
        for entry in finished:
            there = entry.stage == membership.stage and entry.configuration == slug(membership.configuration)
            if there and within(entry, membership.sweep, membership.sweep_id):
                return entry.path
        for entry in finished:
            table = self._table(entry)
            if not isinstance(table, str):
                return self.write(_moved(table, membership, objective))
        return None

    def recorded(self, trial_id: str, column: str) -> Any:
        """What the trial's most final record says of itself: a column that is the same on all its rows.

        Raises OSError where there is none, or none that can be read.
        """
        for entry in self._of_trial(trial_id):
            table = self._table(entry)
            if isinstance(table, str):
                raise OSError(table)
            return table[column][0].as_py()
        raise FileNotFoundError(f"{self.folder}: no record of trial {trial_id}")

    def renew(self, sweep: str, sweep_id: str) -> None:
        """Make a version of a sweep the one recorded last, where another is; its rows stay as they are otherwise."""
        entries = [entry for entry in self.listing().entries if within(entry, sweep, None)]
        own = [entry for entry in entries if entry.stage == "search" and within(entry, sweep, sweep_id)]
        table = self._table(own[0]) if own and len({entry.version for entry in entries}) > 1 else ""
        if not isinstance(table, str):
            self.write(_with_columns(table, {"recorded_at": datetime.now(UTC)}))

    def remove(self, trial_id: str, *, sweep: str | None = None, status: Status | None = None) -> int:
        """Forget a trial, or only its records in `sweep` or with `status`; returns the number of records removed."""
        entries = [
            entry for entry in self._of_trial(trial_id) if within(entry, sweep, None) and status in (None, entry.status)
        ]
        for entry in entries:  # said in a file: a compaction that has read the record already may still write it
            self._record(entry, REMOVED, SCHEMA.empty_table())
        return len(entries)

    def read(
        self,
        sweep: str | None = None,
        columns: Sequence[str] | None = None,
        *,
        depth: Depth = "all",
        searched: "Callable[[pd.DataFrame], Collection[str]] | None" = None,
    ) -> Reading:
        """Read the rows of all sweeps or one into a typed frame; a file that cannot be read is a problem line.

        `columns` keeps only those (`param.*` columns come where `swept_numbers` and `swept_texts` are among
        them, as they are by default); `depth` only each trial's first row, or that and its test scores, which is what
        leaderboards need. With `searched`, which says from a frame of first rows which trials of the search matter,
        the other trials of the search have their first row only. Swept numbers become float64, swept booleans
        `boolean`, texts strings. Ordered by sweep, version, stage, trial and configuration. A missing folder gives an
        empty frame of the same types.
        """
        unknown = set(columns or ()) - set(SCHEMA.names)
        if unknown:
            raise UnknownName("ledger column", min(unknown), SCHEMA.names)
        from bench.results.frames import to_frame  # imports pandas, which listing and writing do without

        rows = _Rows(self, sweep, columns)
        if searched is None:
            frame = to_frame(rows.read(lambda _: depth))
        else:
            frame = to_frame(rows.read(lambda entry: depth if entry.stage == "confirm" else "first"))
            matter = set(searched(frame))
            if matter:
                deep = rows.read(lambda e: depth if e.stage == "confirm" or e.trial_id in matter else "first")
                frame = to_frame(deep)
        strangers = [f"{path}: not a ledger file: its name does not say which trial" for path in rows.listing.strangers]
        return Reading(frame, [*strangers, *rows.listing.problems, *rows.problems])

    def _entry(self, table: Any) -> Entry:
        """The record that a table is, without a generation yet."""
        if not table.schema.equals(SCHEMA):
            raise ValueError("the table is not of the ledger's schema; build it with rows_table")
        keys = ("trial_id", "sweep", "sweep_id", "stage", "configuration", "status")
        values = {key: pc.unique(table[key]).to_pylist() for key in keys}
        if any(len(value) != 1 for value in values.values()):
            raise ValueError("a ledger file holds exactly one trial in one sweep and stage")
        trial_id, sweep, sweep_id, stage, configuration, status = (values[key][0] for key in keys)
        return Entry(self.folder, trial_id, slug(sweep), version(sweep_id), stage, slug(configuration), status)

    def _record(self, place: Entry, status: str, table: Any, least: int = 0) -> Path:
        """Write the next record of a place; then clear away the files of those before it."""
        there = [entry for entry in self.listing(f"{place.trial_id}.").records if entry.place == place.place]
        new = place.born(self.folder, status, max([least, *(entry.generation + 1 for entry in there)]))
        files.write_file(table, new.path)
        # Only now: a kill between the two leaves both, and listings believe the one of the higher generation.
        self._discard(entry for entry in there if entry.span is None)
        return new.path

    def _of_trial(self, trial_id: str) -> list[Entry]:
        return list(self.listing(f"{trial_id}.").entries)

    def _table(self, entry: Entry) -> Any:
        """A record's table, or one line that says why it cannot be read; it may be compacted meanwhile."""
        for _ in range(_ROUNDS):
            try:
                return files.read_record(entry)
            except FileNotFoundError:
                again = [other for other in self._of_trial(entry.trial_id) if other.place == entry.place]
                if not again:
                    break
                entry = again[0]
        return f"{entry.path}: removed while it was read"

    def _discard(self, entries: Iterable[Entry]) -> None:
        mirror.remove(*(entry.path for entry in entries))


_order = attrgetter("order")


class _Rows:
    """The rows of a ledger's records: what was read once is kept, for a reading that goes deeper, or once more.

    `listing` is the one that the last reading followed; `problems` a line per file that could not be read.
    """

    def __init__(self, ledger: Ledger, sweep: str | None, columns: Sequence[str] | None) -> None:
        self._ledger, self._sweep, self._columns = ledger, sweep, columns
        self._numbers: dict[tuple[str, Depth], int] = {}  # what was read of each record, in the parts
        self._parts: list[Part] = []
        self._next = 0
        self.listing = Listing()
        self.problems: list[str] = []

    def read(self, depth: Callable[[Entry], Depth]) -> Any:
        """The rows that a listing names, in order: where files go meanwhile, list again and read what has come."""
        for _ in range(_ROUNDS):
            self.listing = self._ledger.listing()
            chosen = sorted((e for e in self.listing.counting if within(e, self._sweep, None)), key=_order)
            keys = [(entry.name, depth(entry)) for entry in chosen]
            new = [(entry, key) for entry, key in zip(chosen, keys, strict=True) if key not in self._numbers]
            if not self._add(new):
                break
        self.problems = list(dict.fromkeys(line for part in self._parts for line in part.problems))
        self.problems += [f"{e.path}: removed while it was read" for e, key in new if key not in self._numbers]
        return _in_order(self._parts, [self._numbers[key] for key in keys if key in self._numbers], self._columns)

    def _add(self, new: Sequence[tuple[Entry, tuple[str, Depth]]]) -> bool:
        """Read records; whether files of some have gone."""
        gone: set[int] = set()
        for depth in get_args(Depth):
            some = [(entry, key) for entry, key in new if key[1] == depth]
            parts = _read([entry for entry, _ in some], self._next, self._columns, depth=depth)
            gone |= {number for part in parts for number in part.gone}
            self._parts += parts
            self._numbers |= {key: self._next + at for at, (_, key) in enumerate(some) if self._next + at not in gone}
            self._next += len(some)
        return bool(gone)


def _read(entries: Sequence[Entry], first: int, columns: Sequence[str] | None, *, depth: Depth) -> list[Part]:
    """Read records, numbered from `first`: small files by threads, compacted files one by one (each in threads)."""
    single = [number for number, entry in enumerate(entries) if entry.span is None]
    together: dict[Path, list[int]] = {}
    for number, entry in enumerate(entries):
        if entry.span is not None:
            together.setdefault(entry.path, []).append(number)

    def batch(some: Sequence[int]) -> Part:
        return files.read_files([entries[n] for n in some], [first + n for n in some], columns, depth=depth)

    with ThreadPoolExecutor(_READERS) as pool:
        parts = list(pool.map(batch, (single[at : at + _BATCH] for at in range(0, len(single), _BATCH))))
    for path, some in together.items():
        numbers = [first + n for n in some]
        parts.append(files.read_members(path, [entries[n] for n in some], numbers, columns, depth=depth))
    return parts


def _in_order(parts: Sequence[Part], wanted: Sequence[int], columns: Sequence[str] | None) -> Any:
    """The rows of the wanted records, in their order."""
    table = pa.concat_tables([files.empty(columns), *(part.table for part in parts)])
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *(part.rows for part in parts)])
    rank = np.full(max([*wanted, rows.max(initial=-1)]) + 1 if wanted or rows.size else 0, -1, dtype=np.int64)
    rank[np.asarray(wanted, dtype=np.int64)] = np.arange(len(wanted))
    place = rank[rows]
    if (place < 0).any():
        table, place = table.filter(pa.array(place >= 0)), place[place >= 0]
    if (np.diff(place) >= 0).all():
        return table
    return table.unify_dictionaries().take(pa.array(np.argsort(place, kind="stable")))


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
