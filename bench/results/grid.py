"""A table with a column per dataset that fits the terminal: wide, else with stacked cells, else in several pieces."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Cell:
    """A number, its interval and an aside: side by side where there is room, else the interval below."""

    value: str = ""
    interval: str = ""
    aside: str = ""
    style: str = ""

    def text(self, width: int, *, stacked: bool) -> Text:
        """The cell on one line, its aside after an interval of `width` characters, or on two."""
        interval = self.interval if stacked or not self.aside else self.interval.ljust(width)
        beside, below = (self.aside, interval) if stacked else (interval, self.aside)
        line = Text.assemble((self.value, self.style), " " if beside else "", (beside, "dim"))
        return line.append(f"\n{below}" if stacked and below else f"  {below}" if below else "", "dim")


@dataclass(frozen=True)
class Line:
    """A row: its leading texts, then its cells by column; controls stand apart from the others."""

    lead: Sequence[Text]
    cells: Mapping[str, Cell]
    control: bool = False


@dataclass(frozen=True)
class Grid:
    """Rows by columns. `lead` heads the leading columns (the first is left-justified, others right)."""

    lead: Sequence[str]
    columns: Mapping[str, Text]  # the header by column
    lines: Sequence[Line] = field(default_factory=list)
    tail: Mapping[str, str] = field(default_factory=dict)  # further columns, beside where there is room, else below

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = list(self.columns)
        wide = self._table(names, stacked=False, tail=True)
        if _width(console, options, wide) <= options.max_width:
            yield wide
            return
        yield from self._narrow(console, options, names)
        if self.tail:
            yield from (Text(""), self._table([], stacked=False, tail=True, lead=1))

    def _narrow(self, console: Console, options: ConsoleOptions, names: list[str]) -> RenderResult:
        """The columns without the tail: cells on one line where there is room, else stacked and in pieces."""
        wide = self._table(names, stacked=False)
        if _width(console, options, wide) <= options.max_width:
            yield wide
            return
        for index, piece in enumerate(self._pieces(console, options, names)):
            yield from ([Text("")] if index else [])
            yield self._table(piece, stacked=True)

    def _pieces(self, console: Console, options: ConsoleOptions, names: list[str]) -> Iterator[list[str]]:
        """Cut the columns into as few pieces as fit; a single column is never cut."""
        while names:
            size = len(names)
            while size > 1 and _width(console, options, self._table(names[:size], stacked=True)) > options.max_width:
                size -= 1
            yield names[:size]
            names = names[size:]

    def _table(self, names: Sequence[str], *, stacked: bool, tail: bool = False, lead: int | None = None) -> Table:
        table = plain_table()
        for index, head in enumerate(self.lead[:lead]):
            if index:
                table.add_column(head, justify="right", no_wrap=True)
            else:
                table.add_column(head, overflow="fold", min_width=12, max_width=18 if stacked else 40)
        for name in names:
            table.add_column(self.columns[name], no_wrap=True)
        for head in self.tail.values() if tail else ():
            table.add_column(head, justify="right", no_wrap=True)
        shown = [*names, *(self.tail if tail else ())]
        cells = {name: [line.cells.get(name, Cell()) for line in self.lines] for name in shown}
        widths = {name: max((len(cell.interval) for cell in found), default=0) for name, found in cells.items()}
        for before, line in zip((None, *self.lines), self.lines, strict=False):
            if before is not None and line.control and not before.control:
                table.add_section()
            texts = (line.cells.get(name, Cell()).text(widths[name], stacked=stacked) for name in shown)
            table.add_row(*line.lead[:lead], *texts)
        return table


def plain_table() -> Table:
    """A calm table: a rule under the header, nothing else."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", padding=(0, 1))


def _width(console: Console, options: ConsoleOptions, table: Table) -> int:
    """How wide the table wants to be."""
    return Measurement.get(console, options.update(width=10_000), table).maximum
