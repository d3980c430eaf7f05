"""What a ledger's folder holds, known from file names and from the indexes of its compacted files.

A record is the rows of one trial in one place (sweep, version, stage, configuration). Its name denotes the same bytes
for ever: `TRIAL.SWEEP.VERSION.STAGE.CONFIGURATION.STATUS.GENERATION-LETTERS.parquet`. SWEEP and CONFIGURATION are names
made safe for file names, VERSION is the first 12 letters of the sweep's id, GENERATION grows with each record of a
place, LETTERS are random. (Files of before have neither of the last two: generation 0.) Of a place the record of the
highest generation counts, wherever it lies and however often. A record of status "removed" has no rows: it says that
what was recorded before is forgotten. So copies are counted once, and nothing depends on what was unlinked when.
"""

import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, get_args

from bench.results.schema import Stage, Status

REMOVED = "removed"
_NAME = re.compile(
    rf"([0-9A-Za-z]+)\.([^.]+)\.([^.]+)\.({'|'.join(get_args(Stage))})\.([^.]+)"
    rf"\.({'|'.join((*get_args(Status), REMOVED))})(?:\.([0-9]+)-([0-9a-z]+))?\.parquet"
)
_COMPACTED = re.compile(r"compact\.[0-9a-f]{12}\.parquet")
_FINALITY = ("finished", "pruned", "failed", REMOVED)  # the first outweighs the later
_LEAST = {status: -place for place, status in enumerate(_FINALITY)}


Span = tuple[int, ...]  # where a record's rows lie in a compacted file: see `compact.write_compacted`


class Entry(NamedTuple):
    """One record; `sweep`, `version`, `configuration` as they stand in the name; `span` in a compacted file only."""

    path: Path
    trial_id: str
    sweep: str
    version: str
    stage: str
    configuration: str
    status: str
    generation: int = 0
    letters: str = ""
    span: Span | None = None

    @property
    def place(self) -> tuple[str, ...]:
        """Of what one record counts: the trial and its place."""
        return self[1:6]

    @property
    def name(self) -> str:
        """The record's identity, also where it lies in a compacted file."""
        serial = f".{self.generation}-{self.letters}" if self.letters else ""
        return f"{'.'.join(self[1:7])}{serial}.parquet"

    @property
    def weight(self) -> tuple[int, int, str]:
        """Which of a place's records counts: the heaviest."""
        return self.generation, _LEAST[self.status], self.letters

    @property
    def order(self) -> tuple[str, ...]:
        """How records are ordered, in frames and in compacted files."""
        return self.sweep, self.version, self.stage, self.trial_id, self.configuration

    def follower(self, folder: Path, status: str) -> "Entry":
        """A new record of the same place that takes this one's."""
        return self.born(folder, status, self.generation + 1)

    def born(self, folder: Path, status: str, generation: int) -> "Entry":
        """A new record of the same place, with letters of its own."""
        new = self._replace(status=status, generation=generation, letters=uuid.uuid4().hex[:5], span=None)
        return new._replace(path=folder / new.name)


@dataclass(frozen=True)
class Listing:
    """What the ledger's folder held at one moment. Take one, ask it about any number of trials.

    `records` are all that were found, copies and outdated ones too; `strangers` are *.parquet files whose names are no
    ledger file's; `problems` says which compacted files cannot be used.
    """

    records: tuple[Entry, ...] = ()
    compacted: tuple[Path, ...] = ()
    strangers: tuple[Path, ...] = ()
    problems: tuple[str, ...] = ()

    @cached_property
    def newest(self) -> dict[tuple[str, ...], Entry]:
        """The record that counts of each place; of copies of one record a compacted one."""
        newest: dict[tuple[str, ...], Entry] = {}
        for entry in self.records:
            other = newest.setdefault(entry.place, entry)
            if other is not entry and (entry.weight, entry.span is not None) > (other.weight, other.span is not None):
                newest[entry.place] = entry
        return newest

    @cached_property
    def counting(self) -> list[Entry]:
        """The records that count and have rows, in no order."""
        return [entry for entry in self.newest.values() if entry.status != REMOVED]

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The records that count and have rows, the most final first."""
        return tuple(sorted(self.counting, key=lambda entry: (-_LEAST[entry.status], entry.name)))

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
                within(entry, sweep, sweep_id)
                and (entry.status == "failed" or configuration is None or entry.configuration == slug(configuration))
            )
        }
        return next((status for status in get_args(Status) if status in found), None)

    def membership(self, sweep: str, stage: Stage, sweep_id: str | None = None) -> dict[str, Status]:
        """The status of each trial recorded under a sweep's stage, by trial id."""
        members: dict[str, Status] = {}
        for entry in reversed(self.entries):  # the most final last
            if entry.stage == stage and within(entry, sweep, sweep_id):
                members[entry.trial_id] = entry.status  # type: ignore[assignment]
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


def parse_name(name: str, path: Path, span: Span | None = None) -> Entry | None:
    """The record of a name, None for a name that is no record's."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    trial_id, sweep, version, stage, configuration, status, generation, letters = match.groups()
    return Entry(
        path, trial_id, sweep, version, stage, configuration, status, int(generation or 0), letters or "", span
    )


def take_listing(folder: Path, prefix: str, members: Callable[[Path, str], Iterable[Entry] | str]) -> Listing:
    """List the folder: its records whose names start with `prefix`.

    `members` gives a compacted file's records of that prefix, or one line that says why it cannot be used; it raises
    FileNotFoundError for a file that has gone since, and then the folder is listed again.
    """
    while True:
        records: list[Entry] = []
        compacted, strangers, problems = [], [], []
        try:
            for name in sorted(_names(folder, prefix)):
                path = folder / name
                if _COMPACTED.fullmatch(name):
                    found = members(path, prefix)
                    compacted.append(path)
                    problems += [found] if isinstance(found, str) else []
                    records += [] if isinstance(found, str) else found
                elif entry := parse_name(name, path):
                    records.append(entry)
                else:
                    strangers.append(path)
            return Listing(tuple(records), tuple(compacted), tuple(strangers), tuple(problems))
        except FileNotFoundError:
            continue


def slug(name: str) -> str:
    """A name as a part of a file name: unlike names give unlike slugs, also where case does not count."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower())[:60] or "-"
    # "~" is in no plain slug, so a changed name never meets an unchanged one.
    return plain if plain == name else f"{plain}~{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def version(sweep_id: str) -> str:
    """The short form of a sweep's id."""
    return slug(sweep_id) if len(sweep_id) <= 12 else slug(sweep_id[:12])


def within(entry: Entry, sweep: str | None, sweep_id: str | None) -> bool:
    """Whether a record is of the sweep (None: of any) and of that version of it (None: of any)."""
    return (sweep is None or entry.sweep == slug(sweep)) and (sweep_id is None or entry.version == version(sweep_id))


def _names(folder: Path, prefix: str) -> set[str]:
    """The names of the visible Parquet files that start with `prefix`, and of all compacted ones.

    A folder's listing is no snapshot: a file that came while it was read may be missing though what it replaced was
    gone already. So it is read again until nothing has come that could replace anything.
    """
    names = set(_scan(folder, prefix))
    while True:
        again = set(_scan(folder, prefix))
        if not any(_replaces(name) for name in again - names):
            return names
        names = again


def _replaces(name: str) -> bool:
    match = _NAME.fullmatch(name)
    return _COMPACTED.fullmatch(name) is not None if match is None else int(match[7] or 0) > 0


def _scan(folder: Path, prefix: str) -> Iterator[str]:
    """One pass over the folder; nothing where there is none."""
    try:
        with os.scandir(folder) as listing:
            for item in listing:
                name = item.name
                if name.endswith(".parquet") and name.startswith((prefix, "compact.")) and not name.startswith("."):
                    yield name
    except FileNotFoundError:
        return
