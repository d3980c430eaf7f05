"""A dataset's folder, on this machine or on a remote store: which files lie in it, and their bytes.

`scan` gives every image by its relative name (forward slashes) with its stamp: size in bytes and the time of its last
change in ns. Only a stamp that has changed makes a file be read again.
"""

import io
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Protocol, cast

from bench.data.index import plain
from bench.errors import BadInput, BenchError
from bench.storage import is_remote, join, last_name, normal, open_store

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
GONE = (-1, -1)  # the stamp of a file that is listed and not there
_IGNORED = frozenset({"__MACOSX"})
_BUCKETS = ("s3://", "gs://", "gcs://")
_BUFFER = 1 << 16  # bytes asked of a remote store at a time
_log = logging.getLogger(__name__)

Stamps = Mapping[str, tuple[int, int]]


class Tree(Protocol):
    """A folder of files, wherever it lies."""

    @property
    def address(self) -> str:
        """Absolute folder, or `s3://bucket/folder`."""

    def exists(self) -> bool:
        """Whether the folder is there."""

    def has(self, name: str) -> bool:
        """Whether a file or folder of this relative name is there."""

    def scan(self) -> dict[str, tuple[int, int]]:
        """The stamp of every image below the folder."""

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading, seekable; raises OSError."""


def open_tree(address: str) -> Tree:
    """The tree at a folder or a remote address; it need not be there."""
    return RemoteTree(normal(address)) if is_remote(address) else LocalTree(normal(address))


def read(tree: Tree, name: str) -> bytes:
    """A file's bytes; raises OSError."""
    with tree.open(name) as stream:
        return stream.read()


def place(tree: Tree, name: str = "") -> str:
    """The whole address of a file, for messages."""
    return join(tree.address, name) if name else tree.address


def folder_name(tree: Tree) -> str:
    """The last part of the tree's address."""
    return plain(last_name(tree.address)) or "folder"


@dataclass(frozen=True)
class LocalTree:
    """A folder of this machine."""

    address: str

    def exists(self) -> bool:
        """Whether the folder is there."""
        return Path(self.address).is_dir()

    def has(self, name: str) -> bool:
        """Whether a file or folder of this relative name is there; a name that no file can have is not."""
        return os.path.exists(f"{self.address}/{name}")  # noqa: PTH110 (a Path raises for a name that is too long)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; raises OSError."""
        return open(f"{self.address}/{name}", "rb")  # noqa: PTH123 (a Path costs as much as opening does)

    def scan(self) -> dict[str, tuple[int, int]]:
        """The stamp of every image below the folder.

        Each real folder is entered once, linked ones last, so loops end and a link cannot put an image twice.
        Hidden entries are ignored. A dangling link is kept as GONE: the pack will name and skip it.
        """
        found: dict[str, tuple[int, int]] = {}
        seen: set[tuple[int, int]] = set()
        pending = deque([(self.address, "")])
        while pending:
            folder, prefix = pending.popleft()
            for entry in _entries(folder, seen):
                if entry.name.startswith(".") or entry.name in _IGNORED:
                    continue
                name = prefix + entry.name
                if _is_folder(entry):
                    inner = (entry.path, f"{name}/")
                    (pending.append if entry.is_symlink() else pending.appendleft)(inner)
                elif PurePath(entry.name).suffix.lower() in EXTENSIONS:
                    stamp = _stamp(entry)
                    found |= {name: stamp} if stamp else {}
        return found


@dataclass(frozen=True)
class RemoteTree:
    """A folder on a store that pyarrow or fsspec reaches.

    A file that cannot be read is an OSError, as on a disk. A store that does not answer is a BadInput: what could not
    be asked for is not missing.
    """

    address: str

    def exists(self) -> bool:
        """Whether anything lies under the address; BadInput where the store does not answer or has no such bucket."""
        if self.has(""):
            return True
        store, path = open_store(self.address)
        bucket = path.partition("/")[0]
        if self.address.startswith(_BUCKETS) and not _is_there(self._ask(lambda: store.get_file_info(bucket))):
            raise BadInput(f"{self.address}: there is no bucket {bucket!r}")
        return False

    def has(self, name: str) -> bool:
        """Whether a file or folder of this relative name is there; BadInput where the store does not answer."""
        store, path = open_store(self.address)
        return _is_there(self._ask(lambda: store.get_file_info(join(path, name) if name else path)))

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; raises OSError, and BadInput where the store does not answer any more."""
        store, path = open_store(self.address)
        file = _Remote(self._check_store, lambda: store.open_input_file(join(path, name)))
        return cast(BinaryIO, io.BufferedReader(file, _BUFFER))

    def scan(self) -> dict[str, tuple[int, int]]:
        """The stamp of every image under the address, hidden ones left out; BadInput where it cannot be listed."""
        import pyarrow.fs

        store, path = open_store(self.address)
        entries = self._ask(lambda: store.get_file_info(pyarrow.fs.FileSelector(path, recursive=True)))
        found = {}
        for entry in entries:
            name = entry.path[len(path) :].lstrip("/")
            parts = name.split("/")
            hidden = any(part.startswith(".") or part in _IGNORED for part in parts)
            image = entry.type == pyarrow.fs.FileType.File and PurePath(name).suffix.lower() in EXTENSIONS
            if image and not hidden:
                found[name] = (int(entry.size), int(entry.mtime_ns or 0))
        return found

    def _check_store(self) -> None:
        store, path = open_store(self.address)
        self._ask(lambda: store.get_file_info(path))

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            with _as_os_errors():
                return question()
        except OSError as error:
            raise BadInput(f"{self.address}: the store does not give access: {error}") from None


class _Remote(io.RawIOBase):
    """A file of a store. After a failure the store is asked whether it is there at all."""

    def __init__(self, check_store: Callable[[], None], opener: Callable[[], Any]) -> None:
        super().__init__()
        self._check_store = check_store
        self._file = self._tried(opener)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        data = self._tried(lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """The rest, in one request."""
        return bytes(self._tried(self._file.read))

    def _tried(self, action: Callable[[], Any]) -> Any:
        try:
            with _as_os_errors():
                return action()
        except OSError:
            self._check_store()
            raise


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Turn what pyarrow and the many file systems of fsspec raise into OSErrors."""
    try:
        yield
    except (OSError, BenchError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _is_there(entry: Any) -> bool:
    import pyarrow.fs

    return bool(entry.type != pyarrow.fs.FileType.NotFound)


def _entries(folder: str, seen: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
    """Sorted entries of a folder that was not seen yet; a folder that cannot be read is reported and empty."""
    try:
        status = os.stat(folder)  # noqa: PTH116 (a Path per folder is slow)
        key = (status.st_dev, status.st_ino)
        if key in seen:
            return []
        seen.add(key)
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        _log.warning("folder %s is left out: %s", folder, error.strerror or error)
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _stamp(entry: os.DirEntry[str]) -> tuple[int, int] | None:
    """Size and mtime; None for a pipe or device, which must not be opened."""
    try:
        status = entry.stat()
        return (status.st_size, status.st_mtime_ns) if entry.is_file() else None
    except OSError:
        return GONE
