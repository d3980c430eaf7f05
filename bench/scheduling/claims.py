"""Claims: which trials this process runs, told to other drivers of the same results folder.

A claim is a lock on a file in the trial's folder. The system releases it when the process ends, however it ends: no
clock is asked and nothing goes stale. On storage without locks every claim is granted; then two drivers may run one
trial, whose rows are in the ledger once all the same, since the last ones written count. Where results lie on a store,
locks reach the drivers of one machine only: there a sweep has one driver (see `lease`).
"""

import fcntl
import os
from pathlib import Path

NAME = ".claim.lock"
_held: dict[Path, int] = {}  # file descriptors of this process's claims, by folder


def claim(folder: Path) -> bool:
    """Claim a trial's folder, which is made; False while another process has it. Again by this process: granted."""
    if folder in _held:
        return True
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    except OSError:  # no locks here
        os.close(file)
        return True
    _held[folder] = file
    return True


def release(folder: Path) -> None:
    """Give a claim back, if there is one. The file stays: to remove it would split those who wait for it."""
    file = _held.pop(folder, None)
    if file is not None:
        os.close(file)
