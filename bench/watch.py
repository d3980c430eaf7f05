"""The live progress of sweeps from another terminal, or another machine that shares the results' folder.

Everything is read, nothing is written, no lock is touched. Whether a driver lives is told by its word being renewed
while one watches, so no clocks are compared. Imports nothing slow.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from bench.errors import BadInput, UnknownName
from bench.live import BEAT, FOLDER, Snapshot, live_files
from bench.panel import panel
from bench.results.questions import sweep_records
from bench.safe import exposed

POLL = 1.0  # seconds between two looks
SILENT = 10.0  # seconds without a renewed word after which a driver is said to be silent
LARGEST = 1_000_000  # bytes of a driver's word that are read

Standing = Literal["running", "done", "interrupted", "silent", "unknown"]


@dataclass(frozen=True)
class Told:
    """A driver's last word; `waited` seconds for another one; `renewed`: it has changed while it was watched."""

    snapshot: Snapshot
    waited: float = 0.0
    renewed: bool = False

    @property
    def standing(self) -> Standing:
        """What is known of the driver."""
        silent = self.snapshot.state == "running" and self.waited >= SILENT
        return "silent" if silent else self.snapshot.state


@dataclass(frozen=True)
class View:
    """A version of a sweep as its drivers tell it; without a driver's word, as the ledger counts it."""

    sweep: str
    sweep_id: str
    title: str
    drivers: tuple[Told, ...] = ()
    counted: Snapshot | None = None

    @property
    def standing(self) -> Standing:
        """What is known of the sweep: it is done where a driver says so and none goes on with it."""
        said = {driver.standing for driver in self.drivers}
        order: tuple[Standing, ...] = ("running", "done", "silent", "interrupted")
        return next((standing for standing in order if standing in said), "unknown")

    @property
    def shown(self) -> list[Told]:
        """The drivers that have something to say: those that run, else those whose standing is the sweep's."""
        return [driver for driver in self.drivers if driver.standing == self.standing]

    @property
    def snapshots(self) -> list[Snapshot]:
        """What is shown of it."""
        return [driver.snapshot for driver in self.shown] or ([self.counted] if self.counted else [])

    def said(self) -> str:
        """The standing in a sentence."""
        if self.standing == "silent":
            driver = min(self.shown, key=lambda each: each.waited)
            return (
                f"the driver on {driver.snapshot.host} has said nothing for {driver.waited:.0f} s: "
                "it is gone, or this folder shows changes late"
            )
        failed = max((snapshot.counts.get("failed", 0) for snapshot in self.snapshots), default=0)
        more = f", {len(self.shown)} drivers" if len(self.shown) > 1 else ""
        return {
            "running": f"running{more}",
            "done": f"done, {failed} failed" if failed else "done",
            "interrupted": "interrupted: the same command goes on from here",
            "unknown": "no driver tells of itself here: this is what the ledger holds",
        }[self.standing]


@dataclass(frozen=True)
class _Seen:
    """What was read of a driver last, since when it is as it is, and whether it was seen to change."""

    snapshot: Snapshot
    since: float
    renewed: bool = False


@dataclass
class Watcher:
    """Looks at the drivers' words in `out` again and again, and remembers since when each is as it is."""

    out: Path
    clock: Callable[[], float] = time.monotonic
    _seen: dict[Path, _Seen] = field(default_factory=dict)

    def look(self) -> list[View]:
        """Every version of a sweep that a driver tells of: those seen to run first, then the newest."""
        now, there = self.clock(), {}
        for path in live_files(self.out / FOLDER):
            snapshot = _read(path)
            if snapshot is not None:
                there[path] = self._noted(path, snapshot, now)
        known = {_key(seen.snapshot) for seen in there.values()}
        # A file that goes makes way for another driver of its sweep; where none comes, its driver is silent.
        gone = {path: seen for path, seen in self._seen.items() if _key(seen.snapshot) not in known}
        self._seen = there | gone
        drivers: dict[tuple[str, str], list[Told]] = {}
        for _, seen in sorted(self._seen.items()):
            told = Told(seen.snapshot, now - seen.since, seen.renewed)
            drivers.setdefault(_key(seen.snapshot), []).append(told)
        views = [View(*key, some[0].snapshot.title, tuple(some)) for key, some in drivers.items()]
        return sorted(views, key=self._place, reverse=True)

    def settled(self, sweep: str | None = None, *, sleep: Callable[[float], None] = time.sleep) -> list[View]:
        """`look` until it is known which drivers live: of `sweep`, or of all sweeps. Takes up to `SILENT` seconds."""
        began = self.clock()
        while True:
            views = self.look()
            running = [
                driver
                for view in views
                for driver in view.drivers
                if sweep in (None, view.sweep) and driver.standing == "running"
            ]
            enough = any(driver.renewed for driver in running) and self.clock() - began > 2 * BEAT
            if enough or all(driver.renewed for driver in running):
                return views
            sleep(POLL / 2)

    def _noted(self, path: Path, snapshot: Snapshot, now: float) -> _Seen:
        before = self._seen.get(path)
        if before is None:
            return _Seen(snapshot, now)
        changed = before.snapshot.beat != snapshot.beat
        return _Seen(snapshot, now if changed else before.since, changed or before.renewed)

    def _place(self, view: View) -> tuple[bool, bool, float]:
        runs = [driver for driver in view.drivers if driver.standing == "running"]
        return any(driver.renewed for driver in runs), bool(runs), self._begun(view)

    def _begun(self, view: View) -> float:
        """When the sweep was begun last, by the clock of the storage."""
        try:
            return (self.out / "sweeps" / f"{view.sweep}-{view.sweep_id[:12]}.json").stat().st_mtime
        except OSError:
            return 0.0


def watch(out: Path, sweep: str | None, console: Console, *, once: bool = False) -> None:
    """Show a sweep, by default the newest that runs, until it is done; once where `once`, or without a terminal.

    Raises BadInput where no sweep has run under `out`, and UnknownName for a sweep that has not.
    """
    watcher = Watcher(out)
    with console.status("looking for drivers"):
        views = watcher.settled(sweep)
    view = choose(out, views, sweep)
    if once or not console.is_terminal:
        console.print(render(view, others(views, view)))
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while view.standing not in ("done", "unknown"):
            live.update(render(view, others(views, view)))
            time.sleep(POLL)
            views = watcher.look()
            view = next(each for each in views if (each.sweep, each.sweep_id) == (view.sweep, view.sweep_id))
    console.print(render(view))


def choose(out: Path, views: Sequence[View], sweep: str | None) -> View:
    """The sweep of that name, or the first; one without a driver's word comes from the ledger. See `watch`."""
    for view in views:
        if sweep in (None, view.sweep):
            return view
    records = [record for record in sweep_records(out).values() if "name" in record]
    named = [record for record in records if sweep in (None, record["name"])]
    if named:
        return _from_ledger(out, named[-1])
    if sweep is not None and (records or views):
        raise UnknownName(
            f"sweep under {out}", sweep, {*(str(each["name"]) for each in records), *(view.sweep for view in views)}
        )
    raise BadInput(f"{out}: no sweep has run here; `bench run --sweep simclr_gamma --out {out}` starts one")


def others(views: Sequence[View], shown: View) -> list[str]:
    """The names of sweeps that run beside the one shown."""
    return sorted({view.sweep for view in views if view.standing == "running"} - {shown.sweep})


def render(view: View, beside: Sequence[str] = ()) -> RenderableType:
    """The sweep's question, its standing, and the panel of each driver."""
    parts: list[RenderableType] = [
        Text(view.title, style="bold"),
        Text(f"sweep {view.sweep}: {view.said()}", style="" if view.standing in ("running", "done") else "yellow"),
    ]
    several = len(view.snapshots) > 1
    for snapshot in view.snapshots:
        parts += [Text(f"driver on {snapshot.host}", style="dim")] if several else []
        parts.append(panel(snapshot))
    if beside:
        parts.append(Text(f"also running here, see --sweep: {', '.join(beside)}", style="dim"))
    return Group(*parts)


def _key(snapshot: Snapshot) -> tuple[str, str]:
    return snapshot.sweep, snapshot.sweep_id


def _read(path: Path) -> Snapshot | None:
    """A driver's word; None for what is none, of another version of bench, or gone meanwhile."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return None
        return Snapshot.model_validate(_plain(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, ValidationError, RecursionError):
        return None


def _plain(value: Any) -> Any:
    """The same JSON without control characters in its texts: the folder may be somebody else's."""
    if isinstance(value, str):
        return exposed(value)
    if isinstance(value, dict):
        return {exposed(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _from_ledger(out: Path, record: Mapping[str, Any]) -> View:
    """A sweep without a driver's word: its trials by how they ended."""
    from bench.results.ledger import Ledger  # imports pyarrow

    listing, counts = Ledger(out).listing(), Counter[str]()
    name, sweep_id = str(record["name"]), str(record["sweep_id"])
    for stage in ("search", "confirm"):
        counts.update(listing.membership(name, stage, sweep_id).values())
    title = exposed(record.get("title", ""))
    counted = Snapshot(sweep=exposed(name), sweep_id=exposed(sweep_id), title=title, state="done", counts=dict(counts))
    return View(counted.sweep, counted.sweep_id, title, counted=counted)
