"""Fetch a released dataset into the data root: download or find its archives, verify, unpack, and only then name it.

    ROOT/.downloads/NAME/FILE        archives that are whole; FILE.part what has come of one
    ROOT/.downloads/NAME.lock        held by whoever fetches NAME
    ROOT/.NAME.partial/              what is being unpacked; renamed to ROOT/NAME when everything is in

Killed at any moment, a fetch leaves nothing that is taken for a dataset, and the next one goes on from there.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from rich.filesize import decimal

from bench.data.card import READERS, Archive, DatasetCard
from bench.data.dataset import meaning, tree_of
from bench.data.releases import find_layout
from bench.data.roots import data_root, find_release
from bench.data.tree import open_tree
from bench.errors import BadData, BadInput
from bench.fetching.download import Patience, download
from bench.fetching.part import Watch, verify
from bench.fetching.unpack import is_archive, unpack
from bench.storage import is_remote

_UNPACKED = 1.1  # bytes on the disk for each byte of an archive of pictures


@dataclass(frozen=True)
class Plan:
    """What a fetch of one card's release would do. `settled` says why nothing needs to be done, else it is ""."""

    name: str
    card: DatasetCard
    root: Path
    settled: str = ""

    @property
    def folder(self) -> Path:
        """The dataset's own folder."""
        return self.root / self.name

    @property
    def downloads(self) -> Path:
        """Where its archives lie meanwhile."""
        return self.root / ".downloads" / self.name

    @property
    def partial(self) -> Path:
        """Where it is unpacked."""
        return self.root / f".{self.name}.partial"

    def missing(self) -> tuple[Archive, ...]:
        """The archives that are not here."""
        return tuple(archive for archive in self.card.archives if not (self.downloads / archive.file).is_file())

    def to_download(self) -> int:
        """Bytes still to be downloaded, as far as the card knows."""
        wanted = [archive for archive in self.missing() if archive.addresses]
        return sum(max(0, (archive.size or 0) - self._came(archive)) for archive in wanted)

    def room(self) -> int:
        """Bytes that the disk must still hold until the archives are removed: downloads and what is in them."""
        sizes = (self._size(archive) for archive in self.card.archives)
        return self.to_download() + round(_UNPACKED * sum(sizes))

    def free(self) -> int:
        """Bytes that are free where the data root is or will be."""
        return shutil.disk_usage(next(folder for folder in (self.root, *self.root.parents) if folder.is_dir())).free

    def _came(self, archive: Archive) -> int:
        part = self.downloads / f"{archive.file}.part"
        return part.stat().st_size if part.is_file() else 0

    def _size(self, archive: Archive) -> int:
        file = self.downloads / archive.file
        return file.stat().st_size if file.is_file() else archive.size or 0


@dataclass(frozen=True)
class Fetched:
    """Where the dataset lies; how much was unpacked (nothing where another fetch did it); archives that are left."""

    address: str
    files: int = 0
    bytes: int = 0
    kept: tuple[Path, ...] = ()


def plan_fetch(reference: str, root: str | None = None) -> Plan:
    """What is to be done for a dataset: a card's name or path. `root`: see `roots.data_root`.

    Raises UnknownName for another name, and BadInput for a data root that is no folder of this machine.
    """
    meant = meaning(reference)
    base = data_root(root)
    if meant.path is None or meant.card is None:
        where = meant.tree.address if meant.tree else reference
        raise BadInput(f"{where} is a folder: it is used from where it lies, and there is nothing to fetch")
    name, card = meant.path.stem, meant.card
    if card.reader == "builtin":
        return Plan(name, card, Path(base), f"{name} is drawn by bench itself: there is nothing to fetch")
    if card.reader in READERS or card.location is not None:
        where = tree_of(meant.path, card, root).address
        return Plan(name, card, Path(base), f"{name} is where its card says, in {where}: there is nothing to fetch")
    if is_remote(base):
        raise BadInput(
            f"data root {base} is on a remote store: fetch {name} into a folder of this machine "
            f"(--data-root FOLDER), then upload FOLDER/{name} to {base}/{name}"
        )
    found = find_release(name, card, base)
    if found is not None:
        return Plan(name, card, Path(base), f"{name} is here already, in {found.address}")
    plan = Plan(name, card, Path(base))
    _check_card(plan)
    return plan


def fetch(plan: Plan, watch: Watch, *, keep_archives: bool = False, patience: Patience | None = None) -> Fetched:
    """Carry a plan out; two at once are one that works and one that waits for it.

    Archives that were downloaded are removed at the end unless `keep_archives`; those that a person brought stay.
    Raises BadInput where a person is needed, or room; BenchError and BadData as `download` and `unpack` do.
    """
    _check_hands(plan)
    plan.downloads.mkdir(parents=True, exist_ok=True)
    lock = FileLock(plan.downloads.with_name(f"{plan.name}.lock"), poll_interval=0.2)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        watch.tell(f"another fetch of {plan.name} is under way: waiting for it")
        lock.acquire()
    try:
        return _fetch(plan, watch, keep_archives, patience or Patience())
    finally:
        lock.release()


def _fetch(plan: Plan, watch: Watch, keep_archives: bool, patience: Patience) -> Fetched:
    found = find_release(plan.name, plan.card, str(plan.root))
    if found is not None:
        return Fetched(found.address)
    shutil.rmtree(plan.partial, ignore_errors=True)
    _check_target(plan)
    _check_room(plan)
    files = [_bring(plan, archive, watch, patience) for archive in plan.card.archives]
    _check_room(plan)  # now that every size is known
    fetched = _unpack_all(plan, files, watch)
    return Fetched(fetched.address, fetched.files, fetched.bytes, _tidy(plan, keep_archives))


def _bring(plan: Plan, archive: Archive, watch: Watch, patience: Patience) -> Path:
    """An archive's verified file: the one that is here, or a new one."""
    file = plan.downloads / archive.file
    if not file.is_file():
        return download(archive, plan.downloads, watch, patience)
    verify(file, archive, watch)
    return file


def _unpack_all(plan: Plan, files: list[Path], watch: Watch) -> Fetched:
    """Unpack beside the final folder, look whether it is the release, and rename."""
    count = size = 0
    try:
        for archive, file in zip(plan.card.archives, files, strict=True):
            more = _unpack_one(plan.partial / archive.into, file, watch)
            count, size = count + more[0], size + more[1]
        _check_release(plan)
        if plan.folder.is_dir():
            plan.folder.rmdir()  # it is empty, else it would have been refused
        plan.partial.rename(plan.folder)
    except BaseException:
        shutil.rmtree(plan.partial, ignore_errors=True)
        raise
    found = find_release(plan.name, plan.card, str(plan.root))
    return Fetched(found.address if found else str(plan.folder), count, size)


def _unpack_one(target: Path, file: Path, watch: Watch) -> tuple[int, int]:
    task = f"unpacking {file.name}"
    size = file.stat().st_size
    watch.at(task, 0, size)
    if is_archive(file.name):
        done = unpack(file, target, lambda read, total: watch.at(task, read, total))
        watch.at(task, size, size)
        return done.files, done.bytes
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target / file.name)
    watch.at(task, size, size)
    return 1, size


def _check_release(plan: Plan) -> None:
    layout = find_layout(plan.card.reader)
    if not any(layout.is_at(open_tree(str(plan.partial / folder))) for folder in ("", *plan.card.folders)):
        raise BadData(
            f"{plan.downloads}: the archives are those of the card, and yet hold no release that reader "
            f"{plan.card.reader!r} knows{_unlike(plan)}: its folders, into or reader is wrong"
        )


def _tidy(plan: Plan, keep_archives: bool) -> tuple[Path, ...]:
    """Remove what was downloaded; return the archives that are left."""
    kept = []
    for archive in plan.card.archives:
        file = plan.downloads / archive.file
        if keep_archives or not archive.addresses:
            kept.append(file)
        else:
            file.unlink(missing_ok=True)
    if not any(plan.downloads.iterdir()):
        plan.downloads.rmdir()
    return tuple(kept)


def _check_card(plan: Plan) -> None:
    """A user's card may say anything."""
    for archive in plan.card.archives:
        into = Path(archive.into)
        if archive.file in (".", "..") or into.is_absolute() or ".." in into.parts:
            raise BadInput(f"card {plan.name}: archives: {archive.file!r} into {archive.into!r} leaves its folder")
    if len({archive.file for archive in plan.card.archives}) < len(plan.card.archives):
        raise BadInput(f"card {plan.name}: archives: two have the same file name")


def _check_hands(plan: Plan) -> None:
    """Say what a person must do before anything is downloaded."""
    how = plan.card.by_hand or f"its makers say how: {plan.card.homepage or plan.card.citation}"
    wanted = [archive for archive in plan.missing() if not archive.addresses]
    ready = f"a release that is unpacked already goes to {plan.folder}, or --data-root says where it lies"
    if not plan.card.archives:
        raise BadInput(f"{plan.name} cannot be fetched by a program: {how}\n{ready}")
    if wanted:
        names = ", ".join(archive.file for archive in wanted)
        raise BadInput(
            f"{plan.name}: no program can download {names}: {how}\n"
            f"put {'it' if len(wanted) == 1 else 'them'} into {plan.downloads} and give the same command again: "
            f"the checksum is verified and the rest is done; {ready}"
        )


def _check_target(plan: Plan) -> None:
    folder = plan.folder
    empty = folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
    if os.path.lexists(folder) and not empty:
        raise BadInput(f"{folder} is there and is not the release{_unlike(plan)}: move it away, then fetch")


def _unlike(plan: Plan) -> str:
    marks = find_layout(plan.card.reader).marks
    return f" (it has none of {', '.join(marks[:4])})" if marks else ""


def _check_room(plan: Plan) -> None:
    need, free = plan.room(), plan.free()
    if need > free:
        raise BadInput(
            f"{plan.root}: {plan.name} needs about {decimal(need)} there until its archives are unpacked, and "
            f"{decimal(free)} are free; --data-root names another place"
        )
