"""Typed pandas frames: of ledger rows, and of records with stated columns."""

import math
from collections import namedtuple
from functools import lru_cache
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

PARAM = "param."


def to_frame(table: Any) -> pd.DataFrame:
    """A typed frame of ledger rows: nullable integers and booleans, UTC times, `param.*` columns for the maps."""
    kinds: dict[Any, Any] = {pa.int16(): pd.Int16Dtype(), pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype()}
    kinds[pa.bool_()] = pd.BooleanDtype()
    maps = [name for name in ("swept_numbers", "swept_texts") if name in table.column_names]
    swept = _swept_columns(table.select(maps))
    frame: pd.DataFrame = table.drop_columns(maps).to_pandas(types_mapper=kinds.get)
    extra = {
        PARAM + name: pa.table({"": column}).to_pandas(types_mapper=kinds.get)[""] for name, column in swept.items()
    }
    return frame.assign(**extra)


def typed_frame(records: list[dict[str, Any]], schema: Any) -> pd.DataFrame:
    """A frame of exactly the schema's columns and types."""
    clean = [{name: None if _missing(value) else value for name, value in record.items()} for record in records]
    return to_frame(pa.Table.from_pylist(clean, schema=schema))


def rows_of(frame: pd.DataFrame) -> list[Any]:
    """The frame's rows as named tuples."""
    values = (frame[name].to_numpy(dtype=object).tolist() for name in frame)
    return list(map(_row(tuple(map(str, frame)))._make, zip(*values, strict=True)))


@lru_cache(maxsize=64)
def _row(names: tuple[str, ...]) -> Any:
    """A type of named tuples; pandas makes one anew for each frame."""
    return namedtuple("_row", names, rename=True)


def _swept_columns(maps: Any) -> dict[str, Any]:
    """One Arrow column per swept hyperparameter: numbers, booleans, or texts where values are mixed."""
    found: dict[str, list[Any]] = {}
    for name in maps.column_names:
        column = maps[name].combine_chunks()
        for key in sorted(pc.unique(column.keys).to_pylist()) if len(column) else []:
            found.setdefault(key, []).append(pc.map_lookup(column, key, "first"))
    columns = {}
    for key, parts in sorted(found.items()):
        column = parts[0] if len(parts) == 1 else pc.coalesce(*(part.cast(pa.string()) for part in parts))
        truths = column.type == pa.string() and set(pc.unique(column).to_pylist()) <= {"true", "false", None}
        columns[key] = column.cast(pa.bool_()) if truths else column
    return columns


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
