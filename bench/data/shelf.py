"""What bench keeps on this machine: packs, remains of builds that were killed, digests, downloads; and their removal.

    CACHE/packs/KEY/          a pack; KEY.lock is held by whoever builds it, in KEY.tmp
    CACHE/digests/            digests of files, so that unchanged ones are not read again
    ROOT/.downloads/NAME/     archives; NAME.lock is held by whoever fetches them, unpacking into ROOT/.NAME.partial

A thing is renamed away under its lock before it is deleted: no one ever opens half of it. Imports no torch.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock, Timeout

from bench.storage import is_remote

Kind = Literal["pack", "leftover", "digests", "download"]
_GONE = ".gone"  # marks what is being deleted


@dataclass(frozen=True)
class Kept:
    """One thing on the shelf.

    `name`: the dataset's, "" where it is not known; `bytes` on the disk; `made`, `used`: Unix times; of a pack also
    `canvas` (width, height in px) and how many `images`. `busy`: someone builds or fetches it now.
    """

    kind: Kind
    path: Path
    name: str
    bytes: int
    made: float
    used: float
    busy: bool = False
    canvas: tuple[int, int] = (0, 0)
    images: int = 0
    lock: Path | None = None

    def belongs_to(self, dataset: str) -> bool:
        """Whether it is of this dataset, whatever the options ("cub200?boxes=true")."""
        return dataset in (self.name, self.name.partition("?")[0])


def on_shelf(cache: Path, root: str | None = None) -> list[Kept]:
    """Everything kept in the cache and, of a data root on this machine, its downloads; by kind, then by name."""
    kept = [*_packs(cache / "packs"), *_digests(cache)]
    if root is not None and not is_remote(root):
        kept += _downloads(Path(root))
    order = ("pack", "leftover", "digests", "download")
    return sorted(kept, key=lambda one: (order.index(one.kind), one.name, one.canvas, one.path.name))


def packs_of(dataset: str, cache: Path) -> list[Kept]:
    """The packs of one dataset, whatever their size and options."""
    return [one for one in on_shelf(cache) if one.kind == "pack" and one.belongs_to(dataset)]


def remove(kept: Kept) -> bool:
    """Remove one thing; False if someone builds or fetches it now. Raises OSError."""
    with _alone(kept.lock) as alone:
        if not alone:
            return False
        away = kept.path if kept.path.name.endswith(_GONE) else kept.path.with_name(kept.path.name + _GONE)
        if away != kept.path:
            shutil.rmtree(away, ignore_errors=True)
            kept.path.rename(away)
    shutil.rmtree(away)
    return True


def _packs(folder: Path) -> Iterator[Kept]:
    for path in _folders(folder):
        lock = folder / f"{path.name.partition('.')[0]}.lock"
        busy = _is_held(lock)
        pack = _pack(path, lock, busy) if "." not in path.name else None
        yield pack or _plain("leftover", path, "", lock, busy)


def _pack(path: Path, lock: Path, busy: bool) -> Kept | None:
    """A whole pack, from its notes and the head of its array; None where they cannot be read."""
    try:
        notes = json.loads((path / "pack.json").read_bytes())
        shape = np.load(path / "images.npy", mmap_mode="r").shape
        made = (path / "pack.json").stat().st_mtime
        name, used = str(notes["name"]), max(made, path.stat().st_mtime)
        images, _, height, width = shape
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Kept("pack", path, name, _size(path), made, used, busy, (width, height), images, lock)


def _digests(cache: Path) -> Iterator[Kept]:
    for path in _folders(cache):
        if path.name.partition(".")[0] == "digests":
            yield _plain("digests", path, "", None, False)


def _downloads(root: Path) -> Iterator[Kept]:
    folder = root / ".downloads"
    for path in _folders(folder):
        name = path.name.removesuffix(_GONE)
        lock = folder / f"{name}.lock"
        yield _plain("download", path, name, lock, _is_held(lock))
    for path in _folders(root):
        if path.name.startswith(".") and path.name.removesuffix(_GONE).endswith(".partial"):
            name = path.name[1:].removesuffix(_GONE).removesuffix(".partial")
            lock = folder / f"{name}.lock"
            yield _plain("leftover", path, name, lock, _is_held(lock))


def _plain(kind: Kind, path: Path, name: str, lock: Path | None, busy: bool) -> Kept:
    made = path.lstat().st_mtime
    return Kept(kind, path, name, _size(path), made, made, busy, lock=lock)


def _folders(folder: Path) -> list[Path]:
    """The real folders in a folder; none where it is not there. What a link leads to is not ours."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        return []


def _size(folder: Path) -> int:
    total = 0
    for base, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.lstat(os.path.join(base, file)).st_size  # noqa: PTH118 (a Path per file is slow)
            except OSError:  # it is being removed
                continue
    return total


def _is_held(lock: Path) -> bool:
    with _alone(lock if lock.exists() else None) as alone:
        return not alone


@contextmanager
def _alone(lock: Path | None) -> Iterator[bool]:
    """Hold a lock, and tell whether it was free; a lock that cannot be taken for another reason counts as held."""
    if lock is None:
        yield True
        return
    guard = FileLock(lock)
    try:
        guard.acquire(timeout=0)
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        guard.release()
