"""What people see of a fetch: the terms and the plan before it, bars in a terminal, some plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from bench.data.card import Archive
from bench.fetching.fetch import Fetched, Plan

_EVERY = 10.0  # seconds between the lines of one task where there is no terminal


def terms(plan: Plan) -> list[str]:
    """Title, terms of use, citation and homepage, one line each."""
    card = plan.card
    lines = [card.title, f"  terms     {card.licence}", f"  citation  {card.citation}"]
    return [*lines, f"  homepage  {card.homepage}"] if card.homepage else lines


def intention(plan: Plan) -> list[str]:
    """What will be downloaded, from where, where to, and the room it needs."""
    here = {archive.file for archive in plan.card.archives} - {archive.file for archive in plan.missing()}
    lines = [f"  archive   {_described(archive, archive.file in here)}" for archive in plan.card.archives]
    if not lines:
        return []
    unknown = any(archive.size is None for archive in plan.missing())
    more = " and what has no size in the card" if unknown else ""
    room = f"about {decimal(plan.room())}{more} needed meanwhile, {decimal(plan.free())} free"
    if any(archive.addresses for archive in plan.missing()):
        lines.append(f"  download  {decimal(plan.to_download())}{more}, to {plan.downloads}")
    return [*lines, f"  unpack    to {plan.folder}; {room}"]


def outcome(plan: Plan, fetched: Fetched, seconds: float) -> list[str]:
    """Where the dataset is now, what was kept, and what is left to do by hand."""
    lines = [f"{plan.name} is in {fetched.address}"]
    if fetched.files:
        lines = [f"{lines[0]}: {fetched.files:,} files, {decimal(fetched.bytes)}, in {_clock(seconds)}"]
    if fetched.kept:
        lines.append(f"kept: {', '.join(map(str, fetched.kept))}")
    if plan.card.by_hand and any(archive.addresses for archive in plan.card.archives):
        lines.append(f"left to do by hand: {plan.card.by_hand}")
    return [*lines, f"`bench data check {plan.name}` compares it with its card"]


@contextmanager
def watching(console: Console) -> Iterator["Bars | Lines"]:
    """A `bench.fetching.part.Watch` for this console."""
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, expand=True) as bars:
        yield Bars(bars)


class Bars:
    """One bar per task, in a terminal."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, tuple[TaskID, int]] = {}

    def at(self, task: str, done: int, total: int | None) -> None:
        """Move the task's bar; it begins where it stands at its first call, so that its speed is that of now."""
        bar, before = self.tasks.get(task, (None, 0))
        if bar is not None and done < before:
            self.bars.remove_task(bar)
            bar = None
        if bar is None:
            bar = self.bars.add_task(escape(task), total=total, completed=done)
        self.bars.update(bar, completed=done, total=total)
        self.tasks[task] = bar, done

    def tell(self, message: str) -> None:
        """A line above the bars."""
        self.bars.console.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)


class Lines:
    """A line per task at its begin and end, and every ten seconds between them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.task, self.began, self.first, self.said = "", 0.0, 0, 0.0
        self.over = False

    def at(self, task: str, done: int, total: int | None) -> None:
        """Say how far it is, if it is time to."""
        now = time.monotonic()
        if task != self.task or done < self.first:
            self.task, self.began, self.first = task, now, done
        elif self.over or (done != total and now - self.said < _EVERY):
            return
        self.said, self.over = now, done == total
        size = decimal(total) if total is not None else "unknown size"
        part = "" if done == total else f"{decimal(done)} of "
        self.tell(f"{task}: {part}{size}{self._speed(now, done, total)}")

    def _speed(self, now: float, done: int, total: int | None) -> str:
        seconds, came = now - self.began, done - self.first
        if not came or seconds <= 0:
            return ""
        left = f", {_clock((total - done) * seconds / came)} left" if total is not None and done < total else ""
        return f", {decimal(round(came / seconds))}/s{left}"

    def tell(self, message: str) -> None:
        """A line."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)


def _described(archive: Archive, here: bool) -> str:
    size = "size not in its card" if archive.size is None else decimal(archive.size)
    hosts = list(dict.fromkeys(urlsplit(address).netloc for address in archive.addresses))
    where = "is here already" if here else f"from {', else '.join(hosts)}" if hosts else "to be brought by hand"
    return f"{archive.file}, {size}, {where}"


def _clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
