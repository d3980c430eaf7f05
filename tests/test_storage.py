"""Datasets on remote stores: addresses, a real local S3 server, and servers that fail."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench import storage
from bench.cache import cache_folder
from bench.data.dataset import resolve
from bench.data.pack import open_pack
from bench.data.tree import open_tree
from bench.errors import BadInput
from bench.storage import is_remote, join, last_name, normal, open_store

Put = Callable[[str, bytes], None]
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address (http://127.0.0.1:PORT) of moto's S3 server."""
    import logging

    from moto.server import ThreadedMotoServer

    log = logging.getLogger("werkzeug")
    level = log.level
    log.setLevel(logging.CRITICAL)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()
    running._server.server_close()
    log.setLevel(level)


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Put:
    """What puts an object into the bucket `box`, made anew; the environment names the server and its credentials."""
    import boto3

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket="box")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="box"):
        for entry in page.get("Contents", []):
            client.delete_object(Bucket="box", Key=entry["Key"])
    return lambda key, data: client.put_object(Bucket="box", Key=key, Body=data)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def photograph(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (48, 32), value).save(path, "PNG")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of five images."""
    for label, base in (("a", 0), ("b", 100)):
        for number in range(5):
            photograph(tmp_path / "leaf" / label / f"{number}.png", base + number)
    return tmp_path / "leaf"


def upload(put: Put, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())


@pytest.mark.parametrize(
    ("address", "names", "joined"),
    [
        ("/data", ("a", "b"), "/data/a/b"),
        ("/", ("a",), "/a"),
        ("/data", (), "/data"),
        ("/what?x=1", ("a",), "/what?x=1/a"),
        ("s3://box", ("a",), "s3://box/a"),
        ("s3://box/x?region=eu-west-1", ("a", "b"), "s3://box/x/a/b?region=eu-west-1"),
    ],
)
def test_join(address: str, names: tuple[str, ...], joined: str) -> None:
    assert join(address, *names) == joined


def test_spellings_of_an_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert normal("s3://box/x/?scheme=http") == "s3://box/x?scheme=http"
    assert normal("memory://x/") == "memory://x"
    assert normal("a/../b/") == str(tmp_path / "b")
    assert normal("file:///tmp/../data") == "/data"
    assert [is_remote(a) for a in ("s3://b", "memory://b", "file:///b", "/b", "C:/b")] == [True, True, False] + [
        False
    ] * 2
    assert [last_name(a) for a in ("s3://b/x?region=a/b", "s3://b/y", "/d/e", "/what?x", "/")] == [
        "x",
        "y",
        "e",
        "what?x",
        "",
    ]


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIA1:SeCrEt@box/x",
        "s3://AKIA1:SeC/rEt+SeCrEt@box/x",
        "s3://SeCrEt@box/x",
        "s3://box/x?access_key=AKIA1&secret_key=SeCrEt",
        "s3://box/x?session_token=SeCrEt",
        "s3://box/x?region=eu-west-1&SECRET_KEY=SeCrEt",
        "gs://user:SeCrEt@box/x",
        "ftp://user:SeCrEt@host/x",
        "https://host/x?X-Amz-Signature=SeCrEt",
        "https://host/x?sig=SeCrEt",
        "simplecache::s3://AKIA1:SeCrEt@box/x",
    ],
)
def test_secrets_in_an_address_are_refused_and_not_repeated(address: str) -> None:
    for use in (normal, open_store, open_tree, resolve, lambda given: resolve("cub200", given)):
        with pytest.raises(BadInput) as caught:
            use(address)
        assert "SeC" not in str(caught.value)
        assert "AKIA" not in str(caught.value)


def test_wrong_addresses() -> None:
    with pytest.raises(BadInput, match=r"no option is named 'regio'; did you mean 'region'\?"):
        normal("s3://box/x?regio=eu")
    with pytest.raises(BadInput, match=r"option anonymous is true or false \(given: 'yes'\)"):
        normal("s3://box/x?anonymous=yes")
    with pytest.raises(BadInput, match=r"names no bucket"):
        normal("s3:///x")
    with pytest.raises(BadInput, match=r"'nothing://x': Protocol not known: nothing"):
        open_store("nothing://x")


def test_a_folder_on_s3_is_the_folder(s3: Put, folder: Path, cache: Path) -> None:
    upload(s3, folder, "data/leaf")
    here, there = resolve(str(folder)), resolve("s3://box/data/leaf/")
    assert there.source.fingerprint == here.source.fingerprint
    assert (there.name, there.source.location) == ("leaf", "s3://box/data/leaf")
    assert (there.counts, there.index.files) == (here.counts, here.index.files)
    pack = open_pack(there.source, 16, cache)  # first of the two: it reads the store
    assert pack.images[:, 0, 0, 0].tolist() == [*range(5), *range(100, 105)]
    assert (pack.skipped, pack.counts) == ((), here.counts)
    s3("data/leaf/b/0.png", (folder / "a" / "0.png").read_bytes())
    assert resolve("s3://box/data/leaf").source.fingerprint != here.source.fingerprint


def test_splits_csv_and_hidden_and_placeholders(s3: Put, folder: Path) -> None:
    upload(s3, folder, "leaf")
    s3("leaf/", b"")
    s3("leaf/a/", b"")
    s3("leaf/looks.png/", b"")
    s3("leaf/.thumbs/x.png", b"x")
    s3("leaf/__MACOSX/a/0.png", b"x")
    lines = [f"a/{n}.png,a,{split}" for n, split in enumerate(("train", "train", "val", "test", "test"))]
    lines += [f"b/{n}.png,b,{split}" for n, split in enumerate(("train", "train", "val", "test", "unlabelled"))]
    s3("leaf/splits.csv", "\n".join(["file,class,split", *lines]).encode())
    assert resolve("s3://box/leaf").counts == {"unlabelled": 1, "train": 4, "val": 2, "test": 3}
    s3("leaf/splits.csv", b"file,class,split\na/9.png,a,train\n")
    with pytest.raises(BadInput, match=r"s3://box/leaf/splits.csv: line 2: file 'a/9.png' is not there; did you mean"):
        resolve("s3://box/leaf")


def test_odd_names(s3: Put, tmp_path: Path, cache: Path) -> None:
    names = ("with blank.png", "\u00e9\u6a39.png", "100%.png", "100%25.png", "x+y&z=1.png", "a#b.png", "c?d.png")
    for number, name in enumerate(names):
        photograph(tmp_path / "my data 50%" / name, number)
    upload(s3, tmp_path / "my data 50%", "all/my data 50%")
    there = resolve("s3://box/all/my data 50%")
    assert there.source.fingerprint == resolve(str(tmp_path / "my data 50%")).source.fingerprint
    pack = open_pack(there.source, 16, cache)
    assert sorted(pack.images[:, 0, 0, 0].tolist()) == list(range(len(names)))
    assert (pack.skipped, pack.name) == ((), "my data 50%")


def test_an_object_that_cannot_be_read_is_skipped(s3: Put, folder: Path, cache: Path) -> None:
    upload(s3, folder, "leaf")
    s3("leaf/a//lost.png", b"x")  # a name that is no path, so that it can be listed and not be opened
    s3("leaf/b/text.png", b"text")
    pack = open_pack(resolve("s3://box/leaf").source, 16, cache)
    assert {entry.file: entry.reason[:14] for entry in pack.skipped} == {
        "a//lost.png": "cannot be read",
        "b/text.png": "not an image o",
    }
    assert len(pack) == 10


def test_a_release_below_a_remote_data_root(s3: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "root" / "CUB_200_2011"
    names = [f"00{1 + n % 2}.Bird_{n % 2}/Bird_{n}.png" for n in range(12)]
    for number, name in enumerate(names):
        photograph(place / "images" / name, number)
    tables = {
        "images": [f"{n + 1} {name}" for n, name in enumerate(names)],
        "classes": ["1 001.Bird_0", "2 002.Bird_1"],
        "image_class_labels": [f"{n + 1} {1 + n % 2}" for n in range(12)],
        "train_test_split": [f"{n + 1} {int(n < 8)}" for n in range(12)],
        "bounding_boxes": [f"{n + 1} 4.0 4.0 {16 + n}.0 16.0" for n in range(12)],
    }
    for table, lines in tables.items():
        (place / f"{table}.txt").write_text("\n".join(lines) + "\n")
    upload(s3, tmp_path / "root", "all")
    for reference in ("cub200", "cub200?boxes=true"):
        here, there = resolve(reference, str(tmp_path / "root")), resolve(reference, "s3://box/all")
        assert there.source.fingerprint == here.source.fingerprint
        assert (there.name, there.source.location) == (reference, "s3://box/all/CUB_200_2011")
        assert there.counts == {"unlabelled": 0, "train": 6, "val": 2, "test": 4}
    monkeypatch.setenv("BENCH_DATA", "s3://box/all")
    assert resolve("cub200").source.location == "s3://box/all/CUB_200_2011"
    assert resolve("s3://box/all/CUB_200_2011").name == "cub200"
    with pytest.raises(BadInput, match=r"'food101' is not here \(looked in s3://box/all/food101, "):
        resolve("food101")


def test_options_of_an_address_reach_every_folder_below(
    s3: Put, server: str, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(s3, folder, "data/leaf")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = f"?endpoint_override={server.removeprefix('http://')}&scheme=http"
    there = resolve(f"s3://box/data/leaf{options}")
    assert (there.name, there.source.location) == ("leaf", f"s3://box/data/leaf{options}")
    assert len(open_pack(there.source, 16, cache)) == 10
    assert open_tree(join(f"s3://box/data{options}", "leaf")).exists()


PACKER = """
import sys
from pathlib import Path
from bench.data.pack import open_pack
from bench.data.source import Source
built = []
pack = open_pack(Source.model_validate_json(sys.argv[1]), 16, Path(sys.argv[2]), lambda done, total: built.append(done))
print(len(built), len(pack), int(pack.images.sum()))
"""


def test_two_processes_pack_a_remote_folder_once(s3: Put, folder: Path, cache: Path) -> None:
    upload(s3, folder, "leaf")
    source = resolve("s3://box/leaf").source
    command = [sys.executable, "-c", PACKER, source.model_dump_json(), str(cache)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as one,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as two,
    ):
        said = [process.communicate(timeout=120)[0].split() for process in (one, two)]
    assert sorted(int(words[0]) for words in said) == [0, 10]
    assert said[0][1:] == said[1][1:]


@pytest.mark.usefixtures("s3")
def test_many_keys_are_listed_quickly() -> None:
    from moto.s3.models import s3_backends

    (backend,) = (backends["aws"] for backends in s3_backends.values() if "box" in backends["aws"].buckets)
    backend.create_bucket("crowd", "us-east-1")
    for number in range(3000):
        backend.put_object("crowd", f"many/{number % 7}/{number:05d}.jpg", b"x")
    begin = time.process_time()
    stamps = open_tree("s3://crowd/many").scan()
    assert len(stamps) == 3000
    assert {size for size, _ in stamps.values()} == {1}
    assert time.process_time() - begin < 10  # of both sides; 1.0 s on one core


def test_memory_through_fsspec(folder: Path, cache: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/shelf/leaf", recursive=True)
    there = resolve("memory://shelf/leaf")
    assert there.source.fingerprint == resolve(str(folder)).source.fingerprint
    assert len(open_pack(there.source, 16, cache)) == 10
    memory.rm("/shelf", recursive=True)


@pytest.mark.usefixtures("s3")
def test_what_is_not_there() -> None:
    assert not open_tree("s3://box/nowhere").exists()
    for use in (lambda: resolve("s3://absent/x"), lambda: resolve("cub200", "s3://absent")):
        with pytest.raises(BadInput, match=r"^s3://absent(/x)?: there is no bucket 'absent'$"):
            use()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A server that answers with these statuses, one after the other, the last for ever."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "_TRIES", 4)
    monkeypatch.setattr(storage, "_SILENCE_S", 1)
    statuses: list[int] = []

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
            self.send_header("Content-Length", "0")
            self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield statuses
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "word"), [(403, "ACCESS_DENIED"), (503, "503"), (500, "500|INTERNAL")])
def test_a_store_that_refuses_is_one_error(failing: list[int], status: int, word: str) -> None:
    failing.append(status)
    begin = time.monotonic()
    for use in (resolve, lambda address: open_tree(address).scan()):
        with pytest.raises(BadInput, match=rf"^s3://box/x: the store does not give access: .*({word})"):
            use("s3://box/x")
    assert time.monotonic() - begin < 20


def test_a_store_that_is_away_for_a_moment_is_waited_for(failing: list[int]) -> None:
    failing += [503, 503, 200]
    assert open_tree("s3://box/x").exists()
    assert failing == [200]


@pytest.mark.usefixtures("failing")
def test_a_store_that_is_down_or_silent_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        for listening in (False, True):
            if listening:
                silent.listen(20)
            monkeypatch.setattr(storage, "_TRIES", 0 if listening else 2)
            where = f"?endpoint_override=127.0.0.1:{silent.getsockname()[1]}&scheme=http"
            storage._s3_at.cache_clear()
            begin = time.monotonic()
            with pytest.raises(BadInput, match=r"the store does not give access: .*NETWORK_CONNECTION"):
                open_tree(f"s3://box/x{where}").exists()
            assert time.monotonic() - begin < 15


@pytest.mark.usefixtures("s3")
def test_opening_a_store_leaves_the_environment_alone() -> None:
    before = dict(os.environ)
    open_tree("s3://box/x").exists()
    assert dict(os.environ) == before
    assert cache_folder().name == "cache"
