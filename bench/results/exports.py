"""The report as bytes: Markdown, CSV, Parquet and JSON. The same ledger gives the same bytes."""

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.errors import UnknownName
from bench.results import leaderboard as boards
from bench.results import wording
from bench.results.frames import LEADERBOARD, rows_of
from bench.results.wording import visible

FORMATS = ("md", "csv", "parquet", "json")
_MARKUP = str.maketrans({letter: f"\\{letter}" for letter in "\\`*_[]|#~$"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})


def export(frame: pd.DataFrame, sweep: str | None, kind: str) -> bytes:
    """The leaderboards of one sweep, or of all, in one of `FORMATS`.

    CSV and Parquet hold the tidy rows of `LEADERBOARD` (fractions, not percent); JSON adds comparison, trials and
    failures; Markdown reads like the terminal. Raises UnknownName for another format or an unknown sweep.
    """
    if kind not in FORMATS:
        raise UnknownName("export format", kind, FORMATS)
    names = boards.sweeps(frame) if sweep is None else [sweep]
    if kind == "md":
        return "\n".join(_markdown(frame, name) for name in names).encode()
    if kind == "json":
        tree = json.dumps([_tree(frame, name) for name in names], indent=2, ensure_ascii=False, allow_nan=False)
        return f"{tree}\n".encode()
    table = pa.concat_tables([LEADERBOARD.empty_table(), *(_table(boards.leaderboard(frame, name)) for name in names)])
    if kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        return buffer.getvalue()
    text: str = table.to_pandas().to_csv(index=False, lineterminator="\n")
    return text.encode()


def escape(text: object) -> str:
    """`text` so that Markdown and the HTML made from it show it as it is, on one line."""
    return visible(text).translate(_MARKUP)


def _table(board: pd.DataFrame) -> Any:
    return pa.Table.from_pandas(board, schema=LEADERBOARD, preserve_index=False).replace_schema_metadata(None)


def _tree(frame: pd.DataFrame, sweep: str) -> dict[str, Any]:
    """One sweep as plain data."""
    chosen = {
        best.candidate: {"draw": best.draw, "objective": best.objective, "swept": _plain(best.swept)}
        for best in boards.search_bests(frame, sweep)
    }
    gaps = boards.comparison(frame, sweep)
    return {
        "sweep": sweep,
        "answers": wording.answers(gaps),
        "leaderboard": _records(boards.leaderboard(frame, sweep)),
        "comparison": _records(gaps),
        "search_best": chosen,
        "trials": boards.trial_counts(frame, sweep),
        "failures": _records(boards.failures(frame, sweep)),
    }


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [_plain(record) for record in rows.to_dict("records")]


def _plain(record: dict[Any, Any]) -> dict[str, Any]:
    """JSON values: what is missing is null, NumPy scalars are Python's."""
    plain = {}
    for name, value in record.items():
        value = value.item() if hasattr(value, "item") else value
        missing = value is pd.NA or value is None or (isinstance(value, float) and not math.isfinite(value))
        plain[str(name)] = None if missing else value
    return plain


def _markdown(frame: pd.DataFrame, sweep: str) -> str:
    """One sweep as Markdown."""
    board = boards.leaderboard(frame, sweep)
    gaps = boards.comparison(frame, sweep)
    parts = [f"## {escape(sweep)}", *(escape(line) for line in wording.answers(gaps))]
    for (protocol, variant), rows in board.groupby(["protocol", "variant"], sort=False):
        parts += [f"**{escape(wording.protocol_name(protocol, variant))}**, test score in %", _standing(rows)]
    if not board.empty:
        parts.append(f"**bold** highest mean, {escape(wording.legend(board))}")
    lines = wording.search_lines(boards.search_bests(frame, sweep)) + wording.trial_lines(frame, sweep)
    parts += [escape(line) for line in lines]
    failed = [f"- {escape(wording.failure(row))}" for row in rows_of(boards.failures(frame, sweep))]
    parts += ["Failed trials:", "\n".join(failed)] if failed else []
    return "\n\n".join(parts) + "\n"


def _standing(rows: pd.DataFrame) -> str:
    """Configurations by datasets as a Markdown table."""
    datasets = list(rows["dataset"].unique())
    metrics = rows.dropna(subset="metric").drop_duplicates("dataset").set_index("dataset")["metric"]
    heads = [f"{escape(name)} ({escape(wording.metric_name(metrics[name]))})" for name in datasets]
    lines = [["configuration", "seeds", "rank", *heads], ["---", "---:", "---:", *["---:"] * len(heads)]]
    for name, cells in rows.groupby("configuration", sort=False):
        row = cells.set_index("dataset")
        control = " (control)" if row["role"].iloc[0] == "control" else ""
        rank = row["rank"].iloc[0]
        lead = [escape(name) + control, str(int(row["seeds"].max())), "" if pd.isna(rank) else f"{rank:.1f}"]
        lines.append([*lead, *(_cell(row.loc[dataset]) for dataset in datasets)])
    return "\n".join(_line(line) for line in lines)


def _cell(row: Any) -> str:
    if pd.isna(row["value"]):
        return ""
    value = wording.percent(row["value"])
    tie = not pd.isna(row["tie"]) and bool(row["tie"]) and not row["best"]
    shown = f"**{value}**" if row["best"] else f"{value}=" if tie else value
    return f"{shown} {escape(wording.interval(row['low'], row['high']))}".rstrip()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
