"""Results in a notebook: `bench.load_results` and `bench.leaderboard`."""

import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any

import pandas as pd

from bench import mirror
from bench.errors import BadInput
from bench.results import wording
from bench.results.frames import rows_of
from bench.results.leaderboard import leaderboard as tidy_leaderboard
from bench.results.ledger import Ledger
from bench.results.selection import filters_for, sweeps

Names = str | Sequence[str] | None
_ORDERED = ("protocol", "variant", "configuration", "dataset", "metric")


def load_results(path: str | PathLike[str] = "results", sweep: str | None = None) -> pd.DataFrame:
    """The ledger of a results folder or address (or its `ledger` folder) as a typed frame: a row per measured number.

    Swept hyperparameters are columns `param.NAME`; the other columns are those of docs/LEDGER.md. Files that cannot be
    used are counted in a warning. Raises BadInput where there is no such folder.
    """
    folder = mirror.local(path)
    out = folder.parent if folder.name == "ledger" else mirror.opened(path, "ledger")
    if not (out / "ledger").is_dir():
        shown = mirror.address(out)
        raise BadInput(f"{shown}: no results here (no folder {shown}/ledger); name the folder given to bench run --out")
    frame, problems = Ledger(out).read(sweep)
    if problems:
        warnings.warn(f"{len(problems)} ledger files could not be used, first: {problems[0]}", stacklevel=2)
    return frame


def leaderboard(
    results: str | PathLike[str] | pd.DataFrame = "results",
    sweep: str | None = None,
    *,
    dataset: Names = None,
    method: Names = None,
    protocol: Names = None,
    metric: Names = None,
    stage: Names = None,
    tidy: bool = False,
) -> pd.DataFrame:
    """The leaderboard of one sweep, or of all, from a results folder or a frame of `load_results`.

    A row per sweep, protocol and configuration, a column per dataset that reads `72.0* [69.5, 74.5]` (percent; `*`
    highest mean, `=` tied with it), as `bench report` shows. With `tidy` the numbers themselves: the columns of
    docs/LEADERBOARDS.md, fractions, names as ordered categories. Raises UnknownName for a name that is not there.
    """
    frame = results if isinstance(results, pd.DataFrame) else load_results(results, sweep)
    given = {"dataset": dataset, "method": method, "protocol": protocol, "metric": metric, "stage": stage}
    filters = filters_for(
        frame, **{kind: [names] if isinstance(names, str) else names for kind, names in given.items()}
    )
    boards = [tidy_leaderboard(frame, name, filters) for name in ([sweep] if sweep else sweeps(frame))]
    board = pd.concat(boards, ignore_index=True) if boards else pd.DataFrame()
    return _categories(board) if tidy else _wide(board)


def _categories(board: pd.DataFrame) -> pd.DataFrame:
    """Names as categories in the leaderboard's order, so that sorting and plotting keep it."""
    present = [name for name in _ORDERED if name in board]
    orders = {name: pd.unique(board[name].dropna()) for name in present}
    return board.assign(**{name: pd.Categorical(board[name], orders[name], ordered=True) for name in present})


def _wide(board: pd.DataFrame) -> pd.DataFrame:
    """A row per configuration, as texts to look at."""
    records: dict[tuple[str, str, str], dict[str, object]] = {}
    for row in rows_of(board):
        key = (row.sweep, wording.protocol_name(row.protocol, row.variant), row.configuration)
        facts = {"role": row.role, "rank": row.rank, "group": None if pd.isna(row.group) else row.group}
        record = records.setdefault(key, facts | {"seeds": 0})
        record["seeds"] = max(int(str(record["seeds"])), int(row.seeds))
        record[f"{row.dataset} {wording.metric_name(row.metric)} %"] = _score(row)
    index = pd.MultiIndex.from_tuples(records, names=["sweep", "protocol", "configuration"]) if records else None
    return pd.DataFrame(list(records.values()), index=index)


def _score(row: Any) -> str:
    """`72.0* [69.5, 74.5]`; blank without a value."""
    if pd.isna(row.value):
        return ""
    mark = "*" if row.best else "=" if not pd.isna(row.tie) and row.tie else ""
    return f"{wording.percent(row.value)}{mark} {wording.interval(row.low, row.high)}".rstrip()
