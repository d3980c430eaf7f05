"""Write an archive's members below one folder: names and links stay inside it, and sizes within limits.

Nothing is believed before it is checked: what is written is counted as it is written, and a header's claim is only a
reason to stop early. Modes and owners are ignored: files are what the user's umask makes them.
"""

import contextlib
import errno
import filecmp
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, BinaryIO

from bench.errors import BadData, BenchError

CHUNK = 1 << 20
_DEPTH = 64  # folders in folders; no release has ten
_FULL = (errno.ENOSPC, errno.EDQUOT)

Progress = Callable[[int, int], None]  # bytes of the archive read so far, and in all


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an archive may grow to; pictures hardly shrink in an archive, so a real release is far below."""

    ratio: int = 100  # bytes unpacked for each byte of the archive
    floor: int = 64 << 20  # bytes that even the smallest archive may hold
    member: int = 16 << 30  # bytes of one file
    members: int = 1_000_000

    def total(self, archive: int) -> int:
        """Bytes that an archive of this size may hold."""
        return max(self.floor, self.ratio * archive)


class Writer:
    """Writes members below one folder, and keeps within the limits."""

    def __init__(
        self, archive: Path, stream: BinaryIO, target: Path, progress: Progress | None, limits: Limits
    ) -> None:
        self.archive, self.stream, self.target = archive, stream, target.resolve()
        self.progress, self.limits = progress, limits
        self.size = os.fstat(stream.fileno()).st_size
        self.most = limits.total(self.size)
        self.files = self.bytes = self.members = 0

    def fault(self, message: str, member: str = "") -> BadData:
        """The error of the archive or of one member."""
        shown = member if len(member) <= 200 else f"{member[:200]}…"
        return BadData(f"{self.archive}: {f'member {shown!r} ' if member else ''}{message}")

    @contextlib.contextmanager
    def reading(self, member: str = "") -> Iterator[None]:
        """Turn what goes wrong with a member, in the archive or on the disk, into one error."""
        try:
            yield
        except BenchError:
            raise
        except OSError as error:
            if error.errno in _FULL:
                raise self.fault(f"does not fit: the disk of {self.target} is full", member) from None
            raise self.fault(f"cannot be unpacked: {error.strerror or error}", member) from None
        except Exception as error:  # a damaged archive raises nearly anything from within the decoders
            reason = str(error) or type(error).__name__
            raise self.fault(f"is damaged or cut short: {reason}", member) from None

    def place(self, name: str) -> Path:
        """Where a member goes; its name must stay inside the folder."""
        self.members += 1
        if self.members > self.limits.members:
            raise self.fault(f"has more than {self.limits.members:,} members; no release of images has")
        return self.target / self.inside(name)

    def inside(self, name: str) -> PurePosixPath:
        """A name as a path below the folder, checked for every separator that there is."""
        path, windows = PurePosixPath(name), PureWindowsPath(name)
        if not name or "\0" in name:
            raise self.fault("has an empty name or a NUL byte in its name; refused", name or "?")
        if path.is_absolute() or windows.root or windows.drive:
            raise self.fault("has an absolute name; refused", name)
        if ".." in windows.parts:
            raise self.fault("has a name that leaves the folder; refused", name)
        if len(path.parts) > _DEPTH:
            raise self.fault(f"lies more than {_DEPTH} folders deep; refused", name)
        return path

    def check_claim(self, member: str, size: int) -> None:
        """Stop early where a header claims too much. What is written is counted all the same."""
        if size > self.limits.member:
            raise self.fault(f"claims {size:,} bytes; no file of a release is so large", member)
        if self.bytes + size > self.most:
            raise self.bomb(member)

    def bomb(self, member: str = "") -> BadData:
        """The error of an archive that grows too much."""
        return self.fault(f"grows to more than {self.most:,} bytes; not so of pictures: refused as a bomb", member)

    def write(self, member: str, place: Path, source: IO[bytes]) -> None:
        """Write a file; the same file a second time is let pass, another one of the same name is not."""
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._copy(member, place, source)
        except FileExistsError:
            again = place.with_name(f".{self.members}.again")
            self._copy(member, again, source)
            if not place.is_file() or not filecmp.cmp(place, again, shallow=False):
                raise self.fault("is there twice, with different bytes; refused", member) from None
            again.unlink()
            self.files -= 1

    def _copy(self, member: str, place: Path, source: IO[bytes]) -> None:
        with place.open("xb") as sink:
            while chunk := source.read(CHUNK):
                self.bytes += len(chunk)
                if self.bytes > self.most:
                    raise self.bomb(member)
                sink.write(chunk)
                if self.progress:
                    self.progress(min(self.stream.tell(), self.size), self.size)
        self.files += 1
