"""Read a dataset's folder, whatever its layout: its index, and the fingerprint of its content."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from bench.data import folder
from bench.data.digests import file_digests
from bench.data.index import Index, build_index, plain, with_val
from bench.data.releases import find_layout
from bench.data.tree import GONE, Stamps, Tree, folder_name
from bench.records import canonical_json


@dataclass(frozen=True)
class Content:
    """What a folder holds: its index, the sha256 of each file in the index's order, and the fingerprint of all that.

    The fingerprint does not depend on where the folder lies.
    """

    index: Index
    digests: tuple[str, ...]
    fingerprint: str


def read_content(tree: Tree, cache: Path, reader: str = "folder", *, level: str = "", boxes: bool = False) -> Content:
    """Index a folder and fingerprint it; BadInput says what is wrong with its layout or its tables."""
    index, stamps, version = read_index(tree, reader, level=level, boxes=boxes)
    known = file_digests(tree, {file: _stamp(stamps, file) for file in index.files}, cache)
    digests = tuple(known[file] for file in index.files)
    return Content(index, digests, _fingerprint(version, index, digests))


def read_index(
    tree: Tree, reader: str = "folder", *, level: str = "", boxes: bool = False
) -> tuple[Index, Stamps, str]:
    """The index of a folder, the stamps of the images in it, and its reader with its version; see `read_content`."""
    stamps = tree.scan()
    if reader == "folder":
        version, rows = folder.VERSION, folder.rows_of(tree, stamps)
    else:
        layout = find_layout(reader)
        version, rows = layout.version, layout.rows(tree, stamps, level, boxes)
    index = build_index(folder_name(tree), with_val(rows, by_name=reader != "folder"), boxes=boxes)
    return index, stamps, f"{reader}/{version}"


def _stamp(stamps: Stamps, file: str) -> tuple[int, int]:
    return stamps.get(file, GONE)


def _fingerprint(reader: str, index: Index, digests: tuple[str, ...]) -> str:
    """Sha256 over the reader's version and every (file, class, split, digest, box), a line each, in file order."""
    running = hashlib.sha256(f"{reader}\n".encode())
    for row, (file, label, split) in enumerate(zip(index.files, index.labels, index.splits, strict=True)):
        name = index.classes[label] if label >= 0 else ""
        line = [plain(file), name, split, digests[row], *(index.boxes[row : row + 1])]
        running.update(f"{canonical_json(line)}\n".encode())
    return running.hexdigest()
