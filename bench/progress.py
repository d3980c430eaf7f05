"""The progress of a sweep as people see it: a live panel in a terminal, plain lines elsewhere."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape

from bench.bar import packing as packing
from bench.job import Job, label
from bench.live import MOST_ROWS, Row, Snapshot
from bench.panel import KINDS, panel
from bench.panel import clock as clock
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

    def told(self) -> Row:
        """What the panel shows of it."""
        return Row(
            label=label(self.job),
            epoch=self.epoch,
            epochs=self.job.trial.training.epochs,
            loss=_finite(self.loss),
            images_per_second=_finite(self.images_per_second),
            seconds_left=self._seconds_left(),
            settings=_settings(self.job),
        )

    def _seconds_left(self) -> float | None:
        """Seconds of training left at the rate of the epochs seen."""
        seen = self.epoch - self.first_epoch
        if seen < 1:
            return None
        return (self.job.trial.training.epochs - self.epoch) * (self.epoch_at - self.first_epoch_at) / seen


@dataclass
class Board:
    """The state of a sweep, fed by events from any thread; `over` says how it ended: True where all of it is done."""

    plan: Plan
    on_line: Callable[[str], None] | None = None
    running: dict[str, Running] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)  # labels of those that wait at a rung
    best: tuple[float, str] | None = None
    over: bool = False
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
        return sum(self.counts.get(kind, 0) for kind in KINDS)

    def __call__(self, kind: str, key: str, facts: Mapping[str, Any]) -> None:
        """Take in one event of `bench.scheduling.events`."""
        with self._lock:
            if kind == "start":
                self.running[key] = Running(facts["job"], time.monotonic())
                self.waiting.discard(label(facts["job"]))
            elif kind == "epoch":
                self._epoch(key, facts)
            elif kind == "waits":
                self._waits(key, facts)
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

    def _waits(self, key: str, facts: Mapping[str, Any]) -> None:
        """A trial waits at a rung: it ends there unless it turns out to be among the best."""
        row = self.running.pop(key, None)
        self.waiting.add(label(facts["job"]))
        if self.on_line and row:  # what an earlier command left waiting was told by that
            self.on_line(f"{label(facts['job'])} waits at epoch {facts['epoch']}{_outcome(facts)}{_what(facts['job'])}")

    def _end(self, kind: str, key: str, facts: Mapping[str, Any]) -> None:
        row = self.running.pop(key, None)
        self.waiting.discard(label(facts["job"]))
        self.counts[kind] = self.counts.get(kind, 0) + 1
        job: Job = facts["job"]
        if kind == "finished" and job.stage == "search":
            reached = float(facts["objective"]), label(job)
            self.best = reached if self.best is None or reached[0] > self.best[0] else self.best
        if self.on_line:
            seconds = f" in {time.monotonic() - row.started:.1f} s" if row else ""
            self.on_line(f"[{self.ended}/{self.total}] {label(job)} {kind}{_outcome(facts)}{seconds}{_what(job)}")

    def snapshot(self) -> Snapshot:
        """Everything that the panel shows, as data."""
        with self._lock:
            running, counts, waiting = list(self.running.values()), dict(self.counts), len(self.waiting)
            rows = tuple(row.told() for row in running[:MOST_ROWS])
        sweep = self.plan.sweep
        return Snapshot(
            sweep=sweep.name,
            sweep_id=self.plan.sweep_id,
            title=sweep.title,
            state="done" if self.over else "running",
            elapsed=time.monotonic() - self.began,
            total=self.total,
            counts=counts,
            best=self.best,
            running=len(running),
            waiting=waiting,
            rows=rows,
        )

    def render(self) -> RenderableType:
        """The live panel."""
        return panel(self.snapshot())


@contextmanager
def show(board: Board, console: Console) -> Iterator[None]:
    """Show `board` live in a terminal; elsewhere each ended trial is one line."""
    if not console.is_terminal:
        board.on_line = lambda line: console.print(escape(line), soft_wrap=True, highlight=False)
        yield
        return
    with Live(get_renderable=board.render, console=console, refresh_per_second=4, transient=True):
        yield


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


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
