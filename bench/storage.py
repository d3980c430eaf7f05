"""Addresses of folders: on this machine, or on any store that pyarrow or fsspec reaches (`s3://`, `gs://`, `memory://`).

The path of a remote address is literal: a blank or a percent sign is part of a name. Options may follow a `?`, as in
`s3://bucket/data?endpoint_override=localhost:9000&scheme=http`. No secret may: addresses are stored and shown.
"""

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from bench.errors import BadInput, suggestion

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "s3": ("region", "scheme", "endpoint_override", "anonymous"),
    "gs": ("scheme", "endpoint_override", "retry_limit_seconds"),
    "gcs": ("scheme", "endpoint_override", "retry_limit_seconds"),
}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
# A store that refuses or is away for some 6 s is waited for; one that accepts and stays silent is given up after 50 s.
_TRIES, _CONNECT_S, _SILENCE_S, _GS_RETRY_S = 8, 3, 5, 30
_HINT = "credentials are read from the environment or the store's own configuration files (AWS_ACCESS_KEY_ID and so on)"


def is_remote(address: str) -> bool:
    """Whether an address has a scheme: `s3://bucket/folder` and not `/data/folder` or `C:/folder`."""
    return "://" in address and not address.startswith("file://")


def join(address: str, *names: str) -> str:
    """The address of something inside a folder; a remote address keeps its options."""
    if not names:
        return address
    base, mark, options = address.partition("?") if is_remote(address) else (address, "", "")
    return "/".join([base.rstrip("/"), *names]) + mark + options


def last_name(address: str) -> str:
    """The last part of an address, without its options; "" of a root."""
    base = address.partition("?")[0] if is_remote(address) else address
    return base.rstrip("/").rpartition("/")[2]


def normal(address: str) -> str:
    """One spelling per folder: absolute, `~` and `..` resolved; a remote address without its last slash.

    BadInput for a remote address with credentials or unknown options in it; the message does not repeat them.
    """
    if is_remote(address):
        _parts(address)
        base, mark, options = address.partition("?")
        return base.rstrip("/") + mark + options
    return os.path.normpath(Path(address.removeprefix("file://")).expanduser().absolute())


def open_store(address: str, *, tries: int | None = None) -> tuple[Any, str]:
    """The pyarrow filesystem of a remote address and the path in it; BadInput says what is wrong with the address.

    Credentials come from the environment, as the store's own tools read them; region and endpoint too, where the
    address does not name them. `tries`: how often S3 is asked before its answer counts; 1 for who has patience itself.
    """
    scheme, host, path, options = _parts(address)
    import pyarrow

    shown = f"{scheme}://{host}/{path}".rstrip("/")
    try:
        if scheme == "s3":
            return _s3(host, tries or _TRIES, **options), f"{host}/{path}".rstrip("/")
        if scheme in ("gs", "gcs"):
            return _gs(host, **options), f"{host.removeprefix('anonymous@')}/{path}".rstrip("/")
        return _fsspec(shown)
    except (ValueError, OSError, ImportError, pyarrow.ArrowException) as error:
        raise BadInput(f"address {shown!r}: {error}") from None


def _parts(address: str) -> tuple[str, str, str, dict[str, str]]:
    """(scheme, host or bucket, path without slashes around it, options) of a remote address that may be shown."""
    scheme, _, rest = address.partition("://")
    base, _, query = rest.partition("?")
    host, _, path = base.partition("/")
    user, _, server = host.rpartition("@")
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        raise BadInput(f"an address begins as in 's3://bucket/folder', and not with {scheme.partition(':')[0]!r}")
    keyed = scheme == "s3" or (scheme in _OPTIONS and user != "anonymous")
    if ":" in user or (user and keyed) or (":" in server and not re.fullmatch(r"[^:]*:\d+|\[.*\](:\d+)?", server)):
        raise BadInput(f"credentials in an address ({scheme}://...): {_HINT}, never from an address")
    if scheme in _OPTIONS and not server:
        raise BadInput(f"address {address.partition('?')[0]!r} names no bucket")
    return scheme, host, path.strip("/"), _options(scheme, query)


def _options(scheme: str, query: str) -> dict[str, str]:
    """The options of an address; what follows an unknown one is not shown, as it may be a secret."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key in options:
        known = _OPTIONS.get(scheme, ())
        if re.search("key|secret|token|password|signature|credential", key, re.IGNORECASE):
            raise BadInput(f"credentials in an address ({scheme}://...?...): {_HINT}, never from an address")
        if key not in known:
            raise BadInput(f"address {scheme}://...: no option is named {key!r}{suggestion(key, known)}")
    if options.get("anonymous", "true") not in ("true", "false"):
        raise BadInput(f"address {scheme}://...: option anonymous is true or false (given: {options['anonymous']!r})")
    return options


def _s3(
    bucket: str, tries: int, region: str = "", scheme: str = "", endpoint_override: str = "", anonymous: str = ""
) -> Any:
    """The filesystem of an S3 bucket; a server other than Amazon's is named by the address or the environment."""
    if not endpoint_override:
        named = next(filter(None, map(os.environ.get, _ENDPOINTS)), "")
        given, _, endpoint_override = named.rpartition("://")
        scheme = scheme or given
    if not region and not endpoint_override:
        region = _region_of(bucket)
    return _s3_at(region, scheme, endpoint_override.rstrip("/"), anonymous == "true", tries)


@lru_cache(maxsize=32)
def _region_of(bucket: str) -> str:
    from pyarrow import fs

    return str(fs.resolve_s3_region(bucket))


@lru_cache(maxsize=32)
def _s3_at(region: str, scheme: str, endpoint: str, anonymous: bool, tries: int) -> Any:
    from pyarrow import fs

    return fs.S3FileSystem(
        region=region or None,
        scheme=scheme or None,
        endpoint_override=endpoint or None,
        anonymous=anonymous,
        connect_timeout=_CONNECT_S,
        request_timeout=_SILENCE_S,
        retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=tries),
        allow_delayed_open=True,  # a small object is one request, not three
    )


@lru_cache(maxsize=32)
def _gs(bucket: str, **options: str) -> Any:
    from pyarrow import fs

    chosen = {"retry_limit_seconds": str(_GS_RETRY_S)} | options
    query = "&".join(f"{key}={quote(value)}" for key, value in chosen.items())
    return fs.FileSystem.from_uri(f"gs://{quote(bucket, safe='@')}?{query}")[0]


def _fsspec(address: str) -> tuple[Any, str]:
    import fsspec
    from pyarrow import fs

    filesystem, path = fsspec.core.url_to_fs(address)
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path
