"""A file on its way: FILE.part with its running checksum, and whoever looks on."""

import hashlib
import json
import os
from pathlib import Path
from typing import IO, Protocol

from bench.data.card import Archive
from bench.errors import BadData

_CHUNK = 1 << 20


class Watch(Protocol):
    """Whoever looks on while a dataset is fetched."""

    def at(self, task: str, done: int, total: int | None) -> None:
        """`done` of `total` bytes of a task, such as "downloading images.tar", are done."""

    def tell(self, message: str) -> None:
        """Say one thing that people should know, such as a mirror that failed."""


def verify(path: Path, archive: Archive, watch: Watch) -> None:
    """Compare a file with its card; BadData says what was expected and what is there."""
    digest = Digest(archive.checksum)
    digest.take(path, watch, f"verifying {archive.file}")
    if problem := digest.problem():
        raise BadData(f"{path}: {problem}; remove it, or bring the right one")


class Digest:
    """A running checksum."""

    def __init__(self, checksum: str) -> None:
        self.kind, _, self.expected = checksum.partition(":")
        self.sum = hashlib.new(self.kind, usedforsecurity=False)

    def take(self, path: Path, watch: Watch, task: str) -> int:
        """Add a file's bytes; return how many."""
        done, total = 0, path.stat().st_size
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                self.sum.update(chunk)
                done += len(chunk)
                watch.at(task, done, total)
        return done

    def problem(self) -> str | None:
        """What is wrong with the sum."""
        found = self.sum.hexdigest()
        return None if found == self.expected else f"{self.kind} is {found} where the card says {self.expected}"


class Part:
    """FILE.part, its running checksum and where it came from."""

    def __init__(self, archive: Archive, folder: Path, watch: Watch) -> None:
        self.archive, self.watch = archive, watch
        self.final = folder / archive.file
        self.path = folder / f"{archive.file}.part"
        self.note = folder / f"{archive.file}.part.json"
        self.digest, self.size = Digest(archive.checksum), 0
        if self.path.is_file():
            self.size = self.digest.take(self.path, watch, f"verifying what is there of {archive.file}")
        self.began_at = self.size  # bytes that were there before this address was asked

    def origin(self) -> tuple[str, str]:
        """The address that the part came from and its validator, each "" where it is not known."""
        try:
            note = json.loads(self.note.read_bytes())
            return str(note["address"]), str(note["validator"])
        except (OSError, ValueError, LookupError, TypeError):
            return "", ""

    def remember(self, address: str, validator: str) -> None:
        """Note where the part comes from."""
        self.note.write_text(json.dumps({"address": address, "validator": validator}), encoding="utf-8")

    def reset(self) -> None:
        """Forget all that has come."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.digest, self.size, self.began_at = Digest(self.archive.checksum), 0, 0

    def append(self, sink: IO[bytes], chunk: bytes) -> None:
        """Keep what has come."""
        sink.write(chunk)
        self.digest.sum.update(chunk)
        self.size += len(chunk)

    def finish(self) -> Path:
        """Give the file its name."""
        with self.path.open("rb") as stream:
            os.fsync(stream.fileno())
        self.path.replace(self.final)
        self.note.unlink(missing_ok=True)
        return self.final
