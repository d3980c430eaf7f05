"""Results on a store (`s3://`, `gs://`, ...): a folder in the cache mirrors them, and bench works in that folder.

What is written whole is first put into the store and then gets its name in the mirror (`publish`); what is read is
first compared with the store (`refresh`, `fetch`). So the store is the truth: a file that has its name in a mirror is
in the store, or was. Another machine has another mirror of the same store, and a lost one costs a download. For a plain
folder all this is the folder itself, and nothing is asked.

Hidden files (`.NAME`) are a mirror's own: never stored, never removed.
"""

import hashlib
import os
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

from bench.cache import cache_folder
from bench.objects import Objects
from bench.storage import is_remote, join, last_name, normal

_Result = TypeVar("_Result")

SHARE = 0.1  # of a run's time that sparing uploads may take
_THREADS = 16  # transfers at a time: small objects are mostly waiting
_ROUNDS = 10  # of listing, while objects go because others take their place

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
            _mirrors[root] = _Mirror(root, Objects(address))
    return root


def opened(out: str | os.PathLike[str], *folders: str) -> Path:
    """`local(out)`, with these folders of it as the store has them: for commands that read results.

    Raises BadInput where there is no such bucket.
    """
    root = local(out)
    for name in folders:
        refresh(root / name, fixed=name == "ledger")
    mirror = _of(root)
    if mirror is not None and not any(_visible(root / name) for name in folders):
        mirror.objects.must_have_bucket()
    return root


def address(path: Path) -> str:
    """The address of a folder or file in a mirror, as people know it; of another one its path."""
    mirror = _of(path)
    return join(mirror.objects.address, *path.relative_to(mirror.root).parts) if mirror else str(path)


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
            mirror.objects.copy(mirror.name(path), mirror.name(before))
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
        _all(lambda path: mirror.objects.delete(mirror.name(path)), paths)
    for path in paths:
        path.unlink(missing_ok=True)


def empty(folder: Path) -> None:
    """Remove everything in a folder but hidden files, from the store too."""
    mirror = _of(folder)
    if mirror is not None:
        mirror.objects.clear(mirror.name(folder))
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
    entry = mirror.objects.info(mirror.name(path))
    with suppress(FileNotFoundError):
        if entry is not None:
            if not _same(path, entry):
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
        return path.read_bytes() if mirror is None else mirror.objects.read(mirror.name(path))
    except FileNotFoundError:
        return None


def write(path: Path, data: bytes) -> None:
    """Put `data` under a name into the store; the mirror is left alone. Of a plain folder: write the file."""
    mirror = _of(path)
    if mirror is None:
        path.write_bytes(data)
    else:
        mirror.objects.put(mirror.name(path), data)


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
        left = {name for name in mine | set(theirs) if without and name.endswith(without)}
        new = [name for name, entry in theirs.items() if name not in left and not _same(folder / name, entry, fixed)]
        if not any(_all(lambda name: mirror.has_lost(folder / name, theirs[name]), new)):  # noqa: B023 - used up here
            break
    for name in mine - set(theirs) - left:
        (folder / name).unlink(missing_ok=True)


def names(folder: Path) -> list[str]:
    """The names of the visible files in a folder, sorted; of a mirror's folder those in the store."""
    mirror = _of(folder)
    return sorted(_visible(folder) if mirror is None else mirror.listing(folder))


@dataclass
class _Mirror:
    """A folder and the store that it mirrors."""

    root: Path
    objects: Objects
    spent: dict[Path, tuple[float, float]] = field(default_factory=dict)  # of sparing uploads: when they ended, seconds

    def name(self, path: Path) -> str:
        """The name of a file or folder in the store."""
        return "/".join(path.relative_to(self.root).parts)

    def put(self, source: Path, path: Path) -> None:
        """Put a file's content into the store under the name of `path`."""
        self.objects.put_file(self.name(path), source)

    def get(self, path: Path, entry: Any = None) -> None:
        """Write what the store has under the name of `path` there, with its time in `entry`, pyarrow's FileInfo.

        Raises FileNotFoundError.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
        try:
            self.objects.download(self.name(path), temporary)
            if entry is not None and entry.mtime_ns:
                os.utime(temporary, ns=(entry.mtime_ns, entry.mtime_ns))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def has_lost(self, path: Path, entry: Any) -> bool:
        """`get`, and whether the object has gone since it was listed."""
        try:
            self.get(path, entry)
        except FileNotFoundError:
            return True
        return False

    def listing(self, folder: Path) -> dict[str, Any]:
        """What the store has directly in a folder, by name."""
        return self.objects.listing(self.name(folder))

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


def _same(path: Path, entry: Any, fixed: bool = False) -> bool:
    """Whether a mirror's file is what the store lists: its size, and its time to the second, which all disks keep."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    changed = entry.mtime_ns is None or status.st_mtime_ns // 10**9 != entry.mtime_ns // 10**9
    return bool(status.st_size == entry.size and (fixed or not changed))
