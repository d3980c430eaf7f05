"""A dataset that is a folder of images.

With splits.csv (file, class, split) that file decides; images that it does not list are left out, with a
warning. Without it the top folders decide:

- none: every image is unlabelled;
- train, val, test, unlabelled (or a synonym, see `splits.WORDS`): train/CLASS/FILE, unlabelled/FILE;
- any others: they are the classes, cut 60/20/20 class by class; a folder `unlabelled` may lie beside them.

Folders below a class may nest. Where there is no val split, 20 % of each class's train images become it.
"""

import hashlib
import logging
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from bench.data.digests import file_digests
from bench.data.index import VAL_SHARE, Index, build_index, cut, plain
from bench.data.source import Split
from bench.data.splits import NAME, WORDS, Row, read_splits
from bench.errors import BadInput, suggestion
from bench.records import canonical_json

READER_VERSION = 1  # part of every fingerprint: raise it when the same folder would be indexed differently
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
_IGNORED = frozenset({"__MACOSX"})
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderData:
    """A folder's index and the fingerprint of its content, which does not depend on where it lies."""

    index: Index
    fingerprint: str


def read_folder(folder: Path, cache: Path) -> FolderData:
    """Index a folder and fingerprint it; BadInput says what is wrong with its layout or its splits.csv."""
    stamps = scan(folder)
    table = folder / NAME
    if table.is_file():
        rows = read_splits(table, stamps)
        if len(rows) < len(stamps):
            _log.warning("%s: %d images are not in %s and left out", folder, len(stamps) - len(rows), NAME)
    else:
        rows = _by_layout(folder, stamps)
    index = build_index(folder.name or "folder", _with_val(rows))
    digests = file_digests(folder, {file: stamps[file] for file in index.files}, cache)
    return FolderData(index, _fingerprint(index, digests))


def scan(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and mtime (ns) of every image below `folder` by its relative name, with forward slashes.

    Each real folder is entered once, linked ones last, so loops end and a link cannot put an image twice.
    Hidden entries are ignored. A dangling link is kept, with size -1: the pack will name and skip it.
    """
    found: dict[str, tuple[int, int]] = {}
    seen: set[tuple[int, int]] = set()
    pending = deque([(str(folder), "")])
    while pending:
        place, prefix = pending.popleft()
        for entry in _entries(place, seen):
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


def _entries(place: str, seen: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
    """Sorted entries of a folder that was not seen yet; a folder that cannot be read is reported and empty."""
    try:
        status = os.stat(place)  # noqa: PTH116 (a Path per folder is slow)
        key = (status.st_dev, status.st_ino)
        if key in seen:
            return []
        seen.add(key)
        with os.scandir(place) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        _log.warning("folder %s is left out: %s", place, error.strerror or error)
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
        return -1, -1


def _by_layout(folder: Path, images: Iterable[str]) -> list[Row]:
    """Rows of a folder without splits.csv, from its top folders' names."""
    files = sorted(images)
    tops = {file.partition("/")[0] for file in files if "/" in file}
    loose = [file for file in files if "/" not in file]
    if not tops:
        return [(file, "", "unlabelled") for file in files]
    if loose:
        raise BadInput(
            f"{folder}: {len(loose)} images lie beside the folders of images, first {loose[0]!r}; "
            "move them into a class folder or into 'unlabelled'"
        )
    if any(_word(top) not in (None, "unlabelled") for top in tops):
        return [_in_split_folder(folder, file) for file in files]
    return _in_class_folders(files)


def _word(top: str) -> Split | None:
    return WORDS.get(top.lower())


def _in_split_folder(folder: Path, file: str) -> Row:
    top, *inner, _ = file.split("/")
    split = _word(top)
    if split is None:
        raise BadInput(f"{folder}: {top!r} lies beside split folders but is none{suggestion(top.lower(), WORDS)}")
    if not inner and split != "unlabelled":
        raise BadInput(f"{folder}: image {file!r} lies in no class folder; expected {top}/CLASS/FILE")
    return file, plain(inner[0]) if inner else "", split


def _in_class_folders(files: list[str]) -> list[Row]:
    """Cut each class 60/20/20 into train, val and test; the folder 'unlabelled' stays as it is."""
    rows: list[Row] = [(file, "", "unlabelled") for file in files if _word(file.partition("/")[0])]
    named = [file for file in files if not _word(file.partition("/")[0])]
    for label, members in _by_class((file, plain(file.partition("/")[0])) for file in named).items():
        test = cut(members, VAL_SHARE)
        rest = [file for file in members if file not in test]
        val = cut(rest, VAL_SHARE / (1 - VAL_SHARE))
        rows += [(file, label, "test" if file in test else "val" if file in val else "train") for file in members]
    return rows


def _with_val(rows: list[Row]) -> list[Row]:
    """Take a val split from train, class by class, where there is none; test is never touched."""
    if any(split == "val" for _, _, split in rows):
        return rows
    train = _by_class((file, label) for file, label, split in rows if split == "train")
    val = {file for members in train.values() for file in cut(members, VAL_SHARE)}
    return [(file, label, "val" if file in val else split) for file, label, split in rows]


def _by_class(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    for file, label in pairs:
        members.setdefault(label, []).append(file)
    return members


def _fingerprint(index: Index, digests: dict[str, str]) -> str:
    """Sha256 over the reader's version and every (file, class, split, digest), one line each, in file order."""
    running = hashlib.sha256(f"folder/{READER_VERSION}\n".encode())
    for file, label, split in zip(index.files, index.labels, index.splits, strict=True):
        name = index.classes[label] if label >= 0 else ""
        running.update(f"{canonical_json([plain(file), name, split, digests[file]])}\n".encode())
    return running.hexdigest()
