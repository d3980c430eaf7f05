"""Whole objects below an address on a store, by name: put, read, listed, copied and removed, with patience.

Waiting for a store that is away happens here, for a minute or two, and once: until it answers again nothing waits for
it a second time.
"""

import errno
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from bench.errors import BadInput, BenchError, StoreAway
from bench.patience import patiently
from bench.storage import open_store

_Result = TypeVar("_Result")

_FLAT = ("s3", "gs", "gcs")  # stores where a name needs no folder before it
_PIECE = 16 << 20  # bytes
_REFUSED = re.compile("ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY|INVALID_CLIENT|SIGNATURE|HTTP status 40[013]")
_MISSING = re.compile("NO_SUCH_KEY|HTTP status 404")


class Objects:
    """The objects below an address; a name is relative to it. Methods raise BadInput and StoreAway."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._filesystem, self._prefix = open_store(address, tries=1)
        self._is_flat = address.partition("://")[0] in _FLAT
        self._is_away = False  # when it was last waited for

    def must_have_bucket(self) -> None:
        """Raise BadInput where the address names a bucket that is not there: its listing is as empty as a new one's."""
        from pyarrow.fs import FileType

        bucket = self._prefix.partition("/")[0]
        try:
            missing = (
                self._is_flat and self._ask(lambda: self._filesystem.get_file_info(bucket)).type == FileType.NotFound
            )
        except BadInput:  # who may not ask may still be allowed to work below the address
            return
        if missing:
            raise BadInput(f"{self.address}: there is no bucket {bucket!r}")

    def put(self, name: str, data: Any) -> None:
        """Put bytes under a name, whole or not at all."""
        self._ask(lambda: self._put(self._key(name), data))

    def put_file(self, name: str, source: Path) -> None:
        """Put a file's content under a name, whole or not at all."""
        import pyarrow

        with pyarrow.memory_map(str(source)) as file:
            self.put(name, file.read_buffer())

    def _put(self, key: str, data: Any) -> None:
        if not self._is_flat:
            self._filesystem.create_dir(key.rpartition("/")[0], recursive=True)
        with self._filesystem.open_output_stream(key) as target:
            target.write(data)  # in one: what is closed after half of it would be half an object

    def read(self, name: str) -> bytes:
        """The bytes under a name. Raises FileNotFoundError."""
        return self._ask(lambda: self._read(self._key(name)))

    def _read(self, key: str) -> bytes:
        with self._filesystem.open_input_file(key) as source:
            return bytes(source.read())

    def download(self, name: str, to: Path) -> None:
        """Write the bytes under a name to a file. Raises FileNotFoundError."""
        self._ask(lambda: self._download(self._key(name), to))

    def _download(self, key: str, to: Path) -> None:
        with self._filesystem.open_input_stream(key) as source, to.open("wb") as target:
            shutil.copyfileobj(source, target, _PIECE)

    def info(self, name: str) -> Any:
        """Pyarrow's FileInfo of a name, None where no object has it."""
        entry = self._ask(lambda: self._filesystem.get_file_info(self._key(name)))
        return entry if entry.is_file else None

    def listing(self, folder: str) -> dict[str, Any]:
        """Pyarrow's FileInfo of each object directly in a folder, by its name there; hidden ones are left out."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._key(folder), allow_not_found=True)
        entries = self._ask(lambda: self._filesystem.get_file_info(selector))
        return {entry.base_name: entry for entry in entries if entry.is_file and not entry.base_name.startswith(".")}

    def copy(self, name: str, to: str) -> None:
        """Copy an object inside of the store, if it is there."""
        with suppress(FileNotFoundError):
            self._ask(lambda: self._filesystem.copy_file(self._key(name), self._key(to)))

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        with suppress(FileNotFoundError):
            self._ask(lambda: self._filesystem.delete_file(self._key(name)))

    def clear(self, folder: str) -> None:
        """Remove everything in a folder."""
        self._ask(lambda: self._filesystem.delete_dir_contents(self._key(folder), missing_dir_ok=True))

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if name else self._prefix

    def _ask(self, question: Callable[[], _Result]) -> _Result:
        try:
            answer = self._tried(question) if self._is_away else patiently(self._tried, question)
        except FileNotFoundError:
            raise
        except OSError as error:
            self._is_away = True
            said = " ".join((error.strerror or str(error)).split())
            if _REFUSED.search(said):
                raise BadInput(f"{self.address}: the store does not give access: {said}") from None
            raise StoreAway(
                f"{self.address}: the store does not answer: {said}; once it does, the same command goes on from here"
            ) from None
        self._is_away = False
        return answer

    def _tried(self, question: Callable[[], _Result]) -> _Result:
        """Ask once; raises OSError, of a kind that `patiently` knows where it may pass."""
        try:
            return question()
        except (FileNotFoundError, BenchError):
            raise
        except Exception as error:  # pyarrow's have no number, and those of fsspec's many stores are of any kind
            if _MISSING.search(str(error)):
                raise FileNotFoundError(str(error)) from None
            if isinstance(error, OSError) and (error.errno or _REFUSED.search(str(error))):
                raise
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
