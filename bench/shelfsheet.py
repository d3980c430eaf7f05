"""What `bench data clean` shows: everything that is kept, what of it goes, and why the rest stays."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from bench.cards import card_paths
from bench.data.shelf import Kept
from bench.datasheet import say
from bench.errors import UnknownName

DAY = 86400.0
_WORDS = {"pack": "pack", "leftover": "cut short", "digests": "digests", "download": "downloads"}


@dataclass(frozen=True)
class Wish:
    """What is to be removed: of which datasets (all if none is named), unused for how many days, downloads too."""

    names: tuple[str, ...] = ()
    older: float | None = None
    downloads: bool = False

    def stays(self, kept: Kept, now: float) -> str:
        """Why a thing stays, or "" if it goes. `now`: Unix time."""
        if kept.busy:
            return "in use now"
        if self.names and not any(kept.belongs_to(name) for name in self.names):
            return "not asked for"
        if kept.kind == "download" and not self.downloads:
            return "--downloads"
        if self.older is not None and now - kept.used < self.older * DAY:
            return f"used within {self.older:g} d"
        return ""


def check_names(names: Iterable[str], shelf: list[Kept]) -> None:
    """Raise UnknownName for a name of neither a card nor a thing on the shelf."""
    known = {*card_paths("datasets"), *(one.name for one in shelf if one.name)}
    for name in names:
        if not any(one.belongs_to(name) for one in shelf) and name not in known:
            raise UnknownName("pack or card", name, known)


def shelf_table(shelf: list[Kept], wish: Wish, now: float) -> RenderableType:
    """One line per thing, with its size, its age and what becomes of it."""
    rows = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("what", "dataset", "px", "images", "size", "age", "unused", ""):
        rows.add_column(
            column, justify="right" if column in ("images", "size") else "left", no_wrap=column != "dataset"
        )
    for one in shelf:
        stays = wish.stays(one, now)
        rows.add_row(
            _WORDS[one.kind],
            say(one.name, "cyan") if one.name else "",
            f"{one.canvas[0]}x{one.canvas[1]}" if one.images else "",
            f"{one.images:,}" if one.images else "",
            decimal(one.bytes),
            _span(now - one.made),
            _span(now - one.used),
            say(f"stays: {stays}", "dim") if stays else Text("to remove", style="yellow"),
        )
    going = [one for one in shelf if not wish.stays(one, now)]
    total = f"{amount(shelf)} kept, {amount(going)} to remove"
    return Group(rows, Text(f"\n{total}"))


def amount(shelf: list[Kept]) -> str:
    """`3 things, 1.2 GB`."""
    return f"{len(shelf)} thing{'' if len(shelf) == 1 else 's'}, {decimal(sum(one.bytes for one in shelf))}"


def _span(seconds: float) -> str:
    """A time span in its largest whole unit."""
    for unit, length in (("d", DAY), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return "now"
