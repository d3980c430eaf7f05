"""Patience with storage: what fails as networks and file servers do for a while is tried again, for about a minute."""

import errno
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

WAITS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before each further try
# A full disk, a missing folder or a lack of rights do not pass by themselves, and are said at once.
_NAMES = (
    "EAGAIN EBUSY ECOMM ECONNABORTED ECONNREFUSED ECONNRESET EHOSTDOWN EHOSTUNREACH EINTR EIO ENETDOWN ENETRESET "
    "ENETUNREACH ENOLINK ENOTCONN EPROTO EREMOTEIO ESTALE ETIMEDOUT"
)
PASSING = frozenset(getattr(errno, name) for name in _NAMES.split() if hasattr(errno, name))


def patiently(operation: Callable[_Given, _Result], *arguments: _Given.args, **settings: _Given.kwargs) -> _Result:
    """Call `operation`, again after each of `WAITS` while it raises an OSError that may pass; the last one is raised.

    The operation must be one that may be begun anew, such as a file that is written whole and then renamed.
    """
    for seconds in WAITS:
        try:
            return operation(*arguments, **settings)
        except OSError as error:
            if error.errno not in PASSING:
                raise
        time.sleep(seconds)
    return operation(*arguments, **settings)
