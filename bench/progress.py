"""The progress of a sweep as people see it: a live panel in a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bench.bar import packing as packing
from bench.job import Job, label
from bench.plan import Plan, describe


@dataclass
class Running:
    """A trial in training, as far as its reports say."""

    job: Job
    started: float
    epoch: int = 0
    loss: float | None = None
    images_per_second: float | None = None
    epoch_at: float = 0.0
    first_epoch_at: float = 0.0
    first_epoch: int = 0

    @property
    def seconds_left(self) -> float | None:
        """Seconds of training left at the rate of the epochs seen."""
        seen = self.epoch - self.first_epoch
        if seen < 1:
            return None
        return (self.job.trial.training.epochs - self.epoch) * (self.epoch_at - self.first_epoch_at) / seen


@dataclass
class Board:
    """The state of a sweep, fed by events from any thread."""

    plan: Plan
    on_line: Callable[[str], None] | None = None
    running: dict[str, Running] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    best: tuple[float, str] | None = None
    began: float = field(default_factory=time.monotonic)
    _lock: Any = field(default_factory=threading.RLock)

    @property
    def total(self) -> int:
        """How many trials the sweep asks for, search and confirmation."""
        sweep = self.plan.sweep
        each = len(sweep.candidates) + len(sweep.confirm.baselines) + len(sweep.confirm.controls)
        return sum(map(sweep.draws, sweep.candidates)) + len(sweep.confirm.seeds) * each

    @property
    def ended(self) -> int:
        """Trials that need nothing more."""
        return sum(self.counts.get(kind, 0) for kind in ("finished", "reused", "pruned", "failed"))

    def __call__(self, kind: str, key: str, facts: Mapping[str, Any]) -> None:
        """Take in one event of `bench.scheduling.events`."""
        with self._lock:
            if kind == "start":
                self.running[key] = Running(facts["job"], time.monotonic())
            elif kind == "epoch":
                self._epoch(key, facts)
            elif kind == "note":
                if self.on_line:
                    self.on_line(f"{label(facts['job'])}: {facts['text']}")
            else:
                self._end(kind, key, facts)

    def _epoch(self, key: str, facts: Mapping[str, Any]) -> None:
        row = self.running.get(key)
        if row is None:
            return
        row.epoch, row.loss, row.epoch_at = int(facts["epoch"]), float(facts["loss"]), time.monotonic()
        row.images_per_second = float(facts["images_per_second"])
        if not row.first_epoch:
            row.first_epoch, row.first_epoch_at = row.epoch, row.epoch_at

    def _end(self, kind: str, key: str, facts: Mapping[str, Any]) -> None:
        row = self.running.pop(key, None)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        job: Job = facts["job"]
        if kind == "finished" and job.stage == "search":
            reached = float(facts["objective"]), label(job)
            self.best = reached if self.best is None or reached[0] > self.best[0] else self.best
        if self.on_line:
            seconds = f" in {time.monotonic() - row.started:.1f} s" if row else ""
            self.on_line(f"[{self.ended}/{self.total}] {label(job)} {kind}{_outcome(facts)}{seconds}{_what(job)}")

    def render(self) -> RenderableType:
        """The live panel."""
        with self._lock:
            rows = list(self.running.values())
        return Group(self._head(), self._table(rows)) if rows else self._head()

    def _head(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        parts = [f"{self.counts.get(kind, 0)} {kind}" for kind in ("finished", "reused", "pruned", "failed")]
        best = f"best {self.best[0]:.1%} ({self.best[1]})" if self.best else "no best yet"
        elapsed = clock(time.monotonic() - self.began)
        bar = ProgressBar(total=self.total, completed=self.ended, width=24)
        parts.insert(0, f"{len(self.running)} running")
        text = f"{self.ended}/{self.total} trials  {' · '.join(parts)}  {best}  {elapsed}"
        grid.add_row(bar, Text(text))
        return grid

    def _table(self, rows: list[Running]) -> Table:
        table = Table(box=None, padding=(0, 1), header_style="dim")
        for name in ("trial", "epoch", "loss", "images/s", "left", "configuration"):
            words = name in ("trial", "configuration")
            table.add_column(name, justify="left" if words else "right", no_wrap=True, min_width=len(name))
        for row in rows:
            epochs = row.job.trial.training.epochs
            at = "evaluating" if row.epoch >= epochs else f"{row.epoch}/{epochs}"
            table.add_row(
                Text(label(row.job)),
                at,
                "" if row.loss is None else f"{row.loss:.3f}",
                "" if row.images_per_second is None else f"{row.images_per_second:,.0f}",
                "" if row.seconds_left is None else clock(row.seconds_left),
                Text(_settings(row.job), overflow="ellipsis"),
            )
        return table


@contextmanager
def show(board: Board, console: Console) -> Iterator[None]:
    """Show `board` live in a terminal; elsewhere each ended trial is one line."""
    if not console.is_terminal:
        board.on_line = lambda line: console.print(escape(line), soft_wrap=True, highlight=False)
        yield
        return
    with Live(get_renderable=board.render, console=console, refresh_per_second=4, transient=True):
        yield


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _outcome(facts: Mapping[str, Any]) -> str:
    if facts.get("error"):
        return f": {facts['error']}"
    if facts.get("objective") is not None:
        return f", validation {facts['objective']:.1%}"
    return f" ({facts['status']})" if "status" in facts else ""


def _settings(job: Job) -> str:
    return describe(job.swept) if job.role in (None, "best") else ""


def _what(job: Job) -> str:
    settings = _settings(job)
    return f"  {settings}" if settings else ""
