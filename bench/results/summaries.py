"""What a report needs of a record, kept a second time in the record's file, where it is read in a tenth of the time.

Reading a small Parquet file is nearly all footer: dozens of columns are described there for a few rows each. So such a
file has between its last column and its footer, where readers of Parquet do not look, one message of Arrow's stream
format: a row with what is the same on all rows of the trial, and a list `scores` with the rest of the first row and of
the test scores, but for what is only shown of one trial (matrices, figures of each class). The messages of many files
one after another are one stream, which is decoded at once.

Behind the message stand its length, its CRC-32 and a mark that stands for the schema. A file without them, or whose
message is damaged, is read column by column, and what is wrong with it is found there. A file that is damaged elsewhere
is found by those who read all of it: `bench compact`, and the report as a page.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench.results.schema import SCHEMA

SCORES = tuple(  # what differs between the rows of a trial
    "dataset dataset_fingerprint protocol protocol_version variant split metric headline value samples low high".split()  # noqa: SIM905
)
_LEFT = {"chosen", "confusion", "classes", "precision", "recall", "f1"}
_SAME = tuple(name for name in SCHEMA.names if name not in _LEFT and name not in SCORES)
COVERED = frozenset({*SCORES, *_SAME})
_SCORE: Any = pa.struct([pa.field(name, SCHEMA.field(name).type) for name in SCORES])
_SUMMARY: Any = pa.schema([*(pa.field(name, SCHEMA.field(name).type) for name in _SAME), ("scores", pa.list_(_SCORE))])
_HEAD = _SUMMARY.serialize().to_pybytes()
_MARK = hashlib.sha256(str(SCHEMA.metadata).encode() + _HEAD).digest()[:8]
_AFTER = struct.Struct("<II8s")  # length and CRC-32 of the message, mark
_FOOTER = struct.Struct("<I4s")  # the end of every Parquet file: the footer's length, "PAR1"
_TAIL = 48 << 10  # bytes; most often they hold the message and the footer


def scored(table: Any) -> Any:
    """Which rows are test scores, boolean `[rows]`."""
    return pc.and_(pc.fill_null(pc.equal(table["split"], "test"), False), pc.is_valid(table["value"]))


def summary_of(table: Any) -> bytes:
    """The bytes that stand for a record's table of `SCHEMA`; none for a table that a summary does not describe."""
    first, rest = table.slice(0, 1), table.slice(1)
    if not len(first) or not all(_same(table[name].combine_chunks()) for name in _SAME):
        return b""
    rows = pa.concat_tables([first, rest.filter(scored(rest))]).select(SCORES).combine_chunks()
    scores = pa.StructArray.from_arrays([rows[name].combine_chunks() for name in SCORES], fields=list(_SCORE))
    scores = pa.ListArray.from_arrays(pa.array([0, len(scores)], pa.int32()), scores)
    batch = pa.record_batch([*(first[name].combine_chunks() for name in _SAME), scores], schema=_SUMMARY)
    message: bytes = batch.serialize().to_pybytes()
    return message + _AFTER.pack(len(message), zlib.crc32(message), _MARK)


def read_summaries(
    paths: Sequence[Path], columns: Sequence[str], schema: Any, *, scores: bool
) -> tuple[Any, Any, list[int]]:
    """The first rows of record files, or with `scores` their test scores too: a table of some `COVERED` columns.

    `schema` says of which types. Beside the table the place of each row's file in `paths`, int64 `[rows]`, and the
    places of the files whose summary cannot be used.
    """
    messages = [_message(path) for path in paths]
    there = [place for place, message in enumerate(messages) if message is not None]
    lacking = [place for place, message in enumerate(messages) if message is None]
    wanted = [at for at, name in enumerate(_SUMMARY.names) if name in columns or name == "scores"]
    options = pa.ipc.IpcReadOptions(included_fields=wanted, use_threads=False)
    stream = b"".join([_HEAD, *(message for message in messages if message is not None)])
    table = pa.ipc.open_stream(stream, options=options).read_all()
    lists = table["scores"].combine_chunks()
    each = lists.flatten() if scores else pc.list_element(lists, 0)
    rows = pc.list_parent_indices(lists) if scores else pa.array(np.arange(len(lists)))
    fields = [schema.field(name) for name in columns]
    own = dict(zip(SCORES, each.flatten(), strict=True))
    arrays = [own[f.name] if f.name in own else _spread(table[f.name].combine_chunks(), f.type, rows) for f in fields]
    places = np.array(there, dtype=np.int64)[rows.to_numpy()]
    return pa.table(arrays, schema=pa.schema(fields, schema.metadata)), places, lacking


def _spread(column: Any, kind: Any, rows: Any) -> Any:
    """What is the same on all rows of a record, on each of them; a long text as a reference."""
    return (column.dictionary_encode() if pa.types.is_dictionary(kind) else column).take(rows)


def _message(path: Path) -> bytes | None:
    """A file's message; None where it has none that can be used, or cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return _found(handle, os.fstat(handle).st_size)
    except OSError:
        return None
    finally:
        os.close(handle)


def _found(handle: int, size: int) -> bytes | None:
    """The message of an open file of so many bytes."""
    tail = _last(handle, size, _TAIL)
    footer, magic = _FOOTER.unpack_from(tail, len(tail) - _FOOTER.size) if len(tail) > _FOOTER.size else (0, b"")
    behind = _AFTER.size + footer + _FOOTER.size  # bytes from the message to the file's end
    if magic != b"PAR1" or behind > size:
        return None
    tail = tail if behind <= len(tail) else _last(handle, size, behind + _TAIL)
    length, checksum, mark = _AFTER.unpack_from(tail, len(tail) - behind)
    if mark != _MARK or behind + length > size:
        return None
    tail = tail if behind + length <= len(tail) else _last(handle, size, behind + length)
    message = tail[len(tail) - behind - length : len(tail) - behind]
    return message if zlib.crc32(message) == checksum else None


def _last(handle: int, size: int, count: int) -> bytes:
    """The last bytes of an open file, or all of them."""
    return os.pread(handle, count, max(0, size - count))


def _same(column: Any) -> bool:
    """Whether a column of one row or more has one value only."""
    return bool(column.equals(column.take(pa.array(np.zeros(len(column), dtype=np.int64)))))
