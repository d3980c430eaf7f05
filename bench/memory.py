"""What the C library does with memory that tensors leave: it keeps it while a trial runs and gives it back after it.

A step allocates and frees the same hundreds of megabytes again and again. Left as it is, glibc maps every large block
from the system anew, and each page of it is a fault at its first touch. docs/PERFORMANCE.md says what that costs.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt(3)
MOST = 2**31 - 1  # bytes that the calls can name
MOST_BEFORE = 32 * 2**20  # bytes of a block that glibc kept before version 2.35


@contextmanager
def kept() -> Iterator[None]:
    """Keep freed blocks in this process while the body runs, then give back to the system what is free.

    Without effect where the C library is not glibc. Blocks that torch takes from a GPU are not concerned.
    """
    library = _glibc()
    if library is None:
        yield
        return
    # Once for the process: glibc cannot go back to adapting the thresholds itself.
    if library.mallopt(MMAP_THRESHOLD, MOST) or library.mallopt(MMAP_THRESHOLD, MOST_BEFORE):
        library.mallopt(TRIM_THRESHOLD, MOST)
    try:
        yield
    finally:
        library.malloc_trim(0)


@lru_cache(maxsize=1)
def _glibc() -> Any:
    """The C library of this process, None where it is another one."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
