"""Archives that are whole, damaged or hostile: what is unpacked, and what is one clear error that leaves nothing."""

import bz2
import errno
import gzip
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import BadData
from bench.fetching.unpack import Limits, is_archive, unpack

SMALL = Limits(ratio=10, floor=1 << 20, members=50)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, size, 0o6777
    return info


def tar_bytes(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def images(count: int = 5) -> list[tuple[tarfile.TarInfo, bytes]]:
    noise = random.Random(0)
    return [(member(f"birds/{n}.jpg"), noise.randbytes(700 + 512 * n)) for n in range(count)]


def save(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive: Path, match: str, limits: Limits | None = None) -> None:
    """One BadData that names the archive, and no target folder."""
    target = archive.parent / "out"
    with pytest.raises(BadData, match=match) as caught:
        unpack(archive, target, limits=limits)
    assert str(archive) in str(caught.value)
    assert not target.exists()


COMPRESSIONS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("a.tar", bytes),
    ("a.tgz", gzip.compress),
    ("a.tar.bz2", bz2.compress),
    ("a.tar.xz", lzma.compress),
    ("wrong-name.tar.gz", bytes),  # some hosts undo the compression on the way
]


@pytest.mark.parametrize(("name", "compress"), COMPRESSIONS)
def test_a_tar_in_any_compression_is_unpacked(tmp_path: Path, name: str, compress: Callable[[bytes], bytes]) -> None:
    wanted = images()
    folder = (member("birds", tarfile.DIRTYPE), b"")
    archive = save(tmp_path, name, compress(tar_bytes(folder, *wanted)))
    seen: list[tuple[int, int]] = []
    done = unpack(archive, tmp_path / "out", lambda read, total: seen.append((read, total)))
    assert tree(tmp_path / "out") == {info.name: data for info, data in wanted}
    assert (done.files, done.bytes) == (5, sum(len(data) for _, data in wanted))
    assert [read for read, _ in seen] == sorted(read for read, _ in seen)
    assert {total for _, total in seen} == {archive.stat().st_size}


def test_modes_are_sane(tmp_path: Path) -> None:
    nothing = member("x/secret.jpg")
    archive = save(tmp_path, "a.tar", tar_bytes((member("x/0.jpg"), b"1"), (nothing, b"2")))
    before = os.umask(0o022)
    try:
        unpack(archive, tmp_path / "out")
    finally:
        os.umask(before)
    for path in (tmp_path / "out/x/0.jpg", tmp_path / "out/x/secret.jpg"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_zip_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("birds/", "")
        made.writestr("birds/ä.jpg", b"1" * 5000)
        made.writestr("windows\\two.jpg", b"2")
    assert unpack(tmp_path / "a.zip", tmp_path / "out").files == 2
    assert tree(tmp_path / "out") == {"birds/ä.jpg": b"1" * 5000, "windows/two.jpg": b"2"}


def test_names_in_other_encodings_are_kept(tmp_path: Path) -> None:
    data = tar_bytes((member("grün.jpg"), b"1"), form=tarfile.GNU_FORMAT).replace("grün".encode(), b"gr\xfc\xffn")
    header = bytearray(data[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    unpack(save(tmp_path, "a.tar", bytes(header) + data[512:]), tmp_path / "out")
    assert os.listdir(os.fsencode(tmp_path / "out")) == [b"gr\xfc\xffn.jpg"]  # noqa: PTH208 (bytes)


def test_what_is_unpacked_and_what_is_not() -> None:
    assert all(map(is_archive, ("a.tar", "a.TGZ", "a.tar.gz", "a.zip", "a.tar.xz")))
    assert not any(map(is_archive, ("setid.mat", "a.jpg.gz", "tar")))


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "a/..", "..\\x", "C:/x", "\\\\host\\x", "/".join("a" * 70)]
)
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    refused(save(tmp_path, "a.tar", tar_bytes(*images(1), (member(name), b"evil"))), "refused")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("fine.jpg", b"1")
        made.writestr(name, b"evil")
    refused(tmp_path / "a.zip", "refused")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "a.zip"]


def test_a_nul_in_a_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("fineXjpg", b"1")
    data = (tmp_path / "a.zip").read_bytes().replace(b"fineXjpg", b"fine\0jpg")
    refused(save(tmp_path, "a.zip", data), "NUL")


EVIL_LINKS = [
    [member("l", tarfile.SYMTYPE, "/etc/passwd")],
    [member("l", tarfile.SYMTYPE, "../outside")],
    [member("d/l", tarfile.SYMTYPE, "../../outside")],
    [member("l", tarfile.LNKTYPE, "/etc/passwd")],
    [member("l", tarfile.LNKTYPE, "../outside")],
    [member("l", tarfile.SYMTYPE, "nothing")],
    [member("l", tarfile.SYMTYPE, "l")],
    [member("l", tarfile.LNKTYPE, "nothing")],
    # every name stays inside by its letters; what it resolves to does not
    [member("x", tarfile.SYMTYPE, "."), member("y", tarfile.SYMTYPE, "x/.."), member("y/evil", tarfile.SYMTYPE, "x")],
    [member("x", tarfile.SYMTYPE, "."), member("y", tarfile.SYMTYPE, "x/..")],
    [
        member("d", tarfile.DIRTYPE),
        member("d/x", tarfile.SYMTYPE, ".."),
        member("y", tarfile.SYMTYPE, "d/x/../outside"),
    ],
    [member("l", tarfile.SYMTYPE, "/".join(["."] * 3000))],
    # a folder would be made through a link
    [
        member("x", tarfile.SYMTYPE, "."),
        member("y", tarfile.SYMTYPE, "x/.."),
        member("y/new/evil", tarfile.SYMTYPE, "x"),
    ],
]


@pytest.mark.parametrize("members", EVIL_LINKS, ids=lambda members: members[-1].linkname[:20])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    (tmp_path / "outside").write_text("secret")
    before = sorted(path.name for path in tmp_path.iterdir())
    refused(
        save(tmp_path, "a.tar", tar_bytes(*((info, b"") for info in members))), "refused|no file before it|too long"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "a.tar"])


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    evil = [(member("d", tarfile.SYMTYPE, "../outside"), b""), (member("d/x.jpg"), b"evil")]
    refused(save(tmp_path, "a.tar", tar_bytes(*evil)), "refused")
    assert not list((tmp_path / "outside").iterdir())


def test_links_inside_the_folder_are_made(tmp_path: Path) -> None:
    links = [(member("copy.jpg", tarfile.LNKTYPE, "birds/0.jpg"), b""), (member("all", tarfile.SYMTYPE, "birds"), b"")]
    unpack(save(tmp_path, "a.tar", tar_bytes(*images(1), *links)), tmp_path / "out")
    assert (tmp_path / "out/copy.jpg").read_bytes() == (tmp_path / "out/all/0.jpg").read_bytes()


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_device_is_refused(tmp_path: Path, kind: bytes) -> None:
    refused(save(tmp_path, "a.tar", tar_bytes((member("dev", kind), b""))), "'dev'")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_a_link_or_device_in_a_zip_is_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("evil")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr(info, "/etc/passwd")
    refused(tmp_path / "a.zip", "'evil' is a link or a device")


def test_a_gzip_bomb_is_refused_while_it_grows(tmp_path: Path) -> None:
    archive = save(tmp_path, "a.tgz", gzip.compress(tar_bytes((member("zeros"), bytes(4 << 20)))))
    refused(archive, "bomb", SMALL)


def test_a_bomb_of_many_members_is_refused(tmp_path: Path) -> None:
    many = [(member(f"d/{number}.jpg"), bytes(40_000)) for number in range(40)]
    refused(save(tmp_path, "a.tgz", gzip.compress(tar_bytes(*many))), "bomb", SMALL)
    refused(save(tmp_path, "b.tar", tar_bytes(*((info, b"") for info, _ in many * 2))), "more than 50 members", SMALL)


def test_a_bomb_in_a_header_is_refused(tmp_path: Path) -> None:
    comment = member("x")
    comment.pax_headers = {"comment": "a" * (8 << 20)}
    refused(save(tmp_path, "a.tgz", gzip.compress(tar_bytes((comment, b"")))), "header of")


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    info = member("holes")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 40), "GNU.sparse.name": "holes"}
    refused(save(tmp_path, "a.tar", tar_bytes((info, b"1"))), "'holes' is a sparse file")


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("zeros", bytes(4 << 20))
    refused(tmp_path / "a.zip", "bomb", SMALL)


def test_a_zip_bomb_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("zeros", bytes(4 << 20))
    data = (tmp_path / "a.zip").read_bytes().replace(struct.pack("<L", 4 << 20), struct.pack("<L", 100))
    refused(save(tmp_path, "a.zip", data), "damaged|bomb", SMALL)


def test_a_zip_of_overlapping_members_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("zeros", bytes(1 << 20))
        first = made.getinfo("zeros")
        for number in range(10):
            twin = zipfile.ZipInfo(f"zeros{number}")
            for key in ("compress_type", "CRC", "compress_size", "file_size", "header_offset"):
                setattr(twin, key, getattr(first, key))
            made.filelist.append(twin)
            made.NameToInfo[twin.filename] = twin
        made._didModify = True
    refused(tmp_path / "a.zip", "overlaps the one after it")


def test_the_same_file_twice_passes_and_another_of_its_name_does_not(tmp_path: Path) -> None:
    twice = save(tmp_path, "a.tar", tar_bytes((member("0.jpg"), b"1"), (member("0.jpg"), b"1")))
    assert unpack(twice, tmp_path / "twice").files == 1
    assert tree(tmp_path / "twice") == {"0.jpg": b"1"}
    refused(
        save(tmp_path, "b.tar", tar_bytes((member("0.jpg"), b"1"), (member("0.jpg"), b"2"))), "'0.jpg' is there twice"
    )


def test_names_that_differ_in_case_both_come(tmp_path: Path) -> None:
    archive = save(tmp_path, "a.tar", tar_bytes((member("A.jpg"), b"1"), (member("a.jpg"), b"2")))
    if (tmp_path / "A.TAR").exists():
        refused(archive, "is there twice")
    else:
        unpack(archive, tmp_path / "out")
        assert tree(tmp_path / "out") == {"A.jpg": b"1", "a.jpg": b"2"}


@pytest.mark.parametrize("clash", [["a", "a/b"], ["a/b", "a"]])
def test_a_file_where_a_folder_is_is_refused(tmp_path: Path, clash: list[str]) -> None:
    refused(save(tmp_path, "a.tar", tar_bytes(*((member(name), b"1") for name in clash))), "member")


def test_a_tar_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = tar_bytes(*images(3))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        end = max(info.offset_data + -(-info.size // 512) * 512 for info in tar)
    for cut in [0, 1, 100, 511, 512, 700, 1024, 1536, 2048, 2560, end - 600, end - 512, end - 1, end, end + 100]:
        refused(save(tmp_path, "a.tar", whole[:cut]), "damaged or cut short")


def test_a_compressed_tar_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    for name, compress in COMPRESSIONS[1:4]:
        whole = compress(tar_bytes(*images(3)))
        for cut in [2, len(whole) // 4, len(whole) // 2, len(whole) - 20, len(whole) - 5, len(whole) - 1]:
            refused(save(tmp_path, name, whole[:cut]), "damaged or cut short|cannot be unpacked")


def test_a_wrong_crc_of_gzip_is_an_error(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(tar_bytes(*images(2))))
    data[-6] ^= 0xFF
    refused(save(tmp_path, "a.tgz", bytes(data)), "CRC")


def test_a_zip_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        for info, data in images(3):
            made.writestr(info.name, data)
    whole = (tmp_path / "a.zip").read_bytes()
    for cut in [0, 10, len(whole) // 2, len(whole) - 100, len(whole) - 22, len(whole) - 1]:
        refused(save(tmp_path, "a.zip", whole[:cut]), "damaged or cut short")


def test_a_broken_member_of_a_zip_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("0.jpg", b"first image")
    data = (tmp_path / "a.zip").read_bytes().replace(b"first image", b"other image")
    refused(save(tmp_path, "a.zip", data), r"member '0.jpg' is damaged")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("0.jpg", b"1")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    refused(save(tmp_path, "a.zip", bytes(data)), "encrypted")


def test_random_damage_is_an_error_or_harmless(tmp_path: Path) -> None:
    noise = random.Random(1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
        for info, data in images(3):
            made.writestr(info.name, data)
    wholes = {"a.tar": tar_bytes(*images(3)), "a.tgz": gzip.compress(tar_bytes(*images(3)))}
    wholes["a.zip"] = (tmp_path / "a.zip").read_bytes()
    outcomes = {True: 0, False: 0}
    for turn in range(300):
        name = sorted(wholes)[turn % 3]
        data = bytearray(wholes[name])
        for _ in range(noise.randint(1, 8)):
            data[noise.randrange(len(data))] = noise.randrange(256)
        target = tmp_path / f"out{turn}"
        try:
            unpack(save(tmp_path, name, bytes(data)), target, limits=SMALL)
        except BadData:
            assert not target.exists()
        outcomes[target.exists()] += 1
    assert outcomes[True] > 20
    assert outcomes[False] > 150
    assert {path.name for path in tmp_path.iterdir()} <= {*wholes, *(f"out{turn}" for turn in range(300))}


def test_a_full_disk_names_archive_and_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = save(tmp_path, "a.tar", tar_bytes(*images(2)))
    opened = Path.open

    def full(path: Path, mode: str = "r", *rest: object, **more: object) -> object:
        if path.name == "1.jpg":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    refused(archive, r"'birds/1.jpg' does not fit: the disk of .* is full")


def test_what_was_in_the_folder_before_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    save(tmp_path / "out", "mine.txt", b"mine")
    with pytest.raises(BadData):
        unpack(save(tmp_path, "a.tar", tar_bytes((member("../x"), b"1"))), tmp_path / "out")
    assert tree(tmp_path / "out") == {"mine.txt": b"mine"}
