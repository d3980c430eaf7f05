"""Find cards: the TOML files of datasets and sweeps, in the user's folders, a wheel or a checkout."""

import os
from pathlib import Path
from typing import Literal

from bench.errors import BadInput, UnknownName

Kind = Literal["datasets", "sweeps"]
ENVIRONMENT = "BENCH_CARDS"
_SINGULAR = {"datasets": "dataset", "sweeps": "sweep"}


def card_paths(kind: Kind) -> dict[str, Path]:
    """Every card of a kind by its name, sorted; a user's card hides a shipped one of the same name.

    The folders of BENCH_CARDS come first; each holds `datasets/` and `sweeps/`, or the cards themselves.
    """
    found: dict[str, Path] = {}
    for folder in [*_user_folders(kind), _shipped_folder(kind)]:
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def find_card(kind: Kind, reference: str) -> Path:
    """Return the card that `reference`, a name or a path ending in .toml, means; else raise UnknownName."""
    known = card_paths(kind)
    if reference in known:
        return known[reference]
    path = Path(reference).expanduser()
    if path.suffix != ".toml":
        raise UnknownName(_SINGULAR[kind], reference, known)
    if path.is_file():
        return path
    beside = [str(other) for other in path.parent.glob("*.toml")]
    raise UnknownName(f"{_SINGULAR[kind]} card", reference, [*known, *beside])


def _user_folders(kind: Kind) -> list[Path]:
    folders = []
    for entry in filter(None, os.environ.get(ENVIRONMENT, "").split(os.pathsep)):
        folder = Path(entry).expanduser()
        if not folder.is_dir():
            raise BadInput(f"environment variable {ENVIRONMENT}: no folder {entry!r}")
        inner = folder / kind
        folders.append(inner if inner.is_dir() else folder)
    return folders


def _shipped_folder(kind: Kind) -> Path:
    package = Path(__file__).resolve().parent
    installed = package / "_cards" / kind
    return installed if installed.is_dir() else package.parent / kind
