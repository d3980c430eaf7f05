"""Unpack a zip: no links, no encryption, no members that share bytes."""

import stat
import zipfile

from bench.fetching.members import Writer

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_LOCAL_HEADER = 30  # bytes before a member's name


def unzip(writer: Writer) -> None:
    """Unpack the writer's archive; see `unpack.unpack`."""
    with writer.reading():
        source = zipfile.ZipFile(writer.stream)
        members = sorted(source.infolist(), key=lambda member: member.header_offset)
    _check_overlap(writer, members, source.start_dir)
    writer.check_claim("", sum(member.file_size for member in members if member.file_size > 0))
    for member in members:
        with writer.reading(member.filename):
            _zip_member(writer, source, member)


def _check_overlap(writer: Writer, members: list[zipfile.ZipInfo], end: int) -> None:
    """Members that share bytes are how a small zip holds petabytes."""
    ends = [member.header_offset for member in members[1:]] + [end]
    for member, limit in zip(members, ends, strict=False):
        if member.header_offset + _LOCAL_HEADER + member.compress_size > limit:
            raise writer.fault("overlaps the one after it; refused as a bomb", member.filename)


def _zip_member(writer: Writer, source: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    place = writer.place(member.orig_filename.replace("\\", "/"))
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise writer.fault("is a link or a device; refused", member.filename)
    if member.flag_bits & 0x1:
        raise writer.fault("is encrypted", member.filename)
    if member.is_dir() or member.orig_filename.endswith("\\"):
        place.mkdir(parents=True, exist_ok=True)
        return
    if member.compress_type not in _METHODS:
        raise writer.fault(f"is compressed by method {member.compress_type}, which is not read here", member.filename)
    writer.check_claim(member.filename, member.file_size)
    with source.open(member) as stream:
        writer.write(member.filename, place, stream)
