"""Results on a store (`s3://`, `gs://`, ...): a folder in the cache mirrors them, and bench works in that folder.

What is written whole is first put into the store and then gets its name in the mirror (`publish`); what is read is
first compared with the store (`refresh`, `fetch`). So the store is the truth: a file that has its name in a mirror is
in the store, or was. Another machine has another mirror of the same store, and a lost one costs a download. For a plain
folder all this is the folder itself, and nothing is asked.

Hidden files (`.NAME`) are a mirror's own: never stored, never removed. Waiting for a store that is away happens here,
for a minute or two, once: until it answers again nothing waits a second time.
"""

import errno
import hashlib
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bench.data.digests import cache_folder
from bench.errors import BadInput, BenchError, StoreAway
from bench.patience import patiently
from bench.storage import is_remote, join, last_name, normal, open_store

_Result = TypeVar("_Result")

SHARE = 0.1  # of a run's time that sparing uploads may take
_OBJECTS = ("s3", "gs", "gcs")  # stores where a name needs no folder before it
_THREADS = 16  # transfers at a time: small objects are mostly waiting
_ROUNDS = 10  # of listing, while objects go because others take their place
_PIECE = 16 << 20  # bytes
_REFUSED = re.compile("ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY|INVALID_CLIENT|SIGNATURE|HTTP status 40[013]")
_MISSING = re.compile("NO_SUCH_KEY|HTTP status 404")

_mirrors: dict[Path, "_Mirror"] = {}  # of this process, by their folder
_opening = threading.Lock()


def local(out: str | os.PathLike[str]) -> Path:
    """The folder to work in: the results folder itself, or the mirror of a remote address, which is made known.

    Asks the store nothing. Raises BadInput for an address that cannot be one.
    """
    text = os.fspath(out)
    if not is_remote(text):
        return Path(text.removeprefix("file://")).expanduser().absolute()
    address = normal(text)
    name = f"{last_name(address) or 'results'}-{hashlib.sha256(address.encode()).hexdigest()[:16]}"
    root = cache_folder() / "results" / name
    with _opening:
        if root not in _mirrors:
            filesystem, prefix = open_store(address, tries=1)
            _mirrors[root] = _Mirror(root, address, filesystem, prefix)
    return root


def opened(out: str | os.PathLike[str], *folders: str) -> Path:
    """`local(out)`, with these folders of it as the store has them: for commands that read results."""
    root = local(out)
    for name in folders:
        refresh(root / name, fixed=name == "ledger")
    return root


def address(path: Path) -> str:
    """The address of a folder or file in a mirror, as people know it; of another one its path."""
    mirror = _of(path)
    return join(mirror.address, *path.relative_to(mirror.root).parts) if mirror else str(path)


def is_mirrored(path: Path) -> bool:
    """Whether a path lies in a mirror of this process."""
    return _of(path) is not None


def publish(temporary: Path, path: Path, *, before: Path | None = None, sparing: bool = False) -> None:
    """Give a file that is complete its name; in a mirror it is put into the store first.

    `before`: what was at `path` gets this name. `sparing`: the store has it only as often as uploads of this path take
    no more than a tenth of the time; the first time always. Raises OSError; then `path` is as it was.
    """
    mirror = _of(path)
    there = before is not None and path.exists()
    if mirror is not None and not (sparing and mirror.is_early(path)):
        began = time.monotonic()
        if there and before is not None:
            mirror.copy(path, before)
        mirror.put(temporary, path)
        mirror.spent[path] = (time.monotonic(), time.monotonic() - began)
    if there and before is not None:
        path.replace(before)
    temporary.replace(path)


def stored(path: Path) -> None:
    """Bring a file that was written in place to the store."""
    mirror = _of(path)
    if mirror is not None:
        mirror.put(path, path)


def store_folder(folder: Path) -> None:
    """Bring every file below a folder to the store."""
    mirror = _of(folder)
    if mirror is not None:
        found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        _all(lambda path: mirror.put(path, path), (path for path in found if not path.name.startswith(".")))


def remove(*paths: Path) -> None:
    """Remove files, those that are there, from the store too."""
    mirror = _of(paths[0]) if paths else None
    if mirror is not None:
        _all(mirror.delete, paths)
    for path in paths:
        path.unlink(missing_ok=True)


def empty(folder: Path) -> None:
    """Remove everything in a folder but hidden files, from the store too."""
    mirror = _of(folder)
    if mirror is not None:
        mirror.ask(lambda: mirror.filesystem.delete_dir_contents(mirror.key(folder), missing_dir_ok=True))
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif not path.name.startswith("."):
            path.unlink(missing_ok=True)


def fetch(path: Path) -> bool:
    """Bring one file up to date with the store; whether it is there."""
    mirror = _of(path)
    if mirror is None:
        return path.exists()
    entry = mirror.ask(lambda: mirror.filesystem.get_file_info(mirror.key(path)))
    with suppress(FileNotFoundError):
        if entry.is_file:
            if not _same(path, entry, fixed=False):
                mirror.get(path, entry)
            return True
    path.unlink(missing_ok=True)
    return False


def fetch_new(path: Path) -> None:
    """Bring a file that never changes from the store, where the mirror has none."""
    mirror = _of(path)
    if mirror is not None and not path.exists():
        with suppress(FileNotFoundError):
            mirror.get(path)


def read(path: Path) -> bytes | None:
    """What the store, or the folder, holds under a name now; None where it holds nothing. The mirror is left alone."""
    mirror = _of(path)
    try:
        return path.read_bytes() if mirror is None else mirror.ask(lambda: mirror.load(path))
    except FileNotFoundError:
        return None


def write(path: Path, data: bytes) -> None:
    """Put `data` under a name into the store; the mirror is left alone. Of a plain folder: write the file."""
    mirror = _of(path)
    if mirror is None:
        path.write_bytes(data)
    else:
        mirror.ask(lambda: mirror.save(data, path))


def refresh(folder: Path, *, fixed: bool = False, without: str | None = None) -> None:
    """Bring the files of one folder up to date with the store: fetch what is new, remove what is gone.

    `fixed`: a name means the same bytes for ever, as in the ledger. Files whose names end with `without` stay as they
    are. Any number of processes may do so at once.
    """
    mirror = _of(folder)
    if mirror is None:
        return
    for _ in range(_ROUNDS):
        mine = _visible(folder)  # looked at before the store is: what it does not list then has been removed there
        theirs = mirror.listing(folder)
        wanted = {name: entry for name, entry in theirs.items() if not (without and name.endswith(without))}
        new = [name for name, entry in wanted.items() if not _same(folder / name, entry, fixed=fixed)]
        if not any(_all(lambda name: mirror.has_lost(folder / name, theirs[name]), new)):  # noqa: B023 - used up here
            break
    for name in mine - set(theirs):
        (folder / name).unlink(missing_ok=True)


def names(folder: Path) -> list[str]:
    """The names of the visible files in a folder, sorted; of a mirror's folder those in the store."""
    mirror = _of(folder)
    return sorted(_visible(folder) if mirror is None else mirror.listing(folder))


@dataclass
class _Mirror:
    """A folder and the place in a store that it mirrors."""

    root: Path
    address: str
    filesystem: Any
    prefix: str
    away: bool = False  # the store did not answer when it was last waited for
    spent: dict[Path, tuple[float, float]] = field(default_factory=dict)  # of sparing uploads: when they ended, seconds

    def key(self, path: Path) -> str:
        """The name in the store."""
        return "/".join((self.prefix, *path.relative_to(self.root).parts))

    def ask(self, question: Callable[[], _Result]) -> _Result:
        """Do something with the store, which is waited for. Raises FileNotFoundError, BadInput and StoreAway."""
        try:
            answer = self._tried(question) if self.away else patiently(self._tried, question)
        except FileNotFoundError:
            raise
        except OSError as error:
            self.away = True
            said = " ".join((error.strerror or str(error)).split())
            if _REFUSED.search(said):
                raise BadInput(f"{self.address}: the store does not give access: {said}") from None
            raise StoreAway(
                f"{self.address}: the store does not answer: {said}; once it does, the same command goes on from here"
            ) from None
        self.away = False
        return answer

    def _tried(self, question: Callable[[], _Result]) -> _Result:
        """Ask once; raises OSError, of a kind that `patiently` knows where it may pass."""
        try:
            return question()
        except (FileNotFoundError, BenchError):
            raise
        except Exception as error:  # pyarrow's have no number, and those of fsspec's many stores are of any kind
            if _MISSING.search(str(error)):
                raise FileNotFoundError(str(error)) from None
            if isinstance(error, OSError) and (error.errno or _REFUSED.search(str(error))):
                raise
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error

    def put(self, source: Path, path: Path) -> None:
        """Put a file's content under the name of `path`, whole or not at all."""
        import pyarrow

        with pyarrow.memory_map(str(source)) as file:
            data = file.read_buffer()
            self.ask(lambda: self.save(data, path))

    def save(self, data: Any, path: Path) -> None:
        """Put bytes under the name of `path`, in one write: a store shows what was closed, also after half of it."""
        key = self.key(path)
        if self.address.partition("://")[0] not in _OBJECTS:
            self.filesystem.create_dir(key.rpartition("/")[0], recursive=True)
        with self.filesystem.open_output_stream(key) as target:
            target.write(data)

    def load(self, path: Path) -> bytes:
        """The bytes under the name of `path`."""
        with self.filesystem.open_input_file(self.key(path)) as source:
            return bytes(source.read())

    def get(self, path: Path, entry: Any = None) -> None:
        """Write what the store has under the name of `path` there, with its time in `entry`, pyarrow's FileInfo.

        Raises FileNotFoundError.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
        try:
            self.ask(lambda: self._download(path, temporary))
            if entry is not None and entry.mtime_ns:
                os.utime(temporary, ns=(entry.mtime_ns, entry.mtime_ns))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _download(self, path: Path, temporary: Path) -> None:
        with self.filesystem.open_input_stream(self.key(path)) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target, _PIECE)

    def has_lost(self, path: Path, entry: Any) -> bool:
        """`get`, and whether the object has gone since it was listed."""
        try:
            self.get(path, entry)
        except FileNotFoundError:
            return True
        return False

    def copy(self, path: Path, to: Path) -> None:
        """Copy inside of the store; nothing where there is nothing."""
        with suppress(FileNotFoundError):
            self.ask(lambda: self.filesystem.copy_file(self.key(path), self.key(to)))

    def delete(self, path: Path) -> None:
        """Remove one object, if it is there."""
        with suppress(FileNotFoundError):
            self.ask(lambda: self.filesystem.delete_file(self.key(path)))

    def listing(self, folder: Path) -> dict[str, Any]:
        """What the store has directly in a folder, by name: pyarrow's FileInfo."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self.key(folder), allow_not_found=True)
        entries = self.ask(lambda: self.filesystem.get_file_info(selector))
        return {entry.base_name: entry for entry in entries if entry.is_file and not entry.base_name.startswith(".")}

    def is_early(self, path: Path) -> bool:
        """Whether uploading `path` again now would take more than its share of the time."""
        ended, seconds = self.spent.get(path, (-1e9, 0.0))
        return time.monotonic() - ended < seconds * (1 / SHARE - 1)


def _of(path: Path) -> _Mirror | None:
    return next((mirror for root, mirror in list(_mirrors.items()) if path.is_relative_to(root)), None)


def _all(action: Callable[[Any], _Result], things: Iterable[Any]) -> list[_Result]:
    listed = list(things)
    if len(listed) < 2:
        return [action(each) for each in listed]
    with ThreadPoolExecutor(min(_THREADS, len(listed))) as pool:
        return list(pool.map(action, listed))


def _visible(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    except FileNotFoundError:
        return set()


def _same(path: Path, entry: Any, *, fixed: bool) -> bool:
    """Whether a mirror's file is what the store lists: its size, and its time to the second, which all disks keep."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    changed = entry.mtime_ns is None or status.st_mtime_ns // 10**9 != entry.mtime_ns // 10**9
    return bool(status.st_size == entry.size and (fixed or not changed))
