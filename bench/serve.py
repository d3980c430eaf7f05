"""`bench watch --serve`: the report's page over HTTP with the live progress on top, read-only.

Two things can be asked for, `/` and `/live.json`, both from memory: no request opens a file. It listens on the loopback
unless told otherwise. A page elsewhere that points its own name at this machine (DNS rebinding) is refused by the
request's Host; what may run and load is settled by the page's policy, which is also sent as a header.
"""

import ipaddress
import re
import socket
import socketserver
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from bench.errors import BadInput
from bench.page.upkeep import Upkeep

MOST_REQUESTS = 64  # that are answered at a time; more are turned away
SILENCE = 15.0  # seconds that a client may stay silent
NEAR = 20  # ports above one in use that are tried for a proposal
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_NO_POLICY = "default-src 'none'; frame-ancestors 'none'"  # of what is no page


def serve(out: Path, sweep: str | None, console: Console, *, host: str, port: int, pictures: bool = True) -> None:
    """Serve until Ctrl-C, which is how it ends: no error. Raises BadInput for an address that cannot be had."""
    if not out.is_dir():
        raise BadInput(f"{out}: no such folder; `bench run --sweep simclr_gamma --out {out}` makes one")
    upkeep = Upkeep(out, sweep, pictures=pictures)
    with open_server(upkeep, host, port) as server:
        if not server.local:
            warning = f"no password: everybody who reaches this machine on port {server.port} can read these results"
            console.print(warning, style="yellow", soft_wrap=True)
        console.print(f"{server.url}  (Ctrl-C ends it)", soft_wrap=True)
        upkeep.start()
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            console.print("ended")
        finally:
            upkeep.stop()


class Server(ThreadingHTTPServer):
    """Answers from `upkeep`, whoever asks by a name that is this machine's."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upkeep: Upkeep, host: str, family: int, address: Any) -> None:
        self.upkeep, self.host = upkeep, host
        self.address_family = family
        self._free = threading.BoundedSemaphore(MOST_REQUESTS)
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """Bind, without asking the network for this machine's name as http.server does."""
        socketserver.TCPServer.server_bind(self)
        self.port = int(self.server_address[1])
        self.local = ipaddress.ip_address(str(self.server_address[0])).is_loopback

    @property
    def url(self) -> str:
        """Where a browser on this machine, or elsewhere where it listens there, finds the page."""
        address = ipaddress.ip_address(str(self.server_address[0]))
        name = socket.gethostname() if address.is_unspecified else str(address)
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}/"

    def knows(self, name: str) -> bool:
        """Whether a request may call this server so. A name that somebody else can point here is not known."""
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            own = {"localhost"} if self.local else {"localhost", socket.gethostname().lower()}
            return name.lower() in own | {self.host.lower()}
        return address.is_loopback or not self.local  # an address is nobody's name: it cannot be pointed elsewhere

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, unless too many are at work."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that left."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of the page and of the live progress; everything else is refused."""

    server: Server
    timeout = SILENCE
    server_version, sys_version = "bench", ""

    def do_GET(self) -> None:
        """Answer with one of the two things there are."""
        if not self._is_for_us():
            return
        target = urlsplit(self.path)
        if target.path == "/":
            self._page()
        elif target.path == "/live.json":
            self._send(HTTPStatus.OK, self.server.upkeep.live, "application/json", {"Cache-Control": "no-store"})
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET  # noqa: N815  `_send` leaves the body out

    def _is_for_us(self) -> bool:
        """Whether the request names this server, once; else it is refused."""
        named = self.headers.get_all("Host") or []
        match = _HOST.fullmatch(named[0].strip()) if len(named) == 1 else None
        if match is None or not self.path.startswith("/"):
            self.send_error(HTTPStatus.BAD_REQUEST, "one Host and a path are needed")
        elif not self.server.knows(match[1]):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "this server is not known by that name")
        else:
            return True
        return False

    def _page(self) -> None:
        page = self.server.upkeep.page
        tag = f'"{page.name}"'
        facts = {"ETag": tag, "Vary": "Accept-Encoding", "Content-Security-Policy": page.policy}
        facts["Cache-Control"] = "no-cache" if page.name else "no-store"
        if page.name and self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, b"", "", facts)
        elif "gzip" in self.headers.get("Accept-Encoding", ""):
            self._send(HTTPStatus.OK, page.packed, "text/html; charset=utf-8", facts | {"Content-Encoding": "gzip"})
        else:
            self._send(HTTPStatus.OK, page.html, "text/html; charset=utf-8", facts)

    def _send(self, status: HTTPStatus, body: bytes, kind: str, facts: dict[str, str]) -> None:
        fixed = {
            "Content-Security-Policy": _NO_POLICY,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
        }
        if status is not HTTPStatus.NOT_MODIFIED:
            fixed |= {"Content-Type": kind, "Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in (fixed | facts).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse in one plain line, which repeats nothing of the request."""
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:  # any method but GET and HEAD
            status = HTTPStatus.METHOD_NOT_ALLOWED
        facts = {"Allow": "GET, HEAD"} if status is HTTPStatus.METHOD_NOT_ALLOWED else {}
        self.close_connection = True
        said = message if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.MISDIRECTED_REQUEST) else None
        self._send(status, f"{status.value} {said or status.phrase}\n".encode(), "text/plain; charset=utf-8", facts)

    def log_message(self, *arguments: Any) -> None:
        """Nothing: a page asks once a second."""


def open_server(upkeep: Upkeep, host: str, port: int) -> Server:
    """Listen. Raises BadInput where that cannot be, with a port that can be had."""
    try:
        if not host:
            raise OSError("an empty name")
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise BadInput(f"--host {host!r}: no address of this machine: {error}; try 127.0.0.1") from None
    for family, *_, address in places:
        try:
            return Server(upkeep, host, family, address)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
    free = next((found for family, *_, address in places if (found := _free_port(upkeep, host, family, address))), None)
    instead = f"; --port {free} can be had" if free else "; --host 127.0.0.1 is always there"
    raise BadInput(f"{host} port {port}: {why}{instead}")


def _free_port(upkeep: Upkeep, host: str, family: int, address: Any) -> int | None:
    """A port near the one asked for that can be had; None where the host cannot."""
    for port in (*range(max(1024, address[1] + 1), min(65536, address[1] + NEAR)), 0):
        try:
            with Server(upkeep, host, family, (address[0], port, *address[2:])) as server:
                return server.port
        except OSError:
            continue
    return None
