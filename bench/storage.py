"""Addresses of folders: on this machine, or on any store that pyarrow or fsspec reaches (`s3://`, `gs://`, `memory://`)."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.errors import BadInput


def is_remote(address: str) -> bool:
    """Whether an address has a scheme: `s3://bucket/folder` and not `/data/folder` or `C:/folder`."""
    return "://" in address and not address.startswith("file://")


def join(address: str, *names: str) -> str:
    """The address of something inside a folder."""
    return "/".join([address.rstrip("/") or "/", *names]) if names else address


def normal(address: str) -> str:
    """One spelling per folder: absolute, `~` and `..` resolved; a remote address without its last slash."""
    if is_remote(address):
        return address.rstrip("/")
    return os.path.normpath(Path(address.removeprefix("file://")).expanduser().absolute())


@lru_cache(maxsize=32)
def open_store(address: str) -> tuple[Any, str]:
    """The pyarrow filesystem of a remote address and the path in it; BadInput says what is wrong with the address.

    Credentials, region and endpoint come from the environment, as the store's own tools read them.
    """
    import pyarrow
    import pyarrow.fs

    scheme = urlsplit(address).scheme
    try:
        if scheme in ("s3", "gs", "gcs"):
            filesystem, path = pyarrow.fs.FileSystem.from_uri(address)
            return filesystem, path
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(address)
    except (ValueError, OSError, ImportError, pyarrow.ArrowException) as error:
        raise BadInput(f"address {address!r}: {error}") from None
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path
