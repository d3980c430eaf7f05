"""Unpack a tar in any compression.

Each member passes Python's own `data` filter first. What that filter of some Python versions lets through (names that
become absolute, chains of links) is checked here again, and what tarfile forgives (a cut archive that ends between two
members, a broken header) is an error.
"""

import bz2
import gzip
import lzma
import os
import tarfile
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from bench.fetching.members import CHUNK, Writer

_BLOCK = 512
_HEADER = 1 << 14  # the longest extended header that is read into memory


class _Plain:
    """A tar's decompressed bytes, read forwards only, and no more of them than the limit."""

    def __init__(self, source: IO[bytes], writer: Writer) -> None:
        self.source, self.writer = source, writer
        self.position, self.most = 0, writer.most + writer.limits.members * 2 * _BLOCK
        self.longest = _HEADER
        self.last = b""

    def tell(self) -> int:
        """Bytes given so far."""
        return self.position

    def read(self, size: int) -> bytes:
        """The next bytes. A header that asks for much at once is not a header of a release."""
        if size > self.longest:
            raise self.writer.fault(f"has a header of {size:,} bytes; refused")
        self.last = self.source.read(size)
        self.position += len(self.last)
        if self.position > self.most:
            raise self.writer.bomb()
        return self.last

    def seek(self, position: int) -> int:
        """Go forwards."""
        if position < self.position:
            raise tarfile.ReadError("a header points backwards")
        while self.position < position and self.read(min(_HEADER, position - self.position)):
            pass
        return self.position


def untar(writer: Writer) -> None:
    """Unpack the writer's archive; see `unpack.unpack`."""
    links: list[tuple[str, Path, str]] = []
    with writer.reading():
        plain = _Plain(_decompressed(writer.stream), writer)
        tar = tarfile.open(fileobj=cast(BinaryIO, plain), mode="r:")  # noqa: SIM115 (it holds nothing open)
    while (member := _next(tar, plain, writer)) is not None:
        with writer.reading(member.name):
            _tar_member(writer, tar, member, links)
    with writer.reading():
        if plain.last != bytes(_BLOCK):
            raise tarfile.ReadError("it ends without its end mark")
        while plain.read(_HEADER):  # to the end, where the checksum of the compression is compared
            pass
    _make_links(writer, links)


def _decompressed(stream: BinaryIO) -> IO[bytes]:
    """The bytes of a tar, whatever its name says of the compression."""
    magic = stream.read(6)
    stream.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(stream)
    return lzma.LZMAFile(stream) if magic == b"\xfd7zXZ\x00" else stream


def _next(tar: tarfile.TarFile, plain: _Plain, writer: Writer) -> tarfile.TarInfo | None:
    with writer.reading():
        plain.longest = _HEADER
        member = tar.next()
        cast(Any, tar).members.clear()  # else it remembers every one
        plain.longest = CHUNK
    return member


def _tar_member(
    writer: Writer, tar: tarfile.TarFile, member: tarfile.TarInfo, links: list[tuple[str, Path, str]]
) -> None:
    place = writer.place(member.name)
    try:
        tarfile.data_filter(member, str(writer.target))
    except tarfile.FilterError as error:
        raise writer.fault(f"is refused: {error}", member.name) from None
    if member.isdir():
        place.mkdir(parents=True, exist_ok=True)
    elif member.issym():
        links.append((member.name, place, member.linkname))
    elif member.islnk():
        _hard_link(writer, member, place)
    elif member.isreg() and not member.issparse():
        writer.check_claim(member.name, member.size)
        source = tar.extractfile(member)
        assert source is not None  # it is a regular file
        writer.write(member.name, place, source)
    else:
        raise writer.fault("is a sparse file, a device or of an unknown kind; refused", member.name)


def _hard_link(writer: Writer, member: tarfile.TarInfo, place: Path) -> None:
    source = writer.target / writer.inside(member.linkname)
    if not source.is_file() or source.is_symlink():
        raise writer.fault(f"is a link to {member.linkname!r}, which is no file before it", member.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    if not (place.exists() and source.samefile(place)):
        os.link(source, place)
        writer.files += 1


def _make_links(writer: Writer, links: list[tuple[str, Path, str]]) -> None:
    """Symbolic links come last, so that nothing is written through one; each must end inside the folder."""
    for name, place, target in links:
        with writer.reading(name):
            _check_inside(writer, name, next(folder for folder in place.parents if os.path.lexists(folder)))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(target)
    for name, place, _ in links:
        with writer.reading(name):
            _check_inside(writer, name, place)


def _check_inside(writer: Writer, name: str, place: Path) -> None:
    try:
        ends = place.resolve(strict=True)
    except (OSError, RuntimeError):  # a loop is a RuntimeError in some versions of Python
        raise writer.fault("is a link to nothing; refused", name) from None
    if not ends.is_relative_to(writer.target):
        raise writer.fault("is a link out of the folder; refused", name)
