"""One driver per sweep on a store: no lock reaches from machine to machine there.

A driver keeps an object beside the sweep's record and changes it every few seconds; whoever comes second watches it. If
it changes, the first one lives, and the second one says so and ends. If it stays as it is for `PATIENCE` seconds, it is
taken over: no two machines' clocks are compared. A dead process of this machine is known at once. A driver that was
taken for dead, as on a machine that slept, notices before it writes again or at its next change, and ends.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import mirror
from bench.errors import BadInput, BenchError

RENEW = 10.0  # seconds between two changes
PATIENCE = 60.0  # seconds without a change after which a lease is taken over
_SETTLE = 0.5  # seconds after which a lease that was written is read again: two may have written it
_LOOK = 1.0  # seconds between two looks at another's lease
_log = logging.getLogger(__name__)
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while a machine sleeps


class Lease:
    """The right to drive a sweep whose results lie on a store; on a plain folder everybody has it (see `claims`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._own = {"id": uuid.uuid4().hex, "host": socket.gethostname(), **_process(os.getpid())}
        self._own["since"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        self._renewed = 0.0
        self._lost = ""  # how, once another driver has taken over
        self._ended = threading.Event()
        self._busy = threading.Lock()

    def acquire(self) -> None:
        """Get the lease, from a dead driver too, which may take `PATIENCE` seconds. Raises BadInput where one lives."""
        if not mirror.is_mirrored(self.path):
            return
        holder = self._read()
        if holder is not None and not _is_dead(holder):
            self._watch(holder)
        self._write()
        time.sleep(_SETTLE)
        if not self._is_own():
            raise BadInput(self._lost)
        threading.Thread(target=self._renew_for_ever, name="lease", daemon=True).start()

    def check(self) -> None:
        """Raise BenchError if another driver has taken over."""
        if self._renewed and time.clock_gettime(_CLOCK) - self._renewed > PATIENCE / 2:
            self._renew()  # this process was stopped, or the store away
        if self._lost:
            raise BenchError(self._lost)

    def release(self) -> None:
        """Give the lease back, if it is still held."""
        if not self._renewed:
            return
        self._ended.set()
        with self._busy, suppress(BenchError):  # a lease that cannot be removed is taken over
            if self._is_own():
                mirror.remove(self.path)
        self._renewed = 0.0

    def _watch(self, holder: dict[str, Any]) -> None:
        _log.warning("%s, if it still lives: it is watched for up to %.0f s", self._who(holder), PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            time.sleep(_LOOK)
            now = self._read()
            if now is None:
                return
            if now != holder:
                raise BadInput(self._said(now))

    def _renew_for_ever(self) -> None:
        while not self._ended.wait(RENEW) and not self._lost:
            with suppress(BenchError):  # a store that is away: whoever reaches it may take over
                self._renew()

    def _renew(self) -> None:
        with self._busy:
            if not self._ended.is_set() and self._is_own():
                self._write()

    def _is_own(self) -> bool:
        now = self._read()
        if now is None:  # a store may miss a name once
            time.sleep(_SETTLE)
            now = self._read()
        if now is None:
            self._lost = f"{self._sweep()}: this driver's lease is gone: another one took over and has ended"
        elif now.get("id") != self._own["id"]:
            self._lost = f"{self._said(now)}; it took over, as if this one had ended"
        return not self._lost

    def _write(self) -> None:
        # Of one length: a store may be asked for the length first, and for the bytes after the next change.
        mirror.write(self.path, json.dumps(self._own | {"change": uuid.uuid4().hex}).encode())
        self._renewed = time.clock_gettime(_CLOCK)

    def _read(self) -> dict[str, Any] | None:
        text = mirror.read(self.path)
        try:
            found = None if text is None else json.loads(text)
        except ValueError:
            found = {}
        return found if isinstance(found, dict) or found is None else {}  # not whole yet, or not ours

    def _said(self, holder: dict[str, Any]) -> str:
        return f"{self._who(holder)}: results on a store have one driver per sweep; wait for it, or end it"

    def _who(self, holder: dict[str, Any]) -> str:
        who = "process {pid} on {host}, since {since}".format_map({"pid": "?", "host": "?", "since": "?"} | holder)
        return f"{self._sweep()}: another driver runs this sweep ({who})"

    def _sweep(self) -> str:
        return mirror.address(self.path.parent.parent)


def _process(pid: int) -> dict[str, Any]:
    """What identifies a process of this machine; without "boot" where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = Path("/proc/self/ns/pid").stat().st_ino  # containers of one machine have numbers of their own
        start = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        return {"pid": pid}
    return {"pid": pid, "boot": f"{boot}/{space}", "start": start}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    here = _process(os.getpid()).get("boot")
    pid = holder.get("pid")
    if here is None or holder.get("boot") != here or not isinstance(pid, int):
        return False
    there = _process(pid)
    return there.get("start") != holder.get("start") or _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    with suppress(OSError, IndexError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return text.rpartition(")")[2].split()[0] == "Z"
    return False
