"""Every error that a user can cause or meet.

BenchError
├── BadInput         a wrong file, field, name or value; the message says which and what would be right
│   └── UnknownName  a name that is not registered, with the nearest one that is
├── BadData          a dataset that cannot be used: no readable image, one class, an empty split
├── TrialFailed      a trial that could not be finished: a loss that is not finite, a lost checkpoint
└── StoreAway        a store of results that does not answer, after waiting for it; an OSError too
"""

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """Something that a user can mend; shown without a traceback."""


class BadInput(BenchError):
    """A wrong file, field, name or value."""


class UnknownName(BadInput):
    """A name that is not registered.

    `kind` is what was looked for ("method", "sweep"), `name` what was asked, `known` the names there are.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.known = sorted(known)
        super().__init__(f"no {kind} is named {name!r}{suggestion(name, self.known)}")


class BadData(BenchError):
    """A dataset that cannot be used as it is."""


class TrialFailed(BenchError):
    """A trial that could not be finished."""


class StoreAway(BenchError, OSError):
    """A store of results that does not answer, after waiting for it; an OSError too, as a disk's would be."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return '; did you mean X?' for the nearest known name, else the list of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are: {', '.join(names)}" if names else "; there are none"


def short(text: str, most: int = 500) -> str:
    """Return `text` without its middle where it is longer than `most` characters: a damaged file can hold any line."""
    return text if len(text) <= most else f"{text[: most * 3 // 4]} ... {text[-most // 4 :]}"
