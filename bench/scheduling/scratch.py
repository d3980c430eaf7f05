"""Where Tune keeps what it needs while it runs: a folder on this machine's own disk, of no use afterwards.

Only the driver's process reads and writes it. A driver that is killed leaves it, and the next one on this machine
removes it: whether a driver lives is told by a lock beside its folder, which the system releases when it ends.
"""

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the length of the block; those of drivers that were killed on this machine are removed first."""
    place = Path(tempfile.gettempdir())
    # The name of the machine: a temporary folder that machines share may lie where locks reach one machine only.
    prefix = f"bench-tune-{os.getuid()}-{socket.gethostname()}-"
    for left in place.glob(f"{prefix}*.lock"):
        _remove_dead(left)
    file, name = tempfile.mkstemp(prefix=prefix, suffix=".lock", dir=place)
    lock = Path(name)
    folder = lock.with_suffix("")
    try:
        with suppress(OSError):  # no locks here: then nobody removes what others left
            fcntl.flock(file, fcntl.LOCK_EX)
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(file)


def _remove_dead(lock: Path) -> None:
    """Remove the folder of a lock that nobody holds; leave it where that cannot be known."""
    folder = lock.with_suffix("")
    if not folder.is_dir():  # its driver is about to lock it: the folder comes after the lock
        return
    with suppress(OSError):
        file = os.open(lock, os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)
        finally:
            os.close(file)
