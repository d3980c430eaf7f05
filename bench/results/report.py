"""The report that `bench report` prints: rich renderables made from a ledger frame."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from bench.results import wording
from bench.results.findings import Findings, Records, findings
from bench.results.frames import rows_of
from bench.results.grid import Cell, Grid, Line
from bench.results.leaderboard import Standing
from bench.results.published import published
from bench.results.selection import NO_FILTERS, Filters
from bench.results.wording import visible

# The keys of columns that are no dataset's name: none begins with a line feed.
_PUBLISHED, _COSTS = "\npublished", ("\nvalidation %", "\ndevice time", "\nimages/s", "\nmemory")


def render(
    frame: pd.DataFrame,
    sweep: str | None,
    problems: Sequence[str] = (),
    records: Records | None = None,
    filters: Filters = NO_FILTERS,
) -> RenderableType:
    """What the terminal shows of a ledger frame: one sweep, or each in turn where `sweep` is None.

    `problems` are the ledger's unreadable files, `records` the sweeps' definitions by id. Raises UnknownName.
    """
    found = findings(frame, sweep, filters, records)
    parts: list[RenderableType] = [_sweep(each) for each in found]
    if not found:
        parts.append(Text("No results yet."))
    if problems:
        parts.append(_listing("Files that could not be used", problems, "yellow"))
    return Group(*parts)


def _sweep(found: Findings) -> RenderableType:
    """The whole report of one sweep: its question, the answer, then all else."""
    parts: list[RenderableType] = [Rule(Text(visible(found.sweep), "bold"), style="dim", align="left")]
    if narrowed := wording.filter_line(found.filters):
        parts.append(Text(narrowed, "yellow"))
    parts += [Text(visible(found.title), "italic")] if found.title else []
    parts += [Text(line, "bold") for line in wording.answers(found.gaps)[:1]]
    parts += _standings(found)
    parts += _gaps(found.gaps)
    parts.append(_footer(found))
    lines = wording.failures(rows_of(found.failures))
    parts += [_listing("Failed trials", lines, "red")] if lines else []
    return Group(*_spaced(parts), Text(""))


def _standings(found: Findings) -> list[RenderableType]:
    """One grid per protocol and its variant, the first with costs and published figures; and the legend."""
    board = found.board
    if board.empty:
        filtered = found.filters != NO_FILTERS
        return [Text("Nothing fits the filters." if filtered else "No finished trial has a test score yet.")]
    parts: list[RenderableType] = []
    for index, standing in enumerate(found.standings):
        head = Text.assemble((wording.standing_name(standing), "bold"), ", test score in %")
        parts.append(Group(head, _standing(standing, found.sweep, first=index == 0)))
    if (board["stage"] == "search").all():
        why = "Shown is the search" if found.filters.stages else "Nothing is confirmed yet"
        parts.append(Text(f"{why}: this is one search trial of each candidate, chosen on validation.", "yellow"))
    return [*parts, Group(*(Text(line, "dim") for line in wording.notes(found)))]


def _standing(standing: Standing, sweep: str, *, first: bool) -> Grid:
    """Configurations by datasets."""
    rows = rows_of(standing.rows)
    columns = {}
    for dataset, cells in _grouped(rows, "dataset").items():
        metric = wording.metric_name(cells[0].metric)
        samples = next((row.samples for row in cells if not pd.isna(row.samples)), "")
        columns[dataset] = Text.assemble(visible(dataset), (f"\n{metric}\nn = {samples}", "dim not bold"))
    study = published(sweep) if first and standing.rows["published"].notna().any() else None
    if study:
        columns[_PUBLISHED] = Text.assemble("published", (f"\n{study.dataset}", "dim not bold"))
    lines = []
    letters = int(standing.rows["group"].fillna("").str.len().max())
    for name, cells in _grouped(rows, "configuration").items():
        head = cells[0]
        group = "" if pd.isna(head.group) else str(head.group)
        rank = "" if pd.isna(head.rank) else f"{head.rank:.1f}{group and f' {group:<{letters}}'}"
        lead = [_name(name, head.role), Text(str(max(int(row.seeds) for row in cells))), Text(rank)]
        scores = {str(row.dataset): _score(row) for row in cells} | _aside(head)
        lines.append(Line(lead, scores, control=head.role == "control"))
    tail = {key: key.strip() for key in _COSTS} if first else {}
    return Grid(["configuration", "seeds", "rank"], columns, lines, tail)


def _aside(head: Any) -> dict[str, Cell]:
    """What stands beside a configuration's scores: the published figure, and what a trial cost."""
    speed = "" if pd.isna(head.images_per_second) else f"{head.images_per_second:,.0f}"
    costs = (
        wording.percent(head.objective),
        wording.duration(head.device_seconds),
        speed,
        wording.memory(head.peak_memory_bytes),
    )
    return {_PUBLISHED: Cell(wording.percent(head.published))} | dict(zip(_COSTS, map(Cell, costs), strict=True))


def _score(row: Any) -> Cell:
    """A leaderboard cell; blank without a value."""
    if pd.isna(row.value):
        return Cell()
    best = bool(row.best)
    tie = not pd.isna(row.tie) and bool(row.tie)
    mark = "*" if best else "=" if tie else " "
    beside = "" if pd.isna(row.macro_f1) else f"F1 {wording.percent(row.macro_f1)}"
    spread = wording.interval(row.low, row.high)
    return Cell(f"{wording.percent(row.value, 4)}{mark}", spread, beside, "bold" if best else "")


def _gaps(gaps: pd.DataFrame) -> list[RenderableType]:
    """The leader against the others, paired: by protocol, then by dataset in the first protocol."""
    if gaps.empty:
        return []
    name = visible(gaps["configuration"].iloc[0])
    named = [wording.protocol_name(row.protocol, row.variant) for row in rows_of(gaps)]
    if gaps["metric"].notna().any():
        named = [f"{each}, {wording.metric_name(m)}" for each, m in zip(named, gaps["metric"], strict=True)]
    gaps = gaps.assign(named=named)
    head = Text.assemble((f"{name} minus", "bold"), ", paired over seeds, in points; p by Holm; bold: separated")
    first = gaps[gaps["named"] == named[0]]
    tables = [_gap_grid(gaps[gaps["dataset"].isna()], "named", aside=True)]
    if first["dataset"].nunique() > 1:
        tables.append(_gap_grid(first[first["dataset"].notna()], "dataset", aside=False, corner=named[0]))
    return [Group(head, *_spaced(tables))]


def _gap_grid(gaps: pd.DataFrame, column: str, *, aside: bool, corner: str = "all datasets") -> Grid:
    """Baselines by the values of `column`."""
    found = rows_of(gaps)
    columns = {name: Text(visible(name)) for name in _grouped(found, column)}
    lines = []
    for baseline, rows in _grouped(found, "baseline").items():
        cells = {str(getattr(row, column)): _gap(row, aside=aside) for row in rows}
        role = rows[0].role
        lines.append(Line([_name(baseline, role)], cells, control=role == "control"))
    return Grid([corner], columns, lines)


def _gap(row: Any, *, aside: bool) -> Cell:
    """A difference, bold where it is separated from 0."""
    separated = not pd.isna(row.separated) and bool(row.separated)
    value, spread = wording.points(row.difference), wording.interval(row.low, row.high, signed=True)
    why = wording.p_value(row.p_adjusted) or ("one seed" if row.seeds == 1 else "")
    return Cell(f"{value:>5}", spread, why if aside else "", "bold" if separated else "")


def _footer(found: Findings) -> RenderableType:
    """The search's best configuration and the trials' counts."""
    lines = wording.search_lines(found.bests) + wording.trial_lines(found.counts, found.versions)
    return Group(*(Text(line) for line in lines))


def _listing(title: str, lines: Sequence[str], style: str) -> RenderableType:
    return Group(
        Text(title, f"bold {style}"), *(Padding(Text(visible(line)), (0, 0, 0, 2), expand=False) for line in lines)
    )


def _grouped(rows: Sequence[Any], column: str) -> dict[str, list[Any]]:
    """Rows by the value of a column, in the order in which values come."""
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(str(getattr(row, column)), []).append(row)
    return groups


def _name(name: object, role: object) -> Text:
    """A configuration's name; a control says that it is one."""
    return Text.assemble(visible(name), (" (control)", "dim") if role == "control" else "")


def _spaced(parts: Sequence[RenderableType]) -> list[RenderableType]:
    """An empty line between parts."""
    spaced: list[RenderableType] = []
    for part in parts:
        spaced += [part, Text("")]
    return spaced[:-1]
