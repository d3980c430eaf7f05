"""Keeps what a server shows up to date: the report, made anew when the ledger has changed, and the live progress.

A page is made by a process of its own (`bench.page.served`); until it is whole, the one before it is shown. Nothing is
written anywhere. Imports nothing slow.
"""

import gzip
import hashlib
import html
import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import short
from bench.live import Snapshot
from bench.page.waiting import waiting_page
from bench.panel import KINDS
from bench.watch import POLL, View, Watcher

EVERY = 20.0  # seconds between two pages, at least; and three times as long as the last one took
LOOK = 5.0  # seconds between two looks at the ledger's folder
MOST_VIEWS = 8  # sweeps in the live progress
_POLICY = re.compile(rb'http-equiv="Content-Security-Policy" content="([^"]*)"')


@dataclass(frozen=True)
class Page:
    """A whole page: its name ("" where it only waits for the first), its bytes plain and gzipped, its policy."""

    name: str
    html: bytes
    packed: bytes
    policy: str

    @classmethod
    def of(cls, name: str, text: bytes) -> "Page":
        """The page whose HTML is `text`; the policy is the one that it states itself. Raises ValueError without one."""
        policy = _POLICY.search(text)
        if policy is None:
            raise ValueError("the page states no policy")
        stated = html.unescape(policy[1].decode("ascii"))
        return cls(name, text, gzip.compress(text, 6, mtime=0), f"{stated}; frame-ancestors 'none'")


class Upkeep:
    """`page` and `live` (JSON) as they are now; threads renew them between `start` and `stop`."""

    def __init__(self, out: Path, sweep: str | None = None, *, pictures: bool = False, every: float = EVERY) -> None:
        self.out, self.sweep, self.pictures, self.every = out, sweep, pictures, every
        self.page = Page.of("", waiting_page().encode())
        self.live = b"{}"
        self._watcher = Watcher(out)
        self._problem = ""
        self.command = [sys.executable, "-P", "-m", "bench.page.served"]
        self._made_of: str | None = None  # the ledger's state that the page shows
        self._process: subprocess.Popen[bytes] | None = None
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin; `live` is there at once, the first page after a while."""
        self._tell()
        for work in (self._watch, self._make):
            self._threads.append(threading.Thread(target=work, name=work.__name__, daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        """End, and end a page in the making."""
        self._ended.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
        for thread in self._threads:
            thread.join(timeout=POLL)

    def _watch(self) -> None:
        while not self._ended.wait(POLL):
            self._tell()

    def _tell(self) -> None:
        views = [view for view in self._watcher.look() if self.sweep in (None, view.sweep)]
        # What runs, what was left, and what was done last.
        kept = [view for place, view in enumerate(views) if view.standing != "done" or not place][:MOST_VIEWS]
        building = self._process is not None
        told = {"page": self.page.name, "building": building, "problem": self._problem, "views": [*map(_told, kept)]}
        self.live = json.dumps(told, separators=(",", ":")).encode()

    def _make(self) -> None:
        while not self._ended.is_set():
            state = ledger_state(self.out)
            if state == self._made_of:
                self._ended.wait(LOOK)
                continue
            began = time.monotonic()
            if self._made(uuid.uuid4().hex[:8]):
                self._made_of = state
            self._ended.wait(max(self.every, 3 * (time.monotonic() - began)))

    def _made(self, name: str) -> bool:
        """Make a page and show it; whether that went well."""
        arguments = [str(self.out), name]
        arguments += ["--sweep", self.sweep] if self.sweep else []
        arguments += ["--pictures"] if self.pictures else []
        try:
            # A session of its own, so that Ctrl-C in the terminal is the server's alone.
            self._process = subprocess.Popen(
                [*self.command, *arguments],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            with self._process as process:
                text, said = process.communicate()
            if process.returncode:
                raise ValueError((said.decode(errors="replace").strip().splitlines() or [f"{process.returncode}"])[-1])
            self.page, self._problem = Page.of(name, text), ""
        except (OSError, ValueError) as error:
            self._problem = f"The report could not be made: {short(str(error))}"
        finally:
            self._process = None
        return not self._problem


def ledger_state(out: Path) -> str:
    """A digest of what a page is made of: the ledger's file names, and the sweeps' definitions by their times."""
    known = hashlib.sha256()
    for folder, ending in ((out / "ledger", ".parquet"), (out / "sweeps", ".json")):
        try:
            with os.scandir(folder) as listing:
                items = sorted(item.path for item in listing if item.name.endswith(ending) and item.name[0] != ".")
        except OSError:
            continue
        for path in items:
            known.update(path.encode(errors="surrogateescape") + b"\0")
            if ending == ".json":
                known.update(_time(path))
    return known.hexdigest()


def _time(path: str) -> bytes:
    try:
        return str(Path(path).stat().st_mtime_ns).encode()
    except OSError:
        return b""


def _told(view: View) -> dict[str, Any]:
    """A sweep's live progress for the page's script."""
    return {
        "sweep": view.sweep,
        "standing": view.standing,
        "said": view.said(),
        "drivers": [*map(_driver, view.snapshots)],
    }


def _driver(snapshot: Snapshot) -> dict[str, Any]:
    counts = {kind: snapshot.counts[kind] for kind in KINDS if snapshot.counts.get(kind)}
    return snapshot.model_dump(mode="json", exclude={"beat"}) | {"ended": snapshot.ended, "counts": counts}
