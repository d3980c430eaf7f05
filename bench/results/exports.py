"""The report as bytes: Markdown, LaTeX, CSV, Parquet, JSON and a result card. The same ledger gives the same bytes."""

import io
import json
import math
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.errors import UnknownName
from bench.results import wording
from bench.results.card import card
from bench.results.findings import Findings, Records, findings
from bench.results.latex import latex
from bench.results.leaderboard import LEADERBOARD
from bench.results.markdown import markdown
from bench.results.published import published
from bench.results.selection import COLUMNS, NO_FILTERS, PROVENANCE, Filters
from bench.results.wording import visible

FORMATS = ("md", "latex", "csv", "parquet", "json", "card")
_TEXTS = [field.name for field in LEADERBOARD if field.type == pa.string()]
_FORMULA = ("=", "+", "-", "@")  # what a spreadsheet takes for the start of a formula


def columns_for(kind: str) -> tuple[str, ...]:
    """What of the ledger a report in this format needs."""
    return COLUMNS + PROVENANCE if kind == "card" else COLUMNS


def export(
    frame: pd.DataFrame,
    sweep: str | None,
    kind: str,
    records: Records | None = None,
    filters: Filters = NO_FILTERS,
) -> bytes:
    """The leaderboards of one sweep, or of all, in one of `FORMATS`.

    CSV and Parquet hold the tidy rows of `LEADERBOARD` (fractions, not percent); JSON adds comparison, rank tests,
    trials and failures; Markdown and LaTeX read like the terminal. Raises UnknownName for a wrong format or sweep.
    """
    if kind not in FORMATS:
        raise UnknownName("export format", kind, ("terminal", *FORMATS))
    found = findings(frame, sweep, filters, records)
    if kind in ("csv", "parquet"):
        table = pa.concat_tables([LEADERBOARD.empty_table(), *(_table(each.board) for each in found)])
        return _csv(table.to_pandas()) if kind == "csv" else _parquet(table)
    if kind == "json":
        tree = json.dumps([_tree(each) for each in found], indent=2, allow_nan=False)
        return f"{tree}\n".encode()
    write = {"md": markdown, "latex": latex, "card": card}[kind]
    return "\n".join(write(each) for each in found).encode()


def _table(board: pd.DataFrame) -> Any:
    return pa.Table.from_pandas(board, schema=LEADERBOARD, preserve_index=False).replace_schema_metadata(None)


def _parquet(table: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _csv(board: pd.DataFrame) -> bytes:
    """The rows as CSV; a text that a spreadsheet would run as a formula gets a quotation mark before it."""
    safe = board.assign(**{name: board[name].map(_plain_text, na_action="ignore") for name in _TEXTS})
    text: str = safe.to_csv(index=False, lineterminator="\n")
    return text.encode()


def _plain_text(text: object) -> str:
    shown = visible(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def _tree(found: Findings) -> dict[str, Any]:
    """One sweep as plain data."""
    chosen = {
        best.candidate: {"draw": best.draw, "objective": best.objective, "swept": _plain(best.swept)}
        for best in found.bests
    }
    study = published(found.sweep)
    return {
        "sweep": found.sweep,
        "question": found.title or None,
        "filters": str(found.filters) or None,
        "answers": wording.answers(found.gaps),
        "leaderboard": _records(found.board),
        "comparison": _records(found.gaps),
        "rank_tests": [_rank_test(board) for board in found.standings if board.test],
        "published": {"source": study.source, "dataset": study.dataset, "label": study.label} if study else None,
        "search_best": chosen,
        "trials": found.counts,
        "failures": _records(found.failures),
    }


def _rank_test(board: Any) -> dict[str, Any]:
    """Friedman's test and what a critical-difference diagram draws."""
    test = board.test
    facts = {"protocol": board.protocol, "variant": board.variant, "metric": board.metric, "datasets": test.datasets}
    facts |= {"chi2": test.chi2, "f": test.f, "p_value": test.p_value}
    return _plain(facts) | {
        "freedom": list(test.freedom),
        "average_ranks": test.ranks,
        "critical_difference": test.critical_difference,
        "cliques": [list(names) for names in test.cliques],
        "caveat": test.caveat or None,
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
