"""The report that `bench report` prints: rich renderables made from a ledger frame."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from bench.results import leaderboard as boards
from bench.results import wording
from bench.results.exports import FORMATS, export
from bench.results.frames import rows_of
from bench.results.grid import Cell, Grid, Line, plain_table
from bench.results.wording import visible

__all__ = ["FORMATS", "export", "render"]


def render(
    frame: pd.DataFrame, sweep: str | None, problems: Sequence[str] = (), titles: Mapping[str, str] | None = None
) -> RenderableType:
    """What the terminal shows of a ledger frame: one sweep, or each in turn where `sweep` is None.

    `problems` are the ledger's unreadable files, `titles` the sweeps' questions by name. Raises UnknownName.
    """
    names = boards.sweeps(frame) if sweep is None else [sweep]
    parts: list[RenderableType] = [_sweep(frame, name, (titles or {}).get(name, "")) for name in names]
    if not names:
        parts.append(Text("No results yet."))
    if problems:
        parts.append(_listing("Files that could not be used", problems, "yellow"))
    return Group(*parts)


def _sweep(frame: pd.DataFrame, sweep: str, title: str) -> RenderableType:
    """The whole report of one sweep."""
    board = boards.leaderboard(frame, sweep)
    gaps = boards.comparison(frame, sweep)
    parts: list[RenderableType] = [Rule(Text(visible(sweep), "bold"), style="dim", align="left")]
    parts += [Text(visible(title), "italic")] if title else []
    parts += [Text(line) for line in wording.answers(gaps)]
    parts += _standings(board)
    parts += _gaps(gaps)
    parts += _costs(board)
    parts.append(_footer(frame, sweep))
    parts += _failures(frame, sweep)
    return Group(*_spaced(parts), Text(""))


def _standings(board: pd.DataFrame) -> list[RenderableType]:
    """One grid per protocol and its variant, and the legend."""
    if board.empty:
        return [Text("No finished trial has a test score yet.")]
    parts: list[RenderableType] = []
    for (protocol, variant), rows in board.groupby(["protocol", "variant"], sort=False):
        head = Text.assemble((wording.protocol_name(protocol, variant), "bold"), ", test score in %")
        parts.append(Group(head, _standing(rows)))
    if (board["stage"] == "search").all():
        parts.append(
            Text(
                "Nothing is confirmed yet: this is one search trial of each candidate, chosen on validation.", "yellow"
            )
        )
    return [*parts, Text(f"* highest mean, {wording.legend(board)}", "dim")]


def _standing(rows: pd.DataFrame) -> Grid:
    """Configurations by datasets."""
    columns = {}
    for dataset, cells in rows.groupby("dataset", sort=False):
        metric = wording.metric_name(next(iter(cells["metric"].dropna()), ""))
        samples = next(iter(cells["samples"].dropna()), "")
        columns[str(dataset)] = Text.assemble(visible(dataset), (f"\n{metric}\nn = {samples}", "dim not bold"))
    lines = []
    for name, cells in rows.groupby("configuration", sort=False):
        role = cells["role"].iloc[0]
        seeds, rank = int(cells["seeds"].max()), cells["rank"].iloc[0]
        lead = [_name(name, role), Text(str(seeds)), Text("" if pd.isna(rank) else f"{rank:.1f}")]
        scores = {str(row.dataset): _score(row) for row in rows_of(cells)}
        lines.append(Line(lead, scores, control=role == "control"))
    return Grid(["configuration", "seeds", "rank"], columns, lines)


def _score(row: Any) -> Cell:
    """A leaderboard cell; blank without a value."""
    if pd.isna(row.value):
        return Cell()
    best = bool(row.best)
    tie = not pd.isna(row.tie) and bool(row.tie)
    mark = "*" if best else "=" if tie else " "
    return Cell(
        f"{wording.percent(row.value, 4)}{mark}", wording.interval(row.low, row.high), style="bold" if best else ""
    )


def _gaps(gaps: pd.DataFrame) -> list[RenderableType]:
    """The best configuration against the others, paired: by protocol, then by dataset in the first protocol."""
    if gaps.empty:
        return []
    name = visible(gaps["configuration"].iloc[0])
    protocols = [wording.protocol_name(row.protocol, row.variant) for row in rows_of(gaps)]
    gaps = gaps.assign(named=protocols)
    head = Text.assemble((f"{name} minus", "bold"), ", paired over seeds, in points")
    first = gaps[gaps["named"] == protocols[0]]
    tables = [_gap_grid(gaps[gaps["dataset"].isna()], "named", aside=True)]
    if first["dataset"].nunique() > 1:
        tables.append(_gap_grid(first[first["dataset"].notna()], "dataset", aside=False, corner=protocols[0]))
    return [Group(head, *_spaced(tables))]


def _gap_grid(gaps: pd.DataFrame, column: str, *, aside: bool, corner: str = "all datasets") -> Grid:
    """Baselines by the values of `column`."""
    columns = {str(name): Text(visible(name)) for name in gaps[column].unique()}
    lines = []
    for baseline, rows in gaps.groupby("baseline", sort=False):
        cells = {str(getattr(row, column)): _gap(row, aside=aside) for row in rows_of(rows)}
        role = rows["role"].iloc[0]
        lines.append(Line([_name(baseline, role)], cells, control=role == "control"))
    return Grid([corner], columns, lines)


def _gap(row: Any, *, aside: bool) -> Cell:
    """A difference, bold where it is separated from 0."""
    separated = not pd.isna(row.separated) and bool(row.separated)
    value, spread = wording.points(row.difference), wording.interval(row.low, row.high, signed=True)
    why = wording.p_value(row.p_value) or ("one seed" if row.seeds == 1 else "")
    return Cell(f"{value:>5}", spread, why if aside else "", "bold" if separated else "")


def _costs(board: pd.DataFrame) -> list[RenderableType]:
    """What a trial of each configuration cost, and its validation objective."""
    if board.empty:
        return []
    table = plain_table()
    table.add_column("cost per trial", overflow="fold", max_width=30)
    for head in ("validation %", "device time", "images/s", "memory"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows_of(board.drop_duplicates("configuration")):
        speed = "" if pd.isna(row.images_per_second) else f"{row.images_per_second:,.0f}"
        table.add_row(
            _name(row.configuration, row.role),
            wording.percent(row.objective),
            wording.duration(row.device_seconds),
            speed,
            wording.memory(row.peak_memory_bytes),
        )
    return [table]


def _footer(frame: pd.DataFrame, sweep: str) -> RenderableType:
    """The search's best configuration and the trials' counts."""
    lines = wording.search_lines(boards.search_bests(frame, sweep)) + wording.trial_lines(frame, sweep)
    return Group(*(Text(line) for line in lines))


def _failures(frame: pd.DataFrame, sweep: str) -> list[RenderableType]:
    """Failed trials: which, why, and where the traceback is."""
    lines = [wording.failure(row) for row in rows_of(boards.failures(frame, sweep))]
    return [_listing("Failed trials", lines, "red")] if lines else []


def _listing(title: str, lines: Sequence[str], style: str) -> RenderableType:
    return Group(
        Text(title, f"bold {style}"), *(Padding(Text(visible(line)), (0, 0, 0, 2), expand=False) for line in lines)
    )


def _name(name: object, role: object) -> Text:
    """A configuration's name; a control says that it is one."""
    return Text.assemble(visible(name), (" (control)", "dim") if role == "control" else "")


def _spaced(parts: Sequence[RenderableType]) -> list[RenderableType]:
    """An empty line between parts."""
    spaced: list[RenderableType] = []
    for part in parts:
        spaced += [part, Text("")]
    return spaced[:-1]
