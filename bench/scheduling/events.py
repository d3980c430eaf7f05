"""What happens in a sweep, told to whoever shows it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

Kind = Literal["start", "epoch", "waits", "finished", "pruned", "failed", "reused", "note"]
Listener = Callable[[Kind, str, Mapping[str, Any]], None]

_listener: Listener | None = None


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the events of this process to `listener(kind, key, facts)`."""
    global _listener  # Tune pickles what it is given; a listener found by name is not part of that
    _listener = listener
    try:
        yield
    finally:
        _listener = None


def emit(kind: Kind, key: str, facts: Mapping[str, Any]) -> None:
    """Tell the listener of one event of the trial `key`."""
    if _listener is not None:
        _listener(kind, key, facts)
