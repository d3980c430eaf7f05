"""Unpack an archive that may be damaged or hostile: tar in any compression, and zip. Archives in it stay packed."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from bench.fetching.members import Limits, Progress, Writer
from bench.fetching.untar import untar
from bench.fetching.unzip import unzip

__all__ = ["Limits", "Unpacked", "is_archive", "unpack"]

SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".zip")


@dataclass(frozen=True)
class Unpacked:
    """How much was written."""

    files: int
    bytes: int


def is_archive(name: str) -> bool:
    """Whether a file of this name is unpacked; any other is used as it is."""
    return name.lower().endswith(SUFFIXES)


def unpack(archive: Path, target: Path, progress: Progress | None = None, limits: Limits | None = None) -> Unpacked:
    """Unpack `archive` into the folder `target`, which is made where it is not there.

    Raises BadData that names the archive and the member: damaged, cut short, larger than `limits` allow, a name or a
    link that leaves the folder, a device, two different files of one name, a full disk. Then `target` is removed,
    unless it held something before.
    """
    fresh = not target.exists() or not any(target.iterdir())
    try:
        target.mkdir(parents=True, exist_ok=True)
        with archive.open("rb") as stream:
            writer = Writer(archive, stream, target, progress, limits or Limits())
            (unzip if archive.name.lower().endswith(".zip") else untar)(writer)
        return Unpacked(writer.files, writer.bytes)
    except BaseException:
        if fresh:
            shutil.rmtree(target, ignore_errors=True)
        raise
