"""Mirrors of results on a store: what is written is there, what is there is read, and nothing else."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import mirror, patience
from bench.errors import BadData, BadInput, StoreAway
from bench.growing import Growing, fetched
from tests.stores import Shop, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Shop]:
    with serving() as shop:
        yield shop


@pytest.fixture
def shop(server: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setattr(patience, "WAITS", (0.0,) * 3)
    server.clear()
    return server


@pytest.fixture(params=["s3://box/my runs/a", "memory://shelf/{}/runs"])
def out(request: pytest.FixtureRequest, shop: Shop, tmp_path: Path) -> str:  # noqa: ARG001 - it names the server
    return str(request.param).format(tmp_path.name)


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "machine"))


def elsewhere(out: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "other") -> Path:
    """The mirror on another machine, which has another cache."""
    with monkeypatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(tmp_path / name))
        return mirror.local(out)


def publish(path: Path, data: bytes, **how: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    mirror.publish(temporary, path, **how)  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_plain_folder_is_itself_and_no_store_is_asked(tmp_path, shop):
    root = mirror.local(str(tmp_path / "runs"))
    assert root == mirror.local(f"file://{tmp_path}/runs") == tmp_path / "runs"
    assert (mirror.is_mirrored(root), mirror.address(root / "x")) == (False, f"{root}/x")
    publish(root / "a", b"1")
    publish(root / "a", b"2", before=root / "b")
    mirror.stored(root / "a")
    mirror.refresh(root)
    assert files(root) == {"a": b"2", "b": b"1"}
    assert (mirror.fetch(root / "a"), mirror.fetch(root / "c")) == (True, False)
    mirror.remove(root / "a", root / "c")
    assert mirror.names(root) == ["b"]
    mirror.empty(root)
    assert (files(root), shop.asked) == ({}, [])


def test_what_is_published_here_is_there_and_what_is_removed_here_is_gone_there(out, tmp_path, monkeypatch):
    here, there = mirror.local(out), elsewhere(out, monkeypatch, tmp_path)
    assert here != there
    publish(here / "x" / "a", b"one")
    publish(here / "x" / "b", b"")
    publish(here / "y" / "c", b"else")
    mirror.refresh(there / "x")
    assert files(there / "x") == {"a": b"one", "b": b""}
    assert not (there / "y").exists()
    publish(here / "x" / "a", b"two!", before=here / "x" / "old")
    mirror.remove(here / "x" / "b", here / "x" / "never")
    (there / "x" / ".own").write_text("stays")
    mirror.refresh(there / "x")
    assert (
        files(there / "x") == files(here / "x") | {".own": b"stays"} == {".own": b"stays", "a": b"two!", "old": b"one"}
    )
    assert mirror.names(there / "x") == ["a", "old"]
    assert (mirror.fetch(there / "y" / "c"), mirror.fetch(there / "y" / "d")) == (True, False)
    mirror.empty(there / "x")
    mirror.refresh(here / "x")
    assert (files(here / "x"), files(there / "x")) == ({}, {".own": b"stays"})
    assert files(here / "y") == {"c": b"else"}


def test_only_what_differs_is_fetched(shop, tmp_path, monkeypatch):
    out = "s3://box/runs"
    here, there = mirror.local(out), elsewhere(out, monkeypatch, tmp_path)
    for number in range(3):
        publish(here / "ledger" / f"{number}", b"x" * number)
    mirror.refresh(there / "ledger")
    shop.asked.clear()
    mirror.refresh(there / "ledger")
    mirror.refresh(here / "ledger", fixed=True)
    assert [line.partition(" ")[0] for line in shop.asked] == ["GET"] * 2  # two listings
    (there / "ledger" / "2").write_bytes(b"y")  # damaged here
    mirror.refresh(there / "ledger", fixed=True)
    assert files(there / "ledger")["2"] == b"xx"
    mirror.refresh(there / "ledger", without="1")
    shop.put("runs/ledger/1", b"other")
    mirror.refresh(there / "ledger", without="1")
    assert files(there / "ledger")["1"] == b"x"


@pytest.mark.usefixtures("shop")
def test_an_object_that_goes_while_a_folder_is_fetched_is_looked_for_again(tmp_path, monkeypatch):
    """As where a compaction removes the sources of a file that it has written."""
    out = "s3://box/runs"
    here, there = mirror.local(out), elsewhere(out, monkeypatch, tmp_path)
    publish(here / "ledger" / "a", b"1")
    has_lost = mirror._Mirror.has_lost

    def late(self: mirror._Mirror, path: Path, entry: object) -> bool:
        if path.name == "a":
            publish(here / "ledger" / "all", b"1")
            mirror.remove(here / "ledger" / "a")
        return has_lost(self, path, entry)

    monkeypatch.setattr(mirror._Mirror, "has_lost", late)
    mirror.refresh(there / "ledger")
    assert files(there / "ledger") == {"all": b"1"}


@pytest.mark.usefixtures("shop")
def test_a_refresh_never_removes_what_is_written_meanwhile(monkeypatch):
    here = mirror.local("s3://box/runs")
    publish(here / "a", b"1")
    listing = mirror._Mirror.listing

    def late(self: mirror._Mirror, folder: Path) -> object:
        found = listing(self, folder)
        publish(here / "b", b"2")
        return found

    monkeypatch.setattr(mirror._Mirror, "listing", late)
    mirror.refresh(here)
    assert files(here) == {"a": b"1", "b": b"2"}


def test_sparing_uploads_take_a_share_of_the_time(shop, monkeypatch):
    here = mirror.local("s3://box/runs")
    put = mirror._Mirror.put
    monkeypatch.setattr(mirror._Mirror, "put", lambda *given: (time.sleep(0.1), put(*given)))
    for number in range(5):
        publish(here / "state", b"%d" % number, sparing=True, before=here / "before")
    assert files(here) == {"before": b"3", "state": b"4"}
    assert (shop.objects(), shop.get("runs/state")) == (["runs/state"], b"0")
    monkeypatch.setattr(mirror, "SHARE", 1.0)
    publish(here / "state", b"5", sparing=True, before=here / "before")
    assert (shop.get("runs/state"), shop.get("runs/before")) == (b"5", b"0")


def test_a_store_that_is_away_is_waited_for_once_and_nothing_is_lost(shop, monkeypatch):
    monkeypatch.setattr(patience, "WAITS", (0.1,) * 40)
    here = mirror.local("s3://box/runs")
    publish(here / "a", b"1")
    shop.close()
    back = threading.Timer(0.7, shop.open)
    back.start()
    publish(here / "a", b"2")
    back.join()
    assert shop.get("runs/a") == b"2"
    monkeypatch.setattr(patience, "WAITS", (0.1,) * 4)
    shop.close()
    try:
        with pytest.raises(
            StoreAway, match=r"^s3://box/runs: the store does not answer: .*goes on from here$"
        ) as caught:
            patience.patiently(publish, here / "a", b"3")
        assert isinstance(caught.value, OSError)
        begin = time.monotonic()
        for use in (lambda: publish(here / "a", b"3"), lambda: mirror.refresh(here), lambda: mirror.stored(here / "a")):
            with pytest.raises(StoreAway):
                use()
        assert time.monotonic() - begin < 0.4  # nothing is waited for again
    finally:
        shop.open()
    assert (here / "a").read_bytes() == shop.get("runs/a") == b"2"
    publish(here / "a", b"3")
    assert shop.get("runs/a") == b"3"


def test_a_store_that_refuses_is_said_at_once(shop):
    with pytest.raises(BadInput, match=r"s3://nowhere/x: the store does not give access: .*NO_SUCH_BUCKET"):
        publish(mirror.local("s3://nowhere/x") / "a", b"1")
    asked = len(shop.asked)
    assert asked == 1
    for wrong in ("s3://KEY:SeCrEt@box/x", "s3://box/x?secret_key=SeCrEt"):
        with pytest.raises(BadInput, match="credentials in an address") as caught:
            mirror.local(wrong)
        assert "SeC" not in str(caught.value)


def test_half_a_write_is_no_object(shop):
    """An upload that breaks in the middle, in several parts: the object stays as it was."""
    here = mirror.local("s3://box/runs")
    publish(here / "a", b"old")
    puts = 0
    put = shop._server._server.app

    def broken(environ, start):  # type: ignore[no-untyped-def]
        nonlocal puts
        puts += "partNumber" in environ["QUERY_STRING"]
        if puts > 1:
            raise OSError(errno.EIO, "broken")
        return put(environ, start)

    shop._server._server.app = broken
    try:
        with pytest.raises(StoreAway):
            publish(here / "a", os.urandom(25 << 20))
    finally:
        shop._server._server.app = put
    assert puts > 1
    assert (shop.get("runs/a"), files(here)["a"]) == (b"old", b"old")


def test_a_growing_file_costs_its_tail_and_is_whole_wherever_it_is_read(out, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.growing.TAIL", 100)
    here, there = (root / "studies" / "s.log" for root in (mirror.local(out), elsewhere(out, monkeypatch, tmp_path)))
    writer = Growing(here)
    file = writer.open()
    whole = b""
    for number in range(30):
        whole += b"line %d\n" % number
        file.write_bytes(whole)
        writer.keep()
        assert fetched(there).read_bytes() == whole
        assert fetched(here).read_bytes() == whole  # a reader of the writer's own mirror
        tail = mirror.read(here.with_name("s.log.tail")) or b""
        assert len(tail) < 110
    assert tail
    assert Growing(there).open().read_bytes() == whole  # after a crash
    writer.close()
    assert (mirror.read(here), mirror.read(here.with_name("s.log.tail"))) == (whole, None)
    other = Growing(there)
    assert other.open(fresh=True).read_bytes() == b""
    assert not fetched(here).exists()


def test_the_tail_of_an_older_file_does_not_count_and_a_lost_file_is_said(shop):
    path = mirror.local("s3://box/runs") / "s.log"
    shop.put("runs/s.log", b"0123456789")
    shop.put("runs/s.log.tail", b"5\n567")
    assert fetched(path).read_bytes() == b"0123456789"
    shop.put("runs/s.log.tail", b"10\nab")
    assert fetched(path).read_bytes() == b"0123456789ab"
    shop.put("runs/s.log", b"01")
    with pytest.raises(BadData, match=r"s3://box/runs/s.log: its tail begins at byte 10, beyond its end"):
        fetched(path)
