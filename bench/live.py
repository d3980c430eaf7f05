"""What a running driver tells of itself on disk: one small file per driver, `OUT/live/SWEEP-ID.LETTERS.json`.

It is replaced whole, at most once a second, and at least every `BEAT` seconds while the driver lives, each time
with another `beat`: who sees the beat change knows that the driver lives, on whichever machine and whatever the clocks
say. The driver's last word stays. Imports nothing slow: it is what `bench watch` reads.
"""

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from bench.records import Record

FOLDER = "live"
RENEW, BEAT = 1.0, 2.0  # seconds between two words of a driver: where something changed, and where nothing did
LAST_WORD = 5.0  # seconds that the end of a run waits for a storage that does not answer
MOST_ROWS = 64  # trials in training that are told one by one

State = Literal["running", "done", "interrupted"]


class Word(Record):
    """Something that a driver tells. What a later version of bench tells beside it is passed over."""

    model_config = ConfigDict(extra="ignore")


class Row(Word):
    """A trial in training: `epoch` of `epochs` have ended; None is what is not known yet."""

    label: str
    epoch: int
    epochs: int
    loss: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    settings: str = ""


class Snapshot(Word):
    """A driver's view of its sweep at one moment: the panel of `bench run` as data.

    `counts` are ended trials by how they ended, `rows` the first of the `running` ones, `waiting` how many wait at
    a rung, `elapsed` seconds since the driver began, `total` the trials that the sweep asks for (0: not known).
    """

    sweep: str
    sweep_id: str
    title: str
    state: State = "running"
    beat: int = 0
    host: str = ""
    elapsed: float = 0.0
    total: int = 0
    counts: dict[str, int] = Field(default_factory=dict)
    best: tuple[float, str] | None = None
    running: int = 0
    waiting: int = 0
    rows: tuple[Row, ...] = ()

    @property
    def ended(self) -> int:
        """Trials that need nothing more."""
        return sum(self.counts.values())


@contextmanager
def telling(out: Path, look: Callable[[], Snapshot]) -> Iterator[None]:
    """Keep what `look` gives on disk, from a thread of its own; a storage that fails disturbs nothing.

    When the block ends, the last word is that of `look`, and "interrupted" where that still says "running".
    """
    first = look()
    stem = f"{first.sweep}-{first.sweep_id[:12]}"
    folder, ended = out / FOLDER, threading.Event()
    # The words of earlier drivers go. A driver that lives beside this one renews its own within moments.
    for path in live_files(folder, f"{stem}."):
        _quietly(path.unlink)
    path = folder / f"{stem}.{uuid.uuid4().hex[:6]}.json"
    thread = threading.Thread(target=_tell, args=(path, look, ended), name="live", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=LAST_WORD)


def live_files(folder: Path, prefix: str = "") -> list[Path]:
    """The drivers' files in a folder; none where there is no folder, or none that can be listed."""
    try:
        return [path for path in folder.iterdir() if path.name.startswith(prefix) and _is_live(path.name)]
    except OSError:
        return []


def _is_live(name: str) -> bool:
    return name.endswith(".json") and not name.startswith(".")


def _tell(path: Path, look: Callable[[], Snapshot], ended: threading.Event) -> None:
    host, beat, told, at = socket.gethostname(), 0, None, 0.0
    while not ended.wait(RENEW if beat else 0):
        now = look()
        if told is None or now.model_copy(update={"elapsed": told.elapsed}) != told or time.monotonic() - at >= BEAT:
            beat, told, at = beat + 1, now, time.monotonic()
            _quietly(_write, path, now.model_copy(update={"beat": beat, "host": host}))
    last = look()
    state = "interrupted" if last.state == "running" else last.state
    _quietly(_write, path, last.model_copy(update={"beat": beat + 1, "host": host, "state": state}))


def _write(path: Path, snapshot: Snapshot) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(snapshot.model_dump_json(), encoding="utf-8")
    temporary.replace(path)


def _quietly(do: Callable[..., object], *arguments: object) -> None:
    with contextlib.suppress(OSError):
        do(*arguments)
