"""Oxford-IIIT Pet: `annotations/trainval.txt` and `test.txt`, listed by torchvision's own class; boxes around heads.

The boxes are Pascal VOC's XML files: 1-based corners. The release has them for trainval only, so that cropping to them
trains on heads and tests on whole pets; how many images stay whole is told.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from bench.data.index import Box, Row
from bench.data.layout import Layout, Release
from bench.data.source import Split
from bench.data.tables import fault, file_name, lines, staged, whole
from bench.data.tree import Tree, place
from bench.data.voc import read_boxes
from bench.errors import BadInput

SPLITS: dict[str, Split] = {"trainval": "train", "test": "test"}
HEADS = "annotations/xmls"
_AT_ONCE = 16  # small files read at the same time; a remote store answers each in some tens of ms
_log = logging.getLogger(__name__)


class _Entry(NamedTuple):
    """One line of a table: an image's name without .jpg, and the number of its breed."""

    image: str
    breed: int


def read(release: Release) -> list[Row]:
    """Rows of trainval as train and of test; there is no official val split."""
    from torchvision.datasets import OxfordIIITPet

    tree = release.tree
    tables = _tables(tree)
    rows = []
    with staged(tree, "oxford-iiit-pet", tables, ["images"]) as root:
        for word, split in SPLITS.items():
            listed = OxfordIIITPet(root, split=word)
            rows += [
                Row(f"images/{file.name}", listed.classes[label], split)
                for file, label in zip(listed._images, listed._labels, strict=True)
            ]
    return _with_boxes(tree, rows) if release.boxes else rows


def _tables(tree: Tree) -> dict[str, bytes]:
    """Both tables, checked. In each the breeds are numbered from 1 on without a gap, as torchvision needs it."""
    numbers: dict[str, tuple[int, str]] = {}
    names: dict[int, str] = {}
    tables = {}
    for word in SPLITS:
        table = f"annotations/{word}.txt"
        entries = _entries(tree, table, numbers, names)
        rank = {breed: place for place, breed in enumerate(sorted({entry.breed for entry in entries}), start=1)}
        tables[table] = "".join(f"{entry.image} {rank[entry.breed]} 1 1\n" for entry in entries).encode()
    return tables


def _entries(tree: Tree, table: str, numbers: dict[str, tuple[int, str]], names: dict[int, str]) -> list[_Entry]:
    """The lines of a table; `numbers` and `names` of the breeds are those of both tables and must agree."""
    found = []
    for line, (image, number, *_) in lines(tree, table, fields=4):
        name, mark, _ = file_name(tree, table, line, image).rpartition("_")
        if not mark or not name.strip("_"):
            raise fault(tree, table, line, f"image {image!r} is not BREED_NUMBER")
        breed = whole(tree, table, line, number)
        known, where = numbers.setdefault(name.casefold(), (breed, f"line {line} of {table}"))
        if known != breed:
            raise fault(tree, table, line, f"class id {breed} contradicts {known} of the same breed in {where}")
        if names.setdefault(breed, name) != name:
            raise fault(tree, table, line, f"class id {breed} is that of {names[breed]!r}, not of {name!r}")
        found.append(_Entry(image, breed))
    return found


def _with_boxes(tree: Tree, rows: list[Row]) -> list[Row]:
    """The rows with the box of each head that was annotated."""
    if not tree.has(HEADS):
        raise BadInput(f"{place(tree, HEADS)}: boxes were asked for; unpack annotations.tar.gz of the release here")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        boxes = list(pool.map(lambda row: _head(tree, row), rows))
    for split in SPLITS.values():
        missing = sum(box is None and row.split == split for row, box in zip(rows, boxes, strict=True))
        if missing:
            _log.warning("%s: %d %s images have no box around a head and stay whole", tree.address, missing, split)
    return [row._replace(box=box) for row, box in zip(rows, boxes, strict=True)]


def _head(tree: Tree, row: Row) -> Box | None:
    """The smallest box around the heads of one image, its first pixel (0, 0)."""
    stem = row.file.removeprefix("images/").removesuffix(".jpg")
    boxes = read_boxes(tree, f"{HEADS}/{stem}.xml")
    if boxes is None:
        return None
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts) - 1, min(tops) - 1, max(rights), max(bottoms)


LAYOUT = Layout(version=1, marks=tuple(f"annotations/{word}.txt" for word in SPLITS), read=read, boxes=True)
