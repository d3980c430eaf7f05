"""`bench watch --serve`: what is answered, what is refused, and pages that are made while others are shown."""

import errno
import gzip
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench import serve as serving
from bench.cli import app
from bench.errors import BadInput
from bench.live import Row, Snapshot
from bench.page import served, upkeep
from bench.page.render import render_page
from bench.page.upkeep import Page, Upkeep, ledger_state
from bench.results.ledger import Ledger
from bench.results.questions import sweep_records
from bench.results.schema import Measurement, Membership, TrialFacts, rows_table
from bench.serve import Server, open_server

ROOT = Path(__file__).parents[1]
SWEEP_ID = "ab" * 32
BROWSER, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
EVIL = '<img src=x onerror="window.pwned=1">\'&\u202e\x1b[2J'


def page(name: str, body: str = "") -> bytes:
    """A page that states a policy, as all do."""
    policy = "default-src &#39;none&#39;; script-src &#39;sha256-x=&#39;"
    return f'<meta http-equiv="Content-Security-Policy" content="{policy}"><p>{name}</p>{body}'.encode()


def told(**over: Any) -> Snapshot:
    row = Row(label=EVIL, epoch=2, epochs=12, loss=5.172, images_per_second=471.4, seconds_left=36.1, settings=EVIL)
    facts: dict[str, Any] = {"sweep": "gamma", "sweep_id": SWEEP_ID, "title": "q?", "total": 15, "rows": (row,)}
    return Snapshot(**(facts | {"counts": {"pruned": 1, "finished": 2}, "running": 1, "best": (0.5, EVIL)} | over))


def tell(out: Path, snapshot: Snapshot) -> None:
    """Write a driver's word at once, as a driver does."""
    (out / "live").mkdir(parents=True, exist_ok=True)
    temporary = out / "live" / ".word"
    temporary.write_text(snapshot.model_dump_json())
    temporary.replace(out / "live" / "gamma-abababababab.abc123.json")


def add_trial(out: Path, seed: int, sweep: str = "gamma") -> None:
    """A confirmed trial in the ledger."""
    trial = f"{seed:064x}"
    facts = TrialFacts(
        trial_id=trial,
        pretrain_id=trial,
        membership=Membership(sweep=sweep, sweep_id=SWEEP_ID, stage="confirm", configuration="simclr", role="best"),
        configuration_id="c",
        method="simclr",
        encoder="small",
        seed=seed,
        status="finished",
        config={"objective": "linear"},
        objective=0.5,
    )
    row = Measurement(dataset="leaves", protocol="linear", split="test", metric="top1", headline=True, value=0.5)
    Ledger(out).write(rows_table(facts, [row]))


def until(holds: Callable[[], Any], seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "waited for nothing"
        time.sleep(0.02)
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of one page and one live progress, whose threads that renew them do not run."""
    kept = Upkeep(tmp_path)
    kept.page, kept.live = Page.of("first", page("first")), b'{"views":[]}'
    with running(kept) as made:
        yield made


@contextmanager
def running(kept: Upkeep) -> Iterator[Server]:
    """A server on a free port of the loopback, for as long as the block."""
    with open_server(kept, "127.0.0.1", 0) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()


def ask(server: Server, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


def send(server: Server, raw: bytes) -> bytes:
    """Everything that the server answers to these very bytes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        answer = b""
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while some := connection.recv(65536):
                answer += some
        except OSError as error:  # it closes a connection that it turns away at once
            if error.errno not in (errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE):
                raise
        return answer


# What is answered ------------------------------------------------------------------------------------


def test_the_page_comes_with_its_policy_as_a_header(server: Server) -> None:
    status, headers, body = ask(server)
    assert (status, body) == (200, page("first"))
    assert headers["content-security-policy"] == "default-src 'none'; script-src 'sha256-x='; frame-ancestors 'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers
    assert "python" not in headers["server"].lower()


def test_the_live_progress_is_never_kept(server: Server) -> None:
    status, headers, body = ask(server, "/live.json?x=1")
    assert (status, json.loads(body)) == (200, {"views": []})
    assert (headers["content-type"], headers["cache-control"]) == ("application/json", "no-store")


@pytest.mark.parametrize("path", ["/", "/live.json", "/nothing"])
def test_head_is_get_without_a_body(server: Server, path: str) -> None:
    got, head = ask(server, path), ask(server, path, "HEAD")
    assert head[2] == b""
    assert (got[0], {**got[1], "date": ""}) == (head[0], {**head[1], "date": ""})
    assert int(head[1]["content-length"]) == len(got[2])


def test_a_page_travels_packed_and_only_once(server: Server) -> None:
    status, headers, body = ask(server, Accept_Encoding="br, gzip")
    assert gzip.decompress(body) == page("first")
    assert headers["content-encoding"] == "gzip"
    status, _, body = ask(server, If_None_Match=headers["etag"])
    assert (status, body) == (304, b"")
    server.upkeep.page = Page.of("second", page("second"))
    status, _, body = ask(server, If_None_Match=headers["etag"])
    assert (status, body) == (200, page("second"))


# What is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:80",
        "10.0.0.1",
        "localhost.",
        "0",
    ],
)
def test_a_name_that_is_not_this_machines_is_refused(server: Server, host: str) -> None:
    for path in ("/", "/live.json", "/nothing"):
        status, headers, body = ask(server, path, Host=host)
        assert (status, body) == (421, b"421 this server is not known by that name\n")
        assert headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "127.0.0.1:9999", "[::1]:1", "127.9.9.9"])
def test_names_of_the_loopback_are_known_through_any_tunnel(server: Server, host: str) -> None:
    assert ask(server, Host=host)[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1",
        b"GET /\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example",
        b"GET / HTTP/1.1\r\nHost: user@localhost",
        b"GET / HTTP/1.1\r\nHost: localhost:80:80",
        b"GET / HTTP/1.1\r\nHost: localhost evil.example",
        b"GET / HTTP/1.1\r\nHost:",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost",
        b"GET * HTTP/1.1\r\nHost: localhost",
        b"GET",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_requests_that_are_none_are_refused(server: Server, head: bytes) -> None:
    answer = send(server, head + b"\r\n\r\n")
    assert b"first" not in answer
    assert re.match(rb"HTTP/1.0 400 |400 ", answer) or answer == b""
    assert b"evil" not in answer
    assert ask(server)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/etc/passwd",
        "/etc/passwd",
        "//etc/passwd",
        "/index.html",
        "/ledger/",
        "/live.json/",
        "/live.json/../..",
        "/./",
        "/%00",
        "/live%2ejson",
        "/.git/config",
        "/trials",
        "/" + "a" * 20_000,
    ],
)
def test_nothing_else_can_be_asked_for(server: Server, path: str) -> None:
    (server.upkeep.out / "ledger").mkdir()
    (server.upkeep.out / "index.html").write_text("secret")
    answer = send(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.0 404 ")
    assert answer.endswith(b"404 Not Found\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "X-EVIL"])
def test_only_get_and_head_are_allowed(server: Server, method: str) -> None:
    answer = send(server, f"{method} / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello".encode())
    assert answer.startswith(b"HTTP/1.0 405 ")
    assert b"Allow: GET, HEAD\r\n" in answer
    assert b"EVIL" not in answer
    assert b"first" not in answer


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"GET /" + b"a" * 70_000, b"414"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n", b"431"),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", b"505"),
    ],
)
def test_requests_without_end_are_cut(server: Server, raw: bytes, code: bytes) -> None:
    answer = send(server, raw)
    assert answer == b"" or answer.startswith((b"HTTP/1.0 " + code, code))
    assert ask(server)[0] == 200


def test_silent_clients_hold_up_nobody_and_many_are_turned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MOST_REQUESTS", 3)
    with running(Upkeep(tmp_path)) as server, ExitStack() as silent:

        def free(places: int) -> None:
            until(lambda: server._free._value == places)  # type: ignore[attr-defined]

        for _ in range(2):
            client = silent.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            client.sendall(b"GET / HTTP/1.1\r\n")
        free(1)
        assert ask(server)[0] == 200
        free(1)
        silent.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        free(0)
        assert send(server, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
        silent.close()
        free(3)
        assert ask(server)[0] == 200


# Where it listens ------------------------------------------------------------------------------------


def test_beyond_the_loopback_addresses_are_known_and_foreign_names_are_not(tmp_path: Path) -> None:
    with open_server(Upkeep(tmp_path), "0.0.0.0", 0) as server:
        assert not server.local
        known = ("10.0.0.1", "[fe80::1]", "localhost", socket.gethostname(), "0.0.0.0")
        assert all(map(server.knows, known))
        assert not any(map(server.knows, ("evil.example", "0", "localhost.evil.example")))
        assert server.url == f"http://{socket.gethostname()}:{server.port}/"


def test_a_port_in_use_is_said_with_one_that_can_be_had(server: Server) -> None:
    with pytest.raises(BadInput, match=r"already in use; --port (\d+) can be had") as caught:
        open_server(server.upkeep, "127.0.0.1", server.port)
    port = int(re.findall(r"--port (\d+)", str(caught.value))[0])
    with open_server(server.upkeep, "127.0.0.1", port) as other:
        assert other.port == port


@pytest.mark.parametrize("host", ["", "no such host", "192.0.2.1"])
def test_an_address_of_no_machine_or_another_is_said(tmp_path: Path, host: str) -> None:
    with pytest.raises(BadInput, match=r"127\.0\.0\.1"):
        open_server(Upkeep(tmp_path), host, 0)


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["watch", "--serve", "--out", str(tmp_path / "nothing")])
    assert isinstance(result.exception, BadInput)
    assert "no such folder" in str(result.exception)


# Pages that are made ---------------------------------------------------------------------------------

MAKER = """
import sys, time
from pathlib import Path
out, name = Path(sys.argv[1]), sys.argv[2]
while not (out / "go").exists(): time.sleep(0.01)
(out / "go").unlink()
if (out / "broken").exists(): sys.exit("Traceback\\nthe ledger is on fire")
sys.stdout.write((out / "page").read_text().replace("NAME", name))
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upkeep]:
    """An upkeep whose pages are made when there is a file `go`, from a file `page`."""
    for name in ("LOOK", "POLL"):
        monkeypatch.setattr(upkeep, name, 0.02)
    (tmp_path / "page").write_bytes(page("NAME", "x" * 3_000_000 + "<p>end</p>"))
    kept = Upkeep(tmp_path, every=0.05)
    kept.command = [sys.executable, "-c", MAKER]
    kept.start()
    yield kept
    kept.stop()


def live(kept: Upkeep) -> dict[str, Any]:
    return dict(json.loads(kept.live))


def test_until_there_is_a_page_one_waits(made: Upkeep) -> None:
    assert b'data-page=""' in made.page.html
    assert "connect-src 'self'" in made.page.policy
    until(lambda: live(made)["building"])
    (made.out / "go").touch()
    until(lambda: made.page.name)
    assert made.page.html.startswith(page(made.page.name)[:80])
    until(lambda: live(made)["page"] == made.page.name)


def test_two_clients_have_whole_pages_while_new_ones_are_made(made: Upkeep) -> None:
    (made.out / "go").touch()
    until(lambda: made.page.name)
    seen: list[tuple[int, bytes]] = []
    ended = threading.Event()

    def read(server: Server) -> None:
        while not ended.is_set():
            status, _, body = ask(server)
            seen.append((status, body))

    with running(made) as server:
        clients = [threading.Thread(target=read, args=(server,), daemon=True) for _ in range(2)]
        for client in clients:
            client.start()
        names = [made.page.name]
        for number in range(3):
            add_file(made.out, number)
            before = len(seen)
            until(lambda: live(made)["building"])
            until(lambda before=before: len(seen) > before + 4)
            (made.out / "go").touch()
            names.append(until(lambda known=tuple(names): made.page.name not in known and made.page.name))
        ended.set()
        for client in clients:
            client.join()
    shown = {body for _, body in seen}
    assert {status for status, _ in seen} == {200}
    assert all(body.endswith(b"<p>end</p>") for body in shown)
    assert {re.findall(rb"<p>(\w+)</p>", body)[0].decode() for body in shown} <= set(names)
    assert len(shown) >= 3


def add_file(out: Path, number: int) -> None:
    (out / "ledger").mkdir(exist_ok=True)
    (out / "ledger" / f"{number}.parquet").touch()


def test_a_page_that_cannot_be_made_is_said_and_tried_again(made: Upkeep) -> None:
    (made.out / "go").touch()
    first = until(lambda: made.page.name)
    (made.out / "broken").touch()
    add_file(made.out, 1)
    (made.out / "go").touch()
    until(lambda: live(made)["problem"] == "The report could not be made: the ledger is on fire")
    assert made.page.name == first
    (made.out / "broken").unlink()
    (made.out / "go").touch()
    until(lambda: made.page.name != first)
    until(lambda: live(made)["problem"] == "")


def test_the_same_ledger_is_read_once(made: Upkeep) -> None:
    (made.out / "go").touch()
    first = until(lambda: made.page.name)
    (made.out / "go").touch()
    time.sleep(0.3)
    assert (made.page.name, (made.out / "go").exists()) == (first, True)


def test_stopping_ends_a_page_in_the_making(made: Upkeep) -> None:
    process = until(lambda: made._process)
    made.stop()
    assert process.wait(timeout=5) == -signal.SIGKILL
    assert not any(thread.is_alive() for thread in made._threads)


def test_the_ledgers_state_follows_files_and_definitions(tmp_path: Path) -> None:
    seen = [ledger_state(tmp_path)]
    add_trial(tmp_path, 0)
    seen.append(ledger_state(tmp_path))
    (tmp_path / "ledger" / ".hidden.parquet").touch()
    (tmp_path / "trials").mkdir()
    assert ledger_state(tmp_path) == seen[-1]
    (tmp_path / "sweeps").mkdir()
    for when in (1, 2):
        (tmp_path / "sweeps" / "gamma.json").touch()
        os.utime(tmp_path / "sweeps" / "gamma.json", (when, when))
        seen.append(ledger_state(tmp_path))
    assert len(set(seen)) == 4


def test_the_progress_tells_what_runs_and_what_was_done_last(tmp_path: Path) -> None:
    tell(tmp_path, told())
    kept = Upkeep(tmp_path)
    kept._tell()
    (view,) = live(kept)["views"]
    assert (view["sweep"], view["standing"], view["said"]) == ("gamma", "running", "running")
    (driver,) = view["drivers"]
    assert (driver["ended"], driver["running"], list(driver["counts"])) == (3, 1, ["finished", "pruned"])
    assert driver["rows"][0]["epoch"] == 2
    assert "\x1b" not in driver["rows"][0]["label"]
    other = Upkeep(tmp_path, "other")
    other._tell()
    assert live(other)["views"] == []


def test_the_served_page_is_the_report_with_a_script_more(tmp_path: Path) -> None:
    add_trial(tmp_path, 0)
    online = served.make(tmp_path, "n1", None, pictures=False)
    offline = render_page(Ledger(tmp_path).read().frame, out=tmp_path, records=sweep_records(tmp_path))
    assert "connect-src 'self'" in Page.of("n1", online.encode()).policy
    assert 'data-page="n1"' in online
    stated = Page.of("", offline.encode()).policy
    hashes = " ".join(re.findall(r"'sha256-[^']+'", stated))
    assert stated == (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert hashes.count("sha256") == 2
    assert "live.json" not in offline
    assert 'id="live"' not in offline
    # Without the strip, its style and its script it is the offline page, apart from its policy and its footer.
    for part in (r'<section class="live".*?</section>\n', r"<script>\"use strict\";\n// The live.*?</script>\n"):
        online = re.sub(part, "", online, flags=re.DOTALL)
    online = re.sub(r"\n\.live \{.*?(?=</style>)", "\n", online, flags=re.DOTALL)
    online = re.sub(r" &#39;sha256-[^&]+&#39;; connect-src 'self'", "", online)
    online = online.replace("the server that it came from", "no address")
    assert strip_policy(online) == strip_policy(offline)


def strip_policy(text: str) -> str:
    return re.sub(r'(Content-Security-Policy" content=)"[^"]*"', r"\1", text)


def test_no_ended_trial_is_a_page_too(tmp_path: Path) -> None:
    assert "No results yet." in served.make(tmp_path, "n1", "gamma", pictures=False)


# The command -----------------------------------------------------------------------------------------


def test_the_command_serves_a_real_ledger_until_ctrl_c_and_writes_nothing(tmp_path: Path) -> None:
    add_trial(tmp_path, 0)
    tell(tmp_path, told(state="done"))
    before = tree(tmp_path)
    command = [sys.executable, "-m", "bench", "watch", "--serve", "--no-pictures", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(re.findall(r"^http://127\.0\.0\.1:(\d+)/  \(Ctrl-C ends it\)$", line)[0])

        def report() -> bytes:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/")
            body = connection.getresponse().read()
            connection.close()
            return body if b"Leaderboard" in body else b""

        assert b'data-page=""' not in until(report, 60)
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
    assert (process.returncode, rest) == (0, "ended\n")
    assert tree(tmp_path) == before


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything in a folder, with times."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")
    }


def test_a_warning_where_everybody_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "serve_forever", Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr(Upkeep, "start", Mock())
    console = Console(width=200, record=True, quiet=False)
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        serving.serve(tmp_path, None, console, host=host, port=0)
        assert ("no password: everybody who reaches" in console.export_text()) is warned


# In a browser ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    for needed, package in ((BROWSER, "chromium"), (DRIVER, "chromium-driver")):
        if not Path(needed).exists():
            pytest.skip(f"no {needed}: Debian's package {package} has it")
    pytest.importorskip("selenium", reason="selenium is not installed: it comes with the extra `test`")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = BROWSER
    flags = "headless=new no-sandbox disable-gpu no-first-run disable-background-networking disable-dev-shm-usage"
    for flag in (*flags.split(), f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


def strip(browser: Any) -> str:
    return str(browser.execute_script("return document.getElementById('live').innerText"))


def test_the_page_follows_the_sweep(browser: Any, tmp_path: Path) -> None:
    tell(tmp_path, told())
    kept = Upkeep(tmp_path)
    kept._tell()
    with running(kept) as server:
        browser.get(server.url)
        until(lambda: "3/15 trials" in strip(browser))
        assert "1 running · 2 finished · 1 pruned" in strip(browser)
        assert "<img src=x onerror" in strip(browser)
        # The first page opens by itself.
        kept.page = Page.of("n1", served.make(tmp_path, "n1", None, pictures=False).encode())
        kept._tell()
        until(lambda: "No results yet." in browser.page_source)
        until(lambda: "2/12" in strip(browser))
        tell(tmp_path, told(beat=1, counts={"finished": 9}))
        kept._tell()
        until(lambda: "9/15 trials" in strip(browser))
        # A newer one waits for a click, so that nobody loses a place or a filter.
        add_trial(tmp_path, 0)
        kept.page = Page.of("n2", served.make(tmp_path, "n2", None, pictures=False).encode())
        kept._tell()
        until(lambda: "There are newer results." in strip(browser))
        browser.execute_script("document.querySelector('#live button').click()")
        until(lambda: "Leaderboard" in browser.page_source)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
        assert browser.execute_script("return window.pwned === undefined")
        assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    until(lambda: "The server does not answer" in strip(browser))
    assert strip(browser).count("The server does not answer") == 1
