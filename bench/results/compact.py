"""Merge the ledger's many small files into few large ones, at any time, with nothing lost and nothing counted twice.

Files are never changed, only made and unlinked. A compacted file appears whole, on disk and read back, before any of
its sources goes; a source goes only if the new file holds its record, or if a heavier record of the same place counts
instead. So every record that counts lies in one visible file at least, whoever writes, compacts or is
killed meanwhile: of the files that ever held it, the one that appeared last can only go after another that holds it.
Copies have one name and count once (see `listing`). Sources stay for a second, longer than listing a folder takes.
"""

import base64
import json
import os
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench import mirror
from bench.errors import BadData
from bench.results import files
from bench.results.files import CHUNK, LEAST
from bench.results.ledger import Ledger
from bench.results.listing import Entry, Listing, Span
from bench.results.schema import SCHEMA

SETTLE = 1.0  # seconds that sources stay beside the file that holds them: more than listing a folder takes
ABANDONED = 86_400.0  # seconds after which a half-written file is nobody's
_READERS = 4
_DICTIONARY = 16 << 20  # bytes; the configurations of a chunk fit

Chunk = list[tuple[Entry, Any]]


@dataclass
class Compaction:
    """What a compaction did: the new file (None: there was nothing to merge), the records in it, files cleared away."""

    path: Path | None = None
    records: int = 0
    cleared: int = 0
    problems: list[str] = field(default_factory=list)  # a line per file that could not be read: it stays as it is


def compact(ledger: Ledger, settle: float = SETTLE) -> Compaction:
    """Merge the small files of a ledger, and compacted files that are no larger or hold outdated records.

    Safe beside any number of writers, readers and other compactions. Raises BadData where the new file does not
    read back as it was written (the sources then stay), OSError where it cannot be written.
    """
    _sweep(ledger.folder)
    listing = ledger.listing()
    done = Compaction(problems=list(listing.problems))
    chunks = _chunks(merged(listing), done.problems)
    first = next(chunks, None)
    if first is not None:
        done.path = ledger.folder / f"compact.{uuid.uuid4().hex[:12]}.parquet"
        write_compacted(done.path, chain([first], chunks), _verify)
    written = {entry.name for entry in files.read_index(done.path).records} if done.path else set()
    done.records = len(written)
    outdated = _outdated(listing, done.path, written, done.problems)
    if outdated:
        _to_disk(ledger.folder)
        time.sleep(settle)
    mirror.remove(*outdated)
    done.cleared = len(outdated)
    return done


def write_compacted(path: Path, chunks: Iterable[Sequence[tuple[Entry, Any]]], verify: Callable[[Path], None]) -> None:
    """Write a compacted file of records and their tables, whole or not at all; chunk after chunk, in order.

    `verify` is called with the file before it gets its name, and raises where it is not as it should be.

    The index in the footer (JSON, zlib, base64) holds of each record its name and, for each of the three sections, the
    row group, the first row in it and the number of rows.
    """
    stored: list[tuple[Any, ...]] = []
    with (
        files.whole(path, verify) as file,
        pq.ParquetWriter(
            file, SCHEMA, compression="zstd", dictionary_pagesize_limit=_DICTIONARY, write_page_checksum=True
        ) as writer,
    ):
        group = 0
        for chunk in chunks:
            spans, parts = _groups(group, [table for _, table in chunk])
            stored += [(entry.name, *span) for (entry, _), span in zip(chunk, spans, strict=True)]
            for part in parts:
                writer.write_table(part, row_group_size=part.num_rows)
                group += 1
        text = json.dumps(stored, separators=(",", ":")).encode()
        writer.add_key_value_metadata({files.INDEX.decode(): base64.b64encode(zlib.compress(text)).decode()})


def merged(listing: Listing) -> list[Entry]:
    """The records that one new file shall hold, in order; none where nothing is gained."""
    loose = [entry for entry in listing.newest.values() if entry.span is None]
    held: dict[Path, list[Entry]] = {}
    for entry in listing.records:
        if entry.span is not None:
            held.setdefault(entry.path, []).append(entry)
    chosen = list(loose)
    for entries in sorted(held.values(), key=len):
        current = [entry for entry in entries if listing.newest[entry.place] is entry]
        # A file more than twice as large as what joins it is left: each record is rewritten few times in its life.
        if len(current) < len(entries) or len(entries) <= 2 * len(chosen):
            chosen += current
    return sorted(chosen, key=lambda entry: entry.order)


def _outdated(listing: Listing, new: Path | None, written: set[str], problems: list[str]) -> list[Path]:
    """The files of a listing that are no record's home: the one file that is kept for it."""
    homes = {entry.name: new if new and entry.name in written else entry.path for entry in listing.newest.values()}
    copies = [entry for entry in listing.records if homes.get(entry.name, entry.path) != entry.path]
    needed = {entry.path for entry in listing.records if homes.get(entry.name) == entry.path}
    for path in {homes[entry.name] for entry in copies} - {new, None}:
        try:
            _verify(path)
        except (BadData, OSError) as error:  # then its copies are what is left
            problems.append(str(error))
            needed |= {entry.path for entry in copies if homes[entry.name] == path}
    return sorted({entry.path for entry in listing.records} - needed)


def _chunks(entries: Sequence[Entry], problems: list[str]) -> Iterator[Chunk]:
    """The records that can be read with their tables, in chunks; a stage's end ends a chunk that is large enough."""
    for some in _cut(entries):
        tables: dict[str, Any] = {}
        held: dict[Path, list[Entry]] = {}
        for entry in some:
            if entry.span is not None:
                held.setdefault(entry.path, []).append(entry)
        for path, members in held.items():
            tables |= _members(path, members, problems)
        single = [entry for entry in some if entry.span is None]
        with ThreadPoolExecutor(_READERS) as pool:
            for entry, table in zip(single, pool.map(_single, single), strict=True):
                if isinstance(table, str):
                    problems.append(table)
                elif table is not None:
                    tables[entry.name] = table
        chunk = [(entry, tables[entry.name]) for entry in some if entry.name in tables]
        if chunk:
            yield chunk


def _cut(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    start = 0
    for at in range(1, len(entries) + 1):
        size = at - start
        ends = at == len(entries) or (size >= LEAST and entries[at].order[:3] != entries[at - 1].order[:3])
        if ends or size == CHUNK:
            yield entries[start:at]
            start = at


def _single(entry: Entry) -> Any:
    """A record's table, why it cannot be read, or None where it has gone: then another compaction or record has it."""
    try:
        return files.read_record(entry)
    except FileNotFoundError:
        return None


def _members(path: Path, entries: Sequence[Entry], problems: list[str]) -> dict[str, Any]:
    """The tables of records in a compacted file, by name; those that can be read."""
    part = files.read_members(path, entries, range(len(entries)), None, depth="all")
    problems += part.problems
    order = np.argsort(part.rows, kind="stable")
    table = part.table.cast(SCHEMA).take(pa.array(order))
    counts = np.bincount(part.rows, minlength=len(entries)).tolist()
    tables, start = {}, 0
    for entry, count in zip(entries, counts, strict=True):
        whole = count == files.size(entry)
        if whole and not part.gone:
            tables[entry.name] = table.slice(start, count)
        start += count
    return tables


def _groups(group: int, tables: Sequence[Any]) -> tuple[list[Span], list[Any]]:
    """The records' places in a chunk that starts with row group `group`, and its row groups: one per section in use."""
    counts = np.array([table.num_rows for table in tables], dtype=np.int64)
    table = pa.concat_tables(tables)
    sections, ends = files.sections(table, counts.tolist()), np.cumsum(counts)
    columns: list[Any] = []
    parts: list[Any] = []
    for section in range(3):
        mask = sections == section
        inside = np.concatenate([[0], np.cumsum(mask)])
        mine = inside[ends] - inside[ends - counts]
        columns += [np.full_like(mine, group + len(parts)), np.cumsum(mine) - mine, mine]
        parts += [table.filter(pa.array(mask))] if mask.any() else []
    return [tuple(row) for row in np.stack(columns, axis=1).tolist()], parts


def _verify(path: Path) -> None:
    """Read a compacted file back; raises BadData where it does not hold the rows that its index says."""
    try:
        index = files.load_index(path)
        with pq.ParquetFile(path, metadata=index.metadata, page_checksum_verification=True) as file:
            rows = sum(file.read_row_group(group).num_rows for group in range(file.num_row_groups))
    except (pa.ArrowException, OSError, *files.DAMAGED) as error:
        raise BadData(f"{path}: does not read back as it was written, nothing was removed: {error}") from error
    expected = sum(map(files.size, index.records))
    if rows != expected:
        raise BadData(f"{path}: holds {rows} rows instead of {expected}, nothing was removed")


def _to_disk(folder: Path) -> None:
    """Make sure that the new file's name is on disk before older files go."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove what killed writers left half-written."""
    for path in folder.glob(".*.partial"):
        try:
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink(missing_ok=True)
        except FileNotFoundError:  # just renamed
            continue
