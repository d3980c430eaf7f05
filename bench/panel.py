"""The panel of a running sweep, drawn from a snapshot: in `bench run`, and in `bench watch` from another terminal."""

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bench.live import Row, Snapshot

KINDS = ("finished", "reused", "pruned", "failed")  # how a trial ends, in the panel's order
_BAR = 24


def panel(snapshot: Snapshot) -> RenderableType:
    """The bar, the counts, and the trials in training."""
    return Group(_head(snapshot), _table(snapshot)) if snapshot.rows else _head(snapshot)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress_text(row: Row) -> str:
    """How far a trial is: its epochs, or what comes after the last."""
    return "evaluating" if row.epoch >= row.epochs else f"{row.epoch}/{row.epochs}"


def _head(snapshot: Snapshot) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    waiting = [f"{snapshot.waiting} waiting"] if snapshot.waiting else []
    counts = [f"{snapshot.running} running", *waiting, *(f"{snapshot.counts.get(kind, 0)} {kind}" for kind in KINDS)]
    best = f"best {snapshot.best[0]:.1%} ({snapshot.best[1]})" if snapshot.best else "no best yet"
    if not snapshot.total:  # counted in the ledger: no driver says more
        return Text(f"{snapshot.ended} trials  {' · '.join(counts[1:])}")
    text = f"{snapshot.ended}/{snapshot.total} trials  {' · '.join(counts)}  {best}  {clock(snapshot.elapsed)}"
    grid.add_row(ProgressBar(total=snapshot.total, completed=snapshot.ended, width=_BAR), Text(text))
    return grid


def _table(snapshot: Snapshot) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("trial", "epoch", "loss", "images/s", "left", "configuration"):
        words, last = name in ("trial", "configuration"), name == "configuration"
        # In a narrow terminal the columns that may wrap give way first: the last one, which then is cut instead.
        table.add_column(name, justify="left" if words else "right", no_wrap=not last, min_width=len(name))
    for row in snapshot.rows:
        table.add_row(
            Text(row.label),
            progress_text(row),
            "" if row.loss is None else f"{row.loss:.3f}",
            "" if row.images_per_second is None else f"{row.images_per_second:,.0f}",
            "" if row.seconds_left is None else clock(row.seconds_left),
            Text(row.settings, no_wrap=True, overflow="ellipsis"),
        )
    if snapshot.running > len(snapshot.rows):
        table.add_row(f"and {snapshot.running - len(snapshot.rows):,} more", style="dim")
    return table
