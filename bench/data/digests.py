"""Sha256 digests of files, remembered in the cache folder."""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import cast

from bench.data.index import plain
from bench.data.tree import Stamps, Tree

UNREADABLE = "unreadable"  # stands for the digest of a file that cannot be read
_SETTLED_NS = 200_000_000  # a file changed more recently may change again within one tick of its clock
_log = logging.getLogger(__name__)


def file_digests(tree: Tree, stamps: Stamps, cache: Path) -> dict[str, str]:
    """Sha256 of every file of `stamps`, read only where its stamp changed."""
    memory = cache / "digests" / f"{hashlib.sha256(os.fsencode(tree.address)).hexdigest()}.json"
    known = _recall(memory)
    fresh = [file for file, stamp in stamps.items() if _entry(known, file)[:2] != stamp]
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        hashed = dict(zip(fresh, pool.map(lambda file: _sha256(tree, file), fresh), strict=True))
    found = {file: hashed.get(file) or _entry(known, file)[2] for file in stamps}
    if hashed or len(known) != len(stamps):
        _remember(memory, stamps, found)
    return found


def _entry(known: Mapping[str, list[object]], file: str) -> tuple[int, int, str]:
    match known.get(plain(file)):
        case [int(size), int(changed), str(digest)]:
            return size, changed, digest
    return -2, -2, ""  # the stamp of no file


def _sha256(tree: Tree, file: str) -> str:
    try:
        with tree.open(file) as stream:
            return hashlib.file_digest(cast(BufferedReader, stream), "sha256").hexdigest()
    except OSError:
        return UNREADABLE


def _recall(memory: Path) -> dict[str, list[object]]:
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(memory: Path, stamps: Stamps, found: Mapping[str, str]) -> None:
    """Keep the digests; a cache that cannot be written only costs time, so it is no error."""
    limit = time.time_ns() - _SETTLED_NS
    entries = {
        plain(file): [*stamp, found[file]]
        for file, stamp in stamps.items()
        if stamp[1] < limit and found[file] != UNREADABLE
    }
    temporary = memory.with_name(f"{memory.name}.{os.getpid()}.{time.time_ns()}.tmp")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(entries), encoding="utf-8")
        temporary.replace(memory)
    except OSError as error:
        _log.warning("digests are not remembered: %s", error)
        with contextlib.suppress(OSError):
            temporary.unlink()
