"""The progress bar of work on a dataset's images. Imports nothing slow, unlike the display of a sweep."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def packing(console: Console, name: str, verb: str = "packing") -> Iterator[Callable[[int, int], None]]:
    """A progress bar for decoding the images of dataset `name`; shown only once there is something to do."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(f"{verb} {escape(name)}", total=None, visible=False)
    started = threading.Event()

    def update(done: int, total: int) -> None:
        if not started.is_set():
            started.set()
            bar.start()
            if not console.is_terminal:
                console.print(f"{verb} {escape(name)}: {total} images", highlight=False)
        bar.update(task, completed=done, total=total, visible=True)

    try:
        yield update
    finally:
        bar.stop()
