"""A file that only grows, such as the journal of a study, kept on a store, whose objects cannot grow.

There it is two objects: most of it under its own name, and what was appended since under `NAME.tail`, whose first line
says at which byte it begins. So bringing a line to the store costs the tail, and not the whole file. A tail that begins
before the end of the file is outdated: the file was written after it. When a driver ends there is no tail.
"""

import os
from pathlib import Path

from bench import mirror
from bench.errors import BadData

TAIL = 128 << 10  # bytes; a longer tail becomes part of the file
_ROUNDS = 5  # of reading both, while they are written


class Growing:
    """A growing file at `path`, for its one writer; `file` is what to append to. On a plain disk they are the same.

    In a mirror `file` is a hidden one, which readers of the same mirror leave alone.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.is_mirrored = path, mirror.is_mirrored(path)
        self.file = path.with_name(f".{path.name}") if self.is_mirrored else path
        self._kept = self._told = 0  # bytes that the store has under the file's own name, and with the tail

    def open(self, *, fresh: bool = False) -> Path:
        """Bring `file` up to date with the store, or begin it anew; returns it. Raises BadData for a lost tail."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            self.file.unlink(missing_ok=True)
            mirror.remove(_tail(self.path), self.path)
        if self.is_mirrored:
            base, rest = _parts(self.path)
            self.file.write_bytes(base + rest)
            self._kept, self._told = len(base), len(base) + len(rest)
        return self.file

    def keep(self) -> None:
        """Bring what was appended to the store. Raises StoreAway."""
        size = self.file.stat().st_size if self.is_mirrored else 0
        if size == self._told or not self.is_mirrored:
            return
        with self.file.open("rb") as file:
            file.seek(self._kept)
            new = file.read(size - self._kept)
        if len(new) > TAIL:
            self._keep_all(size)
        else:
            mirror.write(_tail(self.path), b"%d\n" % self._kept + new)
        self._told = size

    def close(self) -> None:
        """Leave one whole object in the store."""
        size = self.file.stat().st_size if self.is_mirrored else 0
        if size > self._kept:
            self._keep_all(size)
            mirror.remove(_tail(self.path))

    def _keep_all(self, size: int) -> None:
        mirror.write(self.path, self.file.read_bytes()[:size])
        self._kept = self._told = size


def fetched(path: Path) -> Path:
    """`path` itself, brought up to date with the store: for readers, beside a writer too."""
    if mirror.is_mirrored(path):
        base, rest = _parts(path)
        if base or rest:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_bytes(base + rest)
            temporary.replace(path)
        else:
            path.unlink(missing_ok=True)
    return path


def _tail(path: Path) -> Path:
    return path.with_name(f"{path.name}.tail")


def _parts(path: Path) -> tuple[bytes, bytes]:
    """What the store has of a file: under its name, and what comes after that."""
    for _ in range(_ROUNDS):
        base, tail = mirror.read(path) or b"", mirror.read(_tail(path))
        if tail is None:
            return base, b""
        begin, _, rest = tail.partition(b"\n")
        if int(begin) <= len(base):
            return base, rest if int(begin) == len(base) else b""
    raise BadData(f"{mirror.address(path)}: its tail begins at byte {int(begin)}, beyond its end: it was cut short")
