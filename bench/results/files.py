"""The ledger's Parquet files: those of one record, and compacted ones of many with an index in the footer.

A compacted file holds its records in order (see `Entry.order`), in chunks of up to three row groups: the first row of
each of the chunk's records (what is the same on all rows of a trial is known from it), then their test scores, then the
rest. So a leaderboard reads what it needs, a sweep's rows lie side by side, and the row groups' statistics tell other
readers what they hold. Pages carry checksums.
"""

import base64
import json
import os
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench import mirror
from bench.results import summaries
from bench.results.listing import Entry, parse_name
from bench.results.schema import SCHEMA, SCHEMA_VERSION

INDEX = b"bench.records"
REPETITIVE = ("config", "versions")  # long texts that repeat on every row of a trial: kept once in memory
Depth = Literal["first", "scores", "all"]  # of each record: its first row, its test scores too, all rows
_SECTIONS = {"first": 1, "scores": 2, "all": 3}
_SECTION_FIELDS = ("split", "value")  # what tells in which section a row belongs
CHUNK, LEAST = 512, 128  # records of a chunk; fewer where a sweep's stage ends, if it has the second at least
DAMAGED = (ValueError, KeyError, TypeError, zlib.error)  # what an index that is none raises
_READ: Any = pa.schema(  # the schema as it is read in bulk
    [f.with_type(pa.dictionary(pa.int32(), pa.string())) if f.name in REPETITIVE else f for f in SCHEMA]
)


@dataclass(frozen=True)
class Index:
    """What a compacted file holds."""

    records: tuple[Entry, ...]
    by_trial: dict[str, list[Entry]]
    metadata: Any  # pyarrow's, which spares a reader the footer


def members(path: Path, prefix: str) -> Iterable[Entry] | str:
    """A compacted file's records, with a prefix `TRIAL.` those of the trial; or why the file cannot be used."""
    try:
        index = read_index(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, *DAMAGED) as error:
        return _unreadable(path, error)
    return index.by_trial.get(prefix.removesuffix("."), []) if prefix else index.records


@lru_cache(maxsize=32)  # a name denotes the same bytes for ever
def read_index(path: Path) -> Index:
    """`load_index`, kept."""
    return load_index(path)


def load_index(path: Path) -> Index:
    """Read a compacted file's footer; raises `DAMAGED`, or what pyarrow raises, for a damaged one."""
    metadata = pq.read_metadata(path)
    stored = json.loads(zlib.decompress(base64.b64decode((metadata.metadata or {})[INDEX])))
    records, by_trial = [], {}  # type: ignore[var-annotated]
    for name, *span in stored:
        entry = parse_name(name, path, tuple(span))
        if entry is None or len(span) != 9:
            raise ValueError(f"its index holds {name!r} {span}, which is no record")
        records.append(entry)
        by_trial.setdefault(entry.trial_id, []).append(entry)
    return Index(tuple(records), by_trial, metadata)


def read_record(entry: Entry) -> Any:
    """A record's table of `SCHEMA`, or one line that says why it cannot be read. Raises FileNotFoundError."""
    if entry.span is None:
        return _read_file(entry.path, None, SCHEMA)
    part = read_members(entry.path, [entry], [0], None, depth="all")
    if part.gone:
        raise FileNotFoundError(entry.path)
    return part.problems[0] if part.problems else pa.table(part.table.cast(SCHEMA).columns, schema=SCHEMA)


@dataclass(frozen=True)
class Part:
    """Rows of some records: their table, the number of each row's record, and what could not be read."""

    table: Any
    rows: Any  # int64 [rows]
    problems: list[str]
    gone: Sequence[int] = ()  # records whose file is there no more: they lie elsewhere, or count no more


def read_files(
    entries: Sequence[Entry], numbers: Sequence[int], columns: Sequence[str] | None, *, depth: Depth
) -> Part:
    """The rows of records, to a depth, that have files of their own: of their summaries where those are enough."""
    if depth == "all" or columns is None or not summaries.COVERED.issuperset(columns):
        return _read_columns(entries, numbers, columns, depth)
    paths, order = [entry.path for entry in entries], np.asarray(numbers, dtype=np.int64)
    table, places, lacking = summaries.read_summaries(paths, columns, _READ, scores=depth == "scores")
    rest = _read_columns([entries[n] for n in lacking], order[lacking].tolist(), columns, depth)
    rows = np.concatenate([order[places], rest.rows])
    return Part(pa.concat_tables([table, rest.table]), rows, rest.problems, rest.gone)


def _read_columns(
    entries: Sequence[Entry], numbers: Sequence[int], columns: Sequence[str] | None, depth: Depth
) -> Part:
    """The rows of records, to a depth, that have files of their own."""
    wanted = None if columns is None else list(dict.fromkeys((*columns, *_SECTION_FIELDS)))
    results = [_present(entry.path, wanted) for entry in entries]
    good = [
        (number, result) for number, result in zip(numbers, results, strict=True) if not isinstance(result, str | None)
    ]
    counts = [table.num_rows for _, table in good]
    rows = np.repeat(np.array([number for number, _ in good], dtype=np.int64), counts)
    # In one piece: filtering and keeping thousands of small ones takes twice the time and memory of reading them.
    table = pa.concat_tables([empty(wanted), *(table for _, table in good)]).combine_chunks()
    if depth != "all":
        mask = sections(table, counts) < _SECTIONS[depth]
        table, rows = table.filter(pa.array(mask)), rows[mask]
    lines = [result for result in results if isinstance(result, str)]
    gone = [number for number, result in zip(numbers, results, strict=True) if result is None]
    return Part(_only(table, columns), rows, lines, gone)


def read_members(
    path: Path, entries: Sequence[Entry], numbers: Sequence[int], columns: Sequence[str] | None, *, depth: Depth
) -> Part:
    """The rows of records, to a depth, in one compacted file."""
    spans = np.array([entry.span for entry in entries], dtype=np.int64).reshape(-1, 3, 3)
    order = np.asarray(numbers, dtype=np.int64)
    try:
        index = read_index(path)
        names = None if columns is None else list(columns)
        with pq.ParquetFile(
            path, metadata=index.metadata, read_dictionary=REPETITIVE, page_checksum_verification=True
        ) as file:
            if not file.schema_arrow.equals(_READ):
                return Part(empty(columns), order[:0], [_foreign(path, file.schema_arrow)])
            places = [spans[:, section] for section in range(_SECTIONS[depth])]
            parts = [_rows(file, place, order, names) for place in places]
    except FileNotFoundError:
        return Part(empty(columns), order[:0], [], numbers)
    except (pa.ArrowException, OSError) as error:
        return _salvaged(path, entries, numbers, columns, depth, error)
    table = pa.concat_tables([table for table, _ in parts])
    return Part(_only(table, columns), np.concatenate([rows for _, rows in parts]), [])


def write_file(table: Any, path: Path) -> None:
    """Write one record's file whole or not at all.

    Uncompressed and without statistics: a small file is smaller so, and read in two thirds of the time. Between its
    last column and its footer lies a summary (see `summaries`).
    """
    with whole(path) as file, pq.ParquetWriter(file, SCHEMA, compression="none", write_statistics=False) as writer:
        writer.write_table(table)
        file.write(summaries.summary_of(table))


@contextmanager
def whole(path: Path, verify: Callable[[Path], None] | None = None) -> Iterator[Any]:
    """A file that appears under its name when it is complete and on disk; readers pass over it until then."""
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if verify is not None:
            verify(partial)
        mirror.publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sections(table: Any, counts: Sequence[int]) -> Any:
    """The section of each row, int `[rows]`: 0 for the first of a record's `counts` rows, 1 for test scores, else 2."""
    found = np.where(summaries.scored(table).to_numpy(zero_copy_only=False), 1, 2)
    starts = np.cumsum([0, *counts])[:-1]
    found[starts[np.asarray(counts, dtype=np.int64) > 0]] = 0
    return found


def size(entry: Entry) -> int:
    """The number of rows of a record in a compacted file."""
    return sum(entry.span[2::3]) if entry.span else 0


def empty(columns: Sequence[str] | None) -> Any:
    """A table of no rows, of the columns and types that bulk reading gives."""
    table = _READ.empty_table()
    return table if columns is None else table.select(list(columns))


def _rows(file: Any, section: Any, numbers: Any, columns: list[str] | None) -> tuple[Any, Any]:
    """The rows of one section, `[records, (row group, start, count)]`: their table and the record of each row."""
    group, start, count = section.T
    some = count > 0
    group, start, count, numbers = group[some], start[some], count[some], numbers[some]
    if not len(group):
        return empty(columns), numbers
    groups, which = np.unique(group, return_inverse=True)
    sizes = np.array([file.metadata.row_group(int(each)).num_rows for each in groups], dtype=np.int64)
    first = (np.cumsum(sizes) - sizes)[which] + start
    order = np.argsort(first)
    owner = np.repeat(numbers[order], count[order])
    table = file.read_row_groups(groups.tolist(), columns=columns)
    if len(owner) == table.num_rows:
        return table, owner
    edges = np.zeros(table.num_rows + 1, dtype=np.int64)
    np.add.at(edges, first, 1)
    np.add.at(edges, first + count, -1)
    return table.filter(pa.array(np.cumsum(edges[:-1]) > 0)), owner


def _salvaged(
    path: Path,
    entries: Sequence[Entry],
    numbers: Sequence[int],
    columns: Sequence[str] | None,
    depth: Depth,
    error: Any,
) -> Part:
    """What can be read of a damaged file: its chunks one by one."""
    chunks: dict[int, list[tuple[Entry, int]]] = {}
    for entry, number in zip(entries, numbers, strict=True):
        chunks.setdefault(entry.span[0] if entry.span else 0, []).append((entry, number))
    if len(chunks) < 2:
        lost = f" ({len(entries)} records are lost)" if len(entries) > 1 else ""
        return Part(empty(columns), np.zeros(0, dtype=np.int64), [_unreadable(path, error) + lost])
    parts = [
        read_members(path, [entry for entry, _ in chunk], [number for _, number in chunk], columns, depth=depth)
        for chunk in chunks.values()
    ]
    table = pa.concat_tables([part.table for part in parts])
    lines = [line for part in parts for line in part.problems]
    return Part(table, np.concatenate([part.rows for part in parts]), lines, [n for part in parts for n in part.gone])


def _present(path: Path, columns: Sequence[str] | None) -> Any:
    """`_read_file` in bulk; None for a file that has gone."""
    try:
        return _read_file(path, columns, _READ)
    except FileNotFoundError:
        return None


def _read_file(path: Path, columns: Sequence[str] | None, schema: Any) -> Any:
    """The table of one record's file, or one line that says why it cannot be used."""
    try:
        dictionary = REPETITIVE if schema is _READ else ()
        with pq.ParquetFile(path, read_dictionary=dictionary) as file:
            found = file.schema_arrow
            return file.read(columns=columns, use_threads=False) if found.equals(schema) else _foreign(path, found)
    except FileNotFoundError:
        raise
    except KeyError:  # a column to be read as a dictionary is not there
        return _foreign(path, pq.read_schema(path))
    except (pa.ArrowException, OSError) as error:
        return _unreadable(path, error)


def _only(table: Any, columns: Sequence[str] | None) -> Any:
    return table if columns is None else table.select(list(columns))


def _foreign(path: Path, found: Any) -> str:
    stored = (found.metadata or {}).get(b"version", b"unknown").decode(errors="replace")
    return f"{path}: not a ledger file of schema {SCHEMA_VERSION} (its version: {stored})"


def _unreadable(path: Path, error: Any) -> str:
    return f"{path}: cannot be read: {' '.join(str(error).split())}"
