"""`bench data fetch` against a real server on this machine: faults, mirrors, kills, two at once, hostile archives."""

import errno
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, NamedTuple

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app
from bench.data.card import read_card
from bench.data.roots import find_release
from bench.errors import BadData, BadInput, BenchError
from bench.fetching import fetch as fetching
from bench.fetching.download import Patience
from bench.fetching.fetch import Fetched, fetch, plan_fetch
from bench.fetching.part import Part
from bench.transfer_display import watching

QUICK = Patience(attempts=4, first_wait=0.01, connect=10.0, read=10.0)
STALLED = Patience(attempts=4, first_wait=0.01, connect=10.0, read=1.0)
HEADERS = ("Range", "If-Range")


class Asked(NamedTuple):
    """One request, as the server saw it."""

    path: str
    range: str
    if_range: str
    sent: list[int]  # bytes of the body


class Host(ThreadingHTTPServer):
    """Files under their paths; `faults` are taken one per request, oldest first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.asked: list[Asked] = []
        self.tag = '"one"'
        self.released = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no error here."""

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        host, asked = self.server, [self.headers.get(name, "") for name in HEADERS]
        entry = Asked(self.path, *asked, [0])
        host.asked.append(entry)
        faults = host.faults.get(self.path, [])
        fault, _, value = (faults.pop(0) if faults else "").partition(":")
        data = host.files.get(self.path)
        if fault == "status" or data is None:
            self.send_error(int(value or 404))
            return
        start = self._start(len(data), fault)
        if start > len(data):
            return
        self._head(data, start, fault)
        self._body(data[start:], fault, int(value or 0), entry.sent)

    def _start(self, size: int, fault: str) -> int:
        wanted = self.headers.get("Range", "")
        current = self.headers.get("If-Range") in (None, self.server.tag)
        if not wanted or fault == "norange" or (not current and fault != "liar"):
            return 0
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.end_headers()
            return size + 1
        return start

    def _head(self, data: bytes, start: int, fault: str) -> None:
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if fault != "nolength":
            self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Content-Type", "text/html; charset=utf-8" if fault == "html" else "application/x-tar")
        if fault != "notag":
            self.send_header("ETag", self.server.tag)
        self.end_headers()

    def _body(self, body: bytes, fault: str, value: int, sent: list[int]) -> None:
        if fault == "trickle":
            for byte in range(40):
                self.wfile.write(body[byte : byte + 1])
                time.sleep(0.05)
            return
        if fault in ("cut", "stall", "hold", "notag"):
            self.wfile.write(body[:value])
            self.wfile.flush()
            sent[0] += value
            if fault in ("cut", "notag"):
                return
            self.server.released.wait(20)
            body = body[value:] if fault == "hold" else b""
        self.wfile.write(body)
        sent[0] += len(body)

    def log_message(self, *args: object) -> None:
        """Nothing on the screen."""


class Heard:
    """A Watch that remembers."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.moves: list[tuple[str, int, int | None]] = []

    def at(self, task: str, done: int, total: int | None) -> None:
        self.moves.append((task, done, total))

    def tell(self, message: str) -> None:
        self.told.append(message)


@pytest.fixture
def host() -> Iterator[Host]:
    server = Host()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cards").mkdir()
    monkeypatch.setenv("BENCH_CARDS", str(tmp_path / "cards"))
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BENCH_DATA", raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def release(folder: str = "CUB_200_2011", size: int = 300_000) -> bytes:
    """A tar that reader cub200 takes for a release."""
    files = {
        "images.txt": b"1 a/1.jpg\n",
        "train_test_split.txt": b"1 1\n",
        "images/a/1.jpg": random.Random(0).randbytes(size),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


DATA = release()


def entry(file: str, data: bytes, addresses: list[str], *, size: bool = True, into: str = "", md5: bool = False) -> str:
    kind = "md5" if md5 else "sha256"
    lines = ["[[archives]]", f'file = "{file}"', f'checksum = "{kind}:{hashlib.new(kind, data).hexdigest()}"']
    lines += [f"addresses = {addresses}", f'into = "{into}"']
    return "\n".join([*lines, f"size = {len(data)}"] if size else lines)


def card(tmp_path: Path, *archives: str, by_hand: str = "", name: str = "mini", more: str = "") -> None:
    head = [
        'title = "Mini birds"',
        'reader = "cub200"',
        'folders = ["CUB_200_2011"]',
        'licence = "research only"',
        'citation = "Nobody et al. 2020"',
        'homepage = "https://example.org/birds"',
        'version = "1"',
        'summary = "small"',
        more,
    ]
    if by_hand:
        head.append(f'by_hand = "{by_hand}"')
    (tmp_path / "cards" / f"{name}.toml").write_text("\n".join([*head, *archives]))


@pytest.fixture
def mini(tmp_path: Path, host: Host) -> Host:
    """The host with the archive of card `mini` and a mirror of it."""
    host.files = {"/birds.tar": DATA, "/mirror.tar": DATA}
    card(tmp_path, entry("birds.tar", DATA, [host.address("/birds.tar"), host.address("/mirror.tar")]))
    return host


def bring(
    root: Path, watch: Heard | None = None, *, keep_archives: bool = False, patience: Patience = QUICK
) -> Fetched:
    return fetch(plan_fetch("mini", str(root)), watch or Heard(), keep_archives=keep_archives, patience=patience)


def here(root: Path) -> bool:
    return find_release("mini", read_card(Path(os.environ["BENCH_CARDS"]) / "mini.toml"), str(root)) is not None


def left(root: Path) -> list[str]:
    """What lies under the root, but for locks."""
    names = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.endswith(".lock"))


WHOLE = [f"mini/CUB_200_2011/{name}" for name in ("images.txt", "images/a/1.jpg", "train_test_split.txt")]


def test_a_release_is_downloaded_verified_and_unpacked(mini: Host, root: Path) -> None:
    watch = Heard()
    fetched = bring(root, watch)
    assert fetched == Fetched(str(root / "mini" / "CUB_200_2011"), 3, 300_014)
    assert left(root) == WHOLE
    assert watch.told == []
    assert [asked.path for asked in mini.asked] == ["/birds.tar"]
    assert ("downloading birds.tar", len(DATA), len(DATA)) in watch.moves
    assert ("unpacking birds.tar", len(DATA), len(DATA)) in watch.moves


def test_what_is_here_is_not_fetched_again(mini: Host, root: Path) -> None:
    bring(root)
    plan = plan_fetch("mini", str(root))
    assert plan.settled == f"mini is here already, in {root / 'mini' / 'CUB_200_2011'}"
    assert len(mini.asked) == 1


def test_archives_are_kept_where_wanted_and_used_again(mini: Host, root: Path) -> None:
    kept = root / ".downloads/mini/birds.tar"
    assert bring(root, keep_archives=True).kept == (kept,)
    (root / "mini").rename(root / "elsewhere")
    bring(root)
    assert left(root / "mini") == [name.removeprefix("mini/") for name in WHOLE]
    assert not kept.exists()
    assert len(mini.asked) == 1


@pytest.mark.parametrize("size", [True, False])
@pytest.mark.parametrize("fault", ["cut:100000", "stall:100000", "notag:100000"])
def test_a_broken_download_goes_on_where_it_broke(
    tmp_path: Path, host: Host, root: Path, fault: str, size: bool
) -> None:
    host.files["/birds.tar"] = DATA
    host.faults["/birds.tar"] = [fault, "cut:50000"]
    card(tmp_path, entry("birds.tar", DATA, [host.address("/birds.tar")], size=size, md5=True))
    watch = Heard()
    bring(root, watch, patience=STALLED if "stall" in fault else QUICK)
    assert left(root) == WHOLE
    assert [asked.range for asked in host.asked] == ["", "bytes=100000-", "bytes=150000-"]
    assert [asked.if_range for asked in host.asked] == ["", "" if "notag" in fault else '"one"', '"one"']
    assert sum(asked.sent[0] for asked in host.asked) == len(DATA)
    assert len(watch.told) == 2
    assert all("once more in" in line for line in watch.told)


def test_a_server_without_ranges_starts_again(mini: Host, root: Path) -> None:
    mini.faults["/birds.tar"] = ["cut:100000", "norange"]
    bring(root)
    assert left(root) == WHOLE
    assert mini.asked[-1].sent == [len(DATA)]


def test_another_file_under_the_address_starts_again(mini: Host, root: Path) -> None:
    bring_part(mini, root, b"old" * 10_000, '"zero"')
    bring(root)
    assert left(root) == WHOLE
    assert [asked.if_range for asked in mini.asked] == ['"zero"']
    assert mini.asked[0].sent == [len(DATA)]


def test_a_server_that_ignores_if_range_is_caught_by_its_tag(mini: Host, root: Path) -> None:
    bring_part(mini, root, b"old" * 10_000, '"zero"')
    mini.faults["/birds.tar"] = ["liar"]
    watch = Heard()
    bring(root, watch)
    assert left(root) == WHOLE
    assert [asked.range for asked in mini.asked] == ["bytes=30000-", ""]
    assert "the file there has changed" in watch.told[0]


def test_a_part_that_is_no_part_is_dropped_after_the_checksum(mini: Host, root: Path) -> None:
    bring_part(mini, root, b"old" * 10_000, "")
    watch = Heard()
    bring(root, watch)
    assert left(root) == WHOLE
    assert [asked.range for asked in mini.asked] == ["bytes=30000-", ""]
    assert "taken anew" in watch.told[0]


@pytest.mark.parametrize("part", [DATA + b"more", DATA[:-1] + b"?"])
def test_a_part_that_is_too_long_or_whole_and_wrong_is_dropped(mini: Host, root: Path, part: bytes) -> None:
    bring_part(mini, root, part, '"one"')
    bring(root)
    assert left(root) == WHOLE


def test_a_part_that_is_whole_needs_no_byte_more(mini: Host, root: Path) -> None:
    bring_part(mini, root, DATA, '"one"')
    bring(root)
    assert mini.asked == []
    assert left(root) == WHOLE


def test_a_part_that_is_whole_is_known_without_a_size_in_the_card(tmp_path: Path, mini: Host, root: Path) -> None:
    card(tmp_path, entry("birds.tar", DATA, [mini.address("/birds.tar")], size=False))
    bring_part(mini, root, DATA, '"one"')
    bring(root)
    assert [asked.sent for asked in mini.asked] == [[0]]
    assert left(root) == WHOLE


def bring_part(host: Host, root: Path, data: bytes, tag: str) -> None:
    folder = root / ".downloads" / "mini"
    folder.mkdir(parents=True)
    (folder / "birds.tar.part").write_bytes(data)
    note = {"address": host.address("/birds.tar"), "validator": tag}
    (folder / "birds.tar.part.json").write_text(json.dumps(note))


def test_errors_of_the_host_are_waited_out(mini: Host, root: Path) -> None:
    mini.faults["/birds.tar"] = ["status:500", "status:503", "status:500"]
    watch = Heard()
    bring(root, watch)
    assert left(root) == WHOLE
    assert len(mini.asked) == 4
    assert "500 Internal Server Error" in watch.told[0]


@pytest.mark.parametrize("fault", ["status:404", "status:403", "html", "nohost"])
def test_the_next_mirror_is_asked_at_once(tmp_path: Path, mini: Host, root: Path, fault: str) -> None:
    mini.files["/page"] = b"<html>gone</html>"
    mini.faults["/page"] = [fault]
    first = "ftp://example.org/birds.tar" if fault == "nohost" else mini.address("/page")
    card(tmp_path, entry("birds.tar", DATA, [first, mini.address("/mirror.tar")]))
    watch = Heard()
    bring(root, watch)
    assert left(root) == WHOLE
    assert mini.asked[-1].path == "/mirror.tar"
    assert len(watch.told) == 1
    assert "trying the next address" in watch.told[0]


def test_a_mirror_goes_on_with_what_another_gave(mini: Host, root: Path) -> None:
    mini.faults["/birds.tar"] = ["cut:100000", *["status:500"] * 9]
    bring(root)
    assert left(root) == WHOLE
    assert mini.asked[-1][:3] == ("/mirror.tar", "bytes=100000-", "")


def test_every_address_is_named_when_all_fail(mini: Host, root: Path) -> None:
    mini.files = {"/mirror.tar": b"<html>buy this domain</html>"}
    mini.faults["/mirror.tar"] = ["html"]
    with pytest.raises(BenchError) as caught:
        bring(root)
    first, second, third = str(caught.value).splitlines()
    assert first == "birds.tar could not be downloaded:"
    assert second == f"  {mini.address('/birds.tar')}: the host answers 404 Not Found"
    assert (
        third
        == f"  {mini.address('/mirror.tar')}: gives a web page of 28 bytes instead of birds.tar of {len(DATA):,} bytes"
    )
    assert left(root) == []


def test_no_connection_is_said_in_words(tmp_path: Path, root: Path) -> None:
    card(tmp_path, entry("birds.tar", DATA, ["http://127.0.0.1:9/birds.tar"]))
    with pytest.raises(BenchError, match=r"127.0.0.1:9/birds.tar: no connection: .*refused \(tried 4 times\)"):
        bring(root)


def test_a_wrong_checksum_is_never_unpacked(mini: Host, root: Path) -> None:
    wrong = bytes(len(DATA))
    mini.files = {"/birds.tar": wrong, "/mirror.tar": wrong}
    with pytest.raises(BadData) as caught:
        bring(root)
    for data in (wrong, DATA):
        assert str(caught.value).count(hashlib.sha256(data).hexdigest()) == 2
    assert left(root) == []
    assert not (root / "mini").exists()


@pytest.mark.parametrize("fault", ["", "nolength"])
def test_a_file_of_another_length_is_refused(mini: Host, root: Path, fault: str) -> None:
    mini.files = {"/birds.tar": DATA + b"1", "/mirror.tar": DATA}
    mini.faults["/birds.tar"] = [fault]
    watch = Heard()
    bring(root, watch)
    assert left(root) == WHOLE
    assert f"{len(DATA):,} bytes" in watch.told[0]


def test_a_body_without_length_that_ends_early_goes_on(mini: Host, root: Path) -> None:
    mini.files["/birds.tar"] = DATA[:200_000]
    mini.faults["/birds.tar"] = ["nolength", *["status:404"] * 3]
    watch = Heard()
    bring(root, watch)
    assert left(root) == WHOLE
    assert f"ended after 200,000 of {len(DATA):,} bytes" in watch.told[0]
    assert mini.asked[-1].range == "bytes=200000-"


def test_an_address_that_gives_nothing_new_is_given_up(mini: Host, root: Path) -> None:
    mini.faults = {"/birds.tar": ["cut:1000"] * 50, "/mirror.tar": ["cut:0"] * 50}
    with pytest.raises(
        BenchError, match=r"birds.tar: the connection .*\(tried 4 times\)\n.*mirror.tar: .*\(tried 4 times\)"
    ):
        bring(root)
    assert len(mini.asked) == 8
    assert left(root) == [".downloads/mini/birds.tar.part", ".downloads/mini/birds.tar.part.json"]


def test_the_disk_must_have_room(mini: Host, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 400_000})()
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda *_: usage)
    with pytest.raises(BadInput, match=r"mini needs about 645.1 kB .* 400.0 kB are free"):
        bring(root)
    assert mini.asked == []


def test_a_size_that_only_the_host_knows_must_fit_too(
    tmp_path: Path, mini: Host, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(tmp_path, entry("birds.tar", DATA, [mini.address("/birds.tar")], size=False))
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda *_: type("Usage", (), {"free": 200_000})())
    with pytest.raises(BadInput, match=r"birds.tar needs 307.2 kB more, and 200.0 kB are free"):
        bring(root)


@pytest.mark.usefixtures("mini")
def test_a_disk_that_fills_keeps_the_part(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Part.append

    def full(part: Part, sink: IO[bytes], chunk: bytes) -> None:
        if part.size > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        keep(part, sink, chunk)

    monkeypatch.setattr(Part, "append", full)
    with pytest.raises(BadInput, match=r"birds.tar.part: the disk is full; with room, the same command goes on"):
        bring(root)
    assert (root / ".downloads/mini/birds.tar.part").stat().st_size > 100_000


def test_a_trickle_is_a_stall(mini: Host, root: Path) -> None:
    mini.faults["/birds.tar"] = ["trickle"]
    watch = Heard()
    bring(root, watch, patience=STALLED)
    assert left(root) == WHOLE
    assert "hardly a byte came" in watch.told[0]


@pytest.mark.usefixtures("mini")
def test_a_remote_root_is_refused() -> None:
    with pytest.raises(BadInput, match=r"s3://bucket/data is on a remote store: fetch mini into a folder"):
        plan_fetch("mini", "s3://bucket/data/")


@pytest.mark.usefixtures("mini")
def test_a_folder_that_is_something_else_is_not_touched(root: Path) -> None:
    (root / "mini").mkdir(parents=True)
    bring_nothing = root / "mini" / "mine.txt"
    bring_nothing.write_text("mine")
    with pytest.raises(BadInput, match="is there and is not the release"):
        bring(root)
    assert left(root) == ["mini/mine.txt"]
    bring_nothing.unlink()
    bring(root)  # an empty folder is filled
    assert left(root) == WHOLE


def test_what_needs_no_fetch_says_so(tmp_path: Path, root: Path) -> None:
    assert plan_fetch("leaves", str(root)).settled == "leaves is drawn by bench itself: there is nothing to fetch"
    (tmp_path / "cards" / "images").mkdir()
    card(tmp_path, name="own", more='location = "images"')
    assert f"in {tmp_path / 'cards' / 'images'}" in plan_fetch("own", str(root)).settled
    with pytest.raises(BadInput, match="is a folder"):
        plan_fetch(str(tmp_path / "cards" / "images"), str(root))


def test_a_file_brought_by_hand_is_verified_unpacked_and_left(tmp_path: Path, host: Host, root: Path) -> None:
    table = b"a table"
    host.files["/labels.mat"] = table
    card(
        tmp_path,
        entry("birds.tar", DATA, []),
        entry("labels.mat", table, [host.address("/labels.mat")], into="CUB_200_2011/tables"),
        by_hand="ask the authors",
    )
    with pytest.raises(BadInput) as caught:
        bring(root)
    assert "no program can download birds.tar: ask the authors" in str(caught.value)
    assert f"put it into {root}/.downloads/mini" in str(caught.value)
    assert host.asked == []
    brought = root / ".downloads/mini/birds.tar"
    brought.parent.mkdir(parents=True)
    brought.write_bytes(DATA[:-1])
    with pytest.raises(BadData, match=f"{brought}: sha256 is .* remove it, or bring the right one"):
        bring(root)
    brought.write_bytes(DATA)
    assert bring(root).kept == (brought,)
    assert left(root) == [".downloads/mini/birds.tar", *sorted([*WHOLE, "mini/CUB_200_2011/tables/labels.mat"])]


def test_a_card_without_archives_says_what_to_do(tmp_path: Path, root: Path) -> None:
    card(tmp_path, by_hand="log in and download it")
    with pytest.raises(BadInput, match=f"by a program: log in and download it\n.*goes to {root}/mini"):
        bring(root)


@pytest.mark.parametrize("into", ["../x", "/x", "a/../../x"])
def test_a_card_that_leaves_its_folder_is_refused(tmp_path: Path, root: Path, into: str) -> None:
    card(tmp_path, entry("birds.tar", DATA, ["http://127.0.0.1:9/x"], into=into))
    with pytest.raises(BadInput, match="leaves its folder"):
        plan_fetch("mini", str(root))


@pytest.mark.parametrize("evil", ["members", "cut", "other"])
def test_an_archive_that_is_evil_cut_or_another_leaves_no_dataset(
    tmp_path: Path, host: Host, root: Path, evil: str
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("CUB_200_2011/images.txt", b"1 a.jpg\n")
        made.writestr("../x" if evil == "members" else "CUB_200_2011/train_test_split.txt", b"evil")
    data = {"members": buffer.getvalue(), "cut": buffer.getvalue()[:-30], "other": release("strange")}[evil]
    file = "birds.tar" if evil == "other" else "birds.zip"
    host.files["/a"] = data
    card(tmp_path, entry(file, data, [host.address("/a")]))
    with pytest.raises(BadData, match=r"'\.\./x'|cut short|hold no release"):
        bring(root)
    assert left(root) == [f".downloads/mini/{file}"]
    assert not here(root)


def command(root: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "bench", "data", "fetch", "mini", "--data-root", str(root), *more]


def until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_killed_in_the_download_it_goes_on_and_sends_no_byte_twice(mini: Host, root: Path) -> None:
    mini.faults["/birds.tar"] = ["hold:200000"]
    part = root / ".downloads/mini/birds.tar.part"
    with subprocess.Popen(command(root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: part.is_file() and part.stat().st_size == 200_000)
        process.kill()
    assert not here(root)
    mini.released.set()
    bring(root)
    assert (mini.asked[-1].range, mini.asked[-1].if_range) == ("bytes=200000-", '"one"')
    assert mini.asked[-1].sent == [len(DATA) - 200_000]
    assert left(root) == WHOLE


def test_interrupted_it_says_that_it_goes_on(mini: Host, root: Path) -> None:
    mini.faults["/birds.tar"] = ["hold:200000"]
    part = root / ".downloads/mini/birds.tar.part"
    with subprocess.Popen(command(root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        until(lambda: part.is_file() and part.stat().st_size == 200_000)
        process.send_signal(signal.SIGINT)
        output = process.communicate()[0]
    assert process.returncode == 130
    assert "the same command goes on from there" in output
    assert "Traceback" not in output
    assert part.stat().st_size == 200_000


KILLED = """
import os, signal, sys
from bench.fetching.fetch import fetch, plan_fetch

class Killer:
    def tell(self, message): pass
    def at(self, task, done, total):
        if task.startswith(sys.argv[2]) and done:
            os.kill(os.getpid(), signal.SIGKILL)

fetch(plan_fetch("mini", sys.argv[1]), Killer())
"""


def test_killed_in_the_unpacking_it_leaves_no_dataset(mini: Host, root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(root), "unpacking"])
    assert done.returncode == -signal.SIGKILL
    assert (root / ".mini.partial").is_dir()
    assert not here(root)
    bring(root)
    assert left(root) == WHOLE
    assert len(mini.asked) == 1


def test_two_at_once_are_one_that_works_and_one_that_waits(mini: Host, root: Path) -> None:
    mini.faults["/birds.tar"] = ["hold:1000"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command(root), **pipe) as first:  # type: ignore[call-overload]
        until(lambda: len(mini.asked) == 1)
        with subprocess.Popen(command(root), **pipe) as second:  # type: ignore[call-overload]
            line = ""
            while "waiting for it" not in line:
                line = second.stdout.readline()
                assert line, "it ended without waiting"
            mini.released.set()
            assert f"mini is in {root}/mini" in second.communicate()[0]
        assert "3 files" in first.communicate()[0]
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(mini.asked) == 1
    assert left(root) == WHOLE


def test_the_command_shows_the_terms_and_plain_lines(tmp_path: Path, host: Host, root: Path) -> None:
    host.files["/birds.tar"] = DATA
    card(tmp_path, entry("birds.tar", DATA, [host.address("/birds.tar")]), by_hand="more images need a login")
    done = CliRunner().invoke(app, ["data", "fetch", "mini", "--data-root", str(root)])
    assert done.exit_code == 0
    where = host.address("").removeprefix("http://")
    assert done.stdout.splitlines()[:6] == [
        "Mini birds",
        "  terms     research only",
        "  citation  Nobody et al. 2020",
        "  homepage  https://example.org/birds",
        f"  archive   birds.tar, 307.2 kB, from {where}",
        f"  download  307.2 kB, to {root}/.downloads/mini",
    ]
    assert "\x1b" not in done.stdout
    assert "downloading birds.tar: 0 bytes of 307.2 kB" in done.stdout
    assert done.stdout.count("unpacking birds.tar: 307.2 kB") == 1
    assert "left to do by hand: more images need a login" in done.stdout
    again = CliRunner().invoke(app, ["data", "fetch", "mini", "--data-root", str(root)])
    assert again.exit_code == 0
    assert again.stdout == f"mini is here already, in {root}/mini/CUB_200_2011\n"


def test_bars_in_a_terminal_survive_a_restart() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, highlight=False)
    with watching(console) as watch:
        watch.at("downloading a[b].tar", 500, 1000)
        watch.tell("[odd] once more")
        watch.at("downloading a[b].tar", 0, None)
        watch.at("downloading a[b].tar", 1000, 1000)
    assert "[odd] once more" in screen.getvalue()
    assert "downloading a[b].tar" in screen.getvalue()
