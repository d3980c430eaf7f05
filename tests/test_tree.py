"""Trees: local and remote folders give the same names and errors, and a store that goes away is not missing files."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from bench.data.dataset import resolve
from bench.data.digests import UNREADABLE, file_digests
from bench.data.pack import open_pack
from bench.data.tree import GONE, folder_name, open_tree, place, read
from bench.errors import BadData, BadInput


class Flaky(MemoryFileSystem):
    """A store in memory that may go away, or refuse single files, with errors of its own kind."""

    protocol = ("flaky",)
    root_marker = "/"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    away = False
    refused = ""

    def info(self, path: str, **options: Any) -> Any:
        """Fail as a client library does, with no OSError."""
        if Flaky.away:
            raise RuntimeError("503 try later")
        return super().info(path, **options)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if Flaky.away or (Flaky.refused and Flaky.refused in path):
            raise RuntimeError("503 try later" if Flaky.away else "403 not yours")
        return super()._open(path, mode, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))


@pytest.fixture
def flaky(folder: Path) -> Iterator[type[Flaky]]:
    """The store, with the folder's files at flaky://shelf/leaf."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.store, Flaky.pseudo_dirs, Flaky.away, Flaky.refused = {}, [""], False, ""
    store = Flaky()
    for path in folder.rglob("*.png"):
        store.pipe_file(f"/shelf/leaf/{path.relative_to(folder).as_posix()}", path.read_bytes())
    yield Flaky
    Flaky.away, Flaky.refused = False, ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of five images."""
    for label, base in (("a", 0), ("b", 100)):
        (tmp_path / "leaf" / label).mkdir(parents=True)
        for number in range(5):
            Image.new("L", (48, 32), base + number).save(tmp_path / "leaf" / label / f"{number}.png")
    return tmp_path / "leaf"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.usefixtures("flaky")
def test_a_remote_tree_is_as_the_local_one(folder: Path) -> None:
    here, there = open_tree(str(folder)), open_tree("flaky://shelf/leaf/")
    assert set(there.scan()) == set(here.scan())
    sizes = [{name: size for name, (size, _) in tree.scan().items()} for tree in (here, there)]
    assert sizes[0] == sizes[1]
    assert (there.address, folder_name(there), place(there, "a/0.png")) == (
        "flaky://shelf/leaf", "leaf", "flaky://shelf/leaf/a/0.png"
    )  # fmt: skip
    for tree in (here, there):
        assert (tree.exists(), tree.has("a"), tree.has("a/0.png"), tree.has("a/9.png")) == (True, True, True, False)
        assert read(tree, "a/0.png") == (folder / "a" / "0.png").read_bytes()
        with pytest.raises(FileNotFoundError):
            tree.open("a/9.png")
        with tree.open("a/0.png") as stream:
            assert stream.seek(1) == 1
            assert (stream.read(3), stream.tell(), stream.seek(-2, 2) > 4, len(stream.read())) == (b"PNG", 4, True, 2)
    assert not open_tree("flaky://shelf/none").exists()


def test_a_refused_file_is_skipped(flaky: type[Flaky], folder: Path, cache: Path) -> None:
    flaky.refused = "b/3.png"
    there = resolve("flaky://shelf/leaf")
    assert there.source.fingerprint != resolve(str(folder)).source.fingerprint
    pack = open_pack(there.source, 16, cache)
    (skipped,) = pack.skipped
    assert (skipped.file, len(pack)) == ("b/3.png", 9)
    assert "403 not yours" in skipped.reason
    flaky.refused = ""
    assert resolve("flaky://shelf/leaf").source.fingerprint == resolve(str(folder)).source.fingerprint


def test_a_store_that_goes_away_is_an_error_and_not_skipped_files(flaky: type[Flaky], cache: Path) -> None:
    tree = open_tree("flaky://shelf/leaf")
    stamps = tree.scan()
    source = resolve("flaky://shelf/leaf").source

    def leave(done: int, _: int) -> None:
        flaky.away = done > 0

    with pytest.raises(BadInput, match=r"flaky://shelf/leaf: the store does not give access: .*503 try later"):
        open_pack(_many(flaky), 16, cache, leave)
    assert not [path for path in (cache / "packs").iterdir() if path.is_dir()]
    for use in (tree.exists, tree.scan, lambda: tree.open("a/0.png"), lambda: file_digests(tree, stamps, cache / "x")):
        with pytest.raises(BadInput, match=r"flaky://shelf/leaf: the store does not give access: .*503 try later"):
            use()
    flaky.away = False
    assert resolve("flaky://shelf/leaf").source.fingerprint != source.fingerprint


def _many(flaky: type[Flaky]) -> Any:
    """A source with so many files that not all are open when the first one is done."""
    store = flaky()
    data = store.cat_file("/shelf/leaf/a/0.png")
    for number in range(800):
        store.pipe_file(f"/shelf/leaf/b/more{number}.png", data)
    return resolve("flaky://shelf/leaf").source


def test_what_a_local_scan_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "root"
    for name in ("a/x.jpg", "a/.hidden.jpg", ".git/x.jpg", "__MACOSX/x.jpg", "a/notes.txt", "a/Y.PNG"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "loop").symlink_to(root)
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "a" / "pipe.jpg")
    caplog.set_level(logging.WARNING)
    stamps = open_tree(str(root)).scan()
    assert set(stamps) == {"a/x.jpg", "a/Y.PNG", "gone.jpg"}
    assert stamps["gone.jpg"] == GONE
    assert caplog.records == []


def test_digests_are_remembered_by_stamp(folder: Path, cache: Path) -> None:
    tree = open_tree(str(folder))
    for path in folder.rglob("*.png"):
        os.utime(path, ns=(1, 10**18))
    first = file_digests(tree, tree.scan(), cache)
    path = folder / "a" / "0.png"
    path.write_bytes(b"x" * path.stat().st_size)
    os.utime(path, ns=(1, 10**18))  # the same stamp: the digest is taken from memory
    assert file_digests(tree, tree.scan(), cache) == first
    os.utime(path, ns=(1, 10**18 + 1))
    changed = file_digests(tree, tree.scan(), cache)
    assert {name for name in first if changed[name] != first[name]} == {"a/0.png"}
    path.unlink()
    path.symlink_to(folder / "nowhere")
    assert file_digests(tree, tree.scan(), cache)["a/0.png"] == UNREADABLE


def test_a_folder_that_is_no_longer_there(folder: Path, cache: Path) -> None:
    source = resolve(str(folder)).source
    folder.rename(folder.with_name("moved"))
    with pytest.raises(BadData, match=r"'leaf': its folder .*leaf is not there on this machine"):
        open_pack(source, 16, cache)
