"""Download one file of a release: resumed where it broke off, tried at each mirror, and known by its checksum.

What has come lies in FILE.part, beside it FILE.part.json with the address and the validator (ETag or Last-Modified)
that If-Range needs. The checksum is what a file is known by, so a part may be continued from another mirror; should
the sum then be wrong, the file is taken anew from its start. FILE appears only when its checksum is right.
"""

import errno
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from bench import __version__
from bench.data.card import Archive
from bench.errors import BadData, BadInput, BenchError
from bench.fetching.part import Part, Watch

if TYPE_CHECKING:
    from requests import Response, Session

_CHUNK = 1 << 16
_SLOWEST = 1024  # bytes that must come within the patience for reading; less is a stall
_LONGEST_WAIT = 60.0
_AGAIN = (408, 425, 429)  # beside 5xx: the same address may answer later
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long and how often an address is tried; times in seconds."""

    attempts: int = 5  # in a row that bring nothing new
    first_wait: float = 1.0  # doubled each time
    connect: float = 15.0
    read: float = 60.0  # without a byte, or nearly so


class _Cut(Exception):
    """The address may do better when asked again, after `wait` seconds if it says so."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Restart(Exception):
    """What had come is of no use any more: ask for the whole file."""


class _Refused(Exception):
    """The address has nothing for us."""


def download(archive: Archive, folder: Path, watch: Watch, patience: Patience | None = None) -> Path:
    """Download `archive` into `folder` and return its path; a part that lies there is continued.

    Raises BenchError that names every address with its reason (BadData where they gave something else than the card
    says), and BadInput when the disk is full. Nothing but a part is left behind, and no part that is known to be wrong.
    """
    import requests

    reasons: list[str] = []
    with requests.Session() as session:
        transfer = _Transfer(archive, folder, watch, patience or Patience(), session)
        for address in archive.addresses:
            try:
                transfer.take(address)
                return transfer.part.finish()
            except _Refused as refusal:
                reasons.append(f"{address}: {refusal}")
                if len(reasons) < len(archive.addresses):
                    watch.tell(f"{reasons[-1]}; trying the next address")
    kind = BadData if transfer.wrong else BenchError
    raise kind("\n  ".join([f"{archive.file} could not be downloaded:", *reasons]))


class _Transfer:
    """One file's way here, from any of its addresses."""

    def __init__(self, archive: Archive, folder: Path, watch: Watch, patience: Patience, session: "Session") -> None:
        self.archive, self.watch, self.patience, self.session = archive, watch, patience, session
        self.part = Part(archive, folder, watch)
        self.session.headers.update({"Accept-Encoding": "identity", "User-Agent": f"bench/{__version__}"})
        self.wrong = False  # whether an address gave something else than the card says

    def take(self, address: str) -> None:
        """Have the whole file from one address; raises _Refused."""
        if not address.lower().startswith(("http://", "https://")):
            raise _Refused("only http and https addresses are fetched")
        part = self.part
        part.began_at = part.size
        while True:
            if part.size != self.archive.size:
                self._persist(address)
            if (problem := part.digest.problem()) is None:
                return
            mixed = part.began_at > 0
            part.reset()
            if not mixed:
                self.wrong = True
                raise _Refused(problem)
            self.watch.tell(f"{self.archive.file}: {problem}; taken anew from its start")

    def _persist(self, address: str) -> None:
        """Ask until the body is whole; the count of attempts begins anew with every new MB."""
        failures, best = 0, self.part.size
        while True:
            try:
                return self._ask(address)
            except _Restart as reason:
                self.part.reset()
                self.watch.tell(f"{self.archive.file}: {reason}; taken anew from its start")
            except _Cut as cut:
                failures = 1 if self.part.size >= best + 1_000_000 else failures + 1
                best = max(best, self.part.size)
                if failures >= self.patience.attempts:
                    raise _Refused(f"{cut} (tried {failures} times)") from None
                wait = min(max(cut.wait, self.patience.first_wait * 2 ** (failures - 1)), _LONGEST_WAIT)
                self.watch.tell(f"{self.archive.file}: {cut}; once more in {wait:.0f} s")
                time.sleep(wait)

    def _ask(self, address: str) -> None:
        with self._request(address) as response:
            if self._is_whole(response):
                return
            self._check_status(response)
            total = _total(response)
            self._check_kind(response, total)
            if response.status_code == 200:
                self.part.reset()
            elif not self._continues(address, response):
                raise _Restart("the file there has changed")
            self.part.remember(address, _validator(response))
            self._check_room(total)
            self._receive(response, total)

    def _request(self, address: str) -> "Response":
        import requests

        headers = {}
        if self.part.size:
            headers["Range"] = f"bytes={self.part.size}-"
            origin, validator = self.part.origin()
            if origin == address and validator:
                headers["If-Range"] = validator
        times = (self.patience.connect, self.patience.read)
        try:
            return self.session.get(address, headers=headers, stream=True, timeout=times)
        except requests.exceptions.SSLError as error:
            raise _Refused(_reason(error)) from None
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _Cut(_reason(error)) from None
        except (requests.RequestException, ValueError) as error:  # a malformed address is a ValueError of some kind
            raise _Refused(str(error)) from None

    def _is_whole(self, response: "Response") -> bool:
        """Whether the host says that nothing is missing: a download may be killed between its last byte and its end."""
        end = response.headers.get("Content-Range", "")
        return response.status_code == 416 and self.part.size > 0 and end == f"bytes */{self.part.size}"

    def _check_status(self, response: "Response") -> None:
        status = response.status_code
        if status == 416 and self.part.size:
            raise _Restart("what is here is no part of the file there")
        if status in _AGAIN or status >= 500:
            wait = response.headers.get("Retry-After", "")
            raise _Cut(f"the host answers {status} {response.reason}", float(wait) if wait.isdecimal() else 0.0)
        if status != 200 and not (status == 206 and self.part.size):
            raise _Refused(f"the host answers {status} {response.reason}")

    def _check_kind(self, response: "Response", total: int | None) -> None:
        """Refuse a page that stands for the file, before anything that is here is given up for it."""
        if total is not None and total == self.archive.size:
            return
        page = response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml"))
        if page or (total is not None and self.archive.size is not None):
            self.wrong = True
            what = "a web page" if page else "a file"
            size = "" if total is None else f" of {total:,} bytes"
            meant = "" if self.archive.size is None else f" of {self.archive.size:,} bytes"
            raise _Refused(f"gives {what}{size} instead of {self.archive.file}{meant}")

    def _continues(self, address: str, response: "Response") -> bool:
        """Whether a 206 goes on where the part ends, in the same file."""
        match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        origin, validator = self.part.origin()
        same = origin != address or not validator or validator == _validator(response)
        return match is not None and int(match[1]) == self.part.size and same

    def _check_room(self, total: int | None) -> None:
        free = shutil.disk_usage(self.part.path.parent).free
        if total is not None and total - self.part.size > free:
            raise BadInput(
                f"{self.part.path.parent}: {self.archive.file} needs {decimal(total - self.part.size)} more, and "
                f"{decimal(free)} are free"
            )

    def _receive(self, response: "Response", total: int | None) -> None:
        part, task = self.part, f"downloading {self.archive.file}"
        most = total if total is not None else self.archive.size
        mark, since = part.size, time.monotonic()
        self.watch.at(task, part.size, most)
        try:
            with part.path.open("ab") as sink:
                while chunk := _read(response, self.patience, part.size):
                    part.append(sink, chunk)
                    self.watch.at(task, part.size, most)
                    if most is not None and part.size > most:
                        break
                    now = time.monotonic()
                    if now - since > self.patience.read:
                        if part.size - mark < _SLOWEST:
                            raise _Cut(f"hardly a byte came for {self.patience.read:.0f} s")
                        mark, since = part.size, now
        except OSError as error:
            if error.errno in _FULL:
                raise BadInput(f"{part.path}: the disk is full; with room, the same command goes on") from None
            raise
        self._check_end(most)

    def _check_end(self, most: int | None) -> None:
        if most is not None and self.part.size < most:
            raise _Cut(f"the connection ended after {self.part.size:,} of {most:,} bytes")
        if most is not None and self.part.size > most:
            self.part.reset()
            self.wrong = True
            raise _Refused(f"gives more than {most:,} bytes")


def _read(response: "Response", patience: Patience, size: int) -> bytes:
    """What has come of a body beyond its first `size` bytes, as it was sent; b"" at its end."""
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    raw = response.raw
    try:
        chunk: bytes = getattr(raw, "read1", raw.read)(_CHUNK, decode_content=False)
        return chunk
    except ReadTimeoutError:
        raise _Cut(f"nothing came for {patience.read:.0f} s after {size:,} bytes") from None
    except HTTPError:
        raise _Cut(f"the connection broke after {size:,} bytes") from None


def _total(response: "Response") -> int | None:
    """Bytes of the whole file, as far as the host says."""
    headers = response.headers
    if response.status_code == 206:
        match = re.fullmatch(r"bytes \d+-\d+/(\d+)", headers.get("Content-Range", ""))
        return int(match[1]) if match else None
    length = headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and "Transfer-Encoding" not in headers else None


def _validator(response: "Response") -> str:
    """What If-Range may name: a strong ETag, else the time of the last change."""
    tag: str = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _reason(error: Exception) -> str:
    """The innermost cause of a failed connection, in words."""
    import requests

    if isinstance(error, requests.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, requests.Timeout):
        return "connected, but no answer in time"
    inner: Any = error
    for _ in range(5):
        deeper = getattr(inner, "reason", None) or (inner.args[0] if getattr(inner, "args", ()) else None)
        if not isinstance(deeper, BaseException):
            break
        inner = deeper
    text = re.sub(r"^<[^>]*>: |^\w+\([^)]*\): ", "", str(inner))
    return f"no connection: {text}"
