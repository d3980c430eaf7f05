"""FGVC-Aircraft 2013b: text tables per split and level, boxes by 1-based corners. Listed by torchvision's own class.

The foot of each image is a banner of 20 px with its copyright; it is kept, as by torchvision. A box leaves it out.
"""

from collections.abc import Iterable
from pathlib import Path

from bench.data.index import Box, Row
from bench.data.layout import Layout, Release
from bench.data.source import Split
from bench.data.tables import fault, file_name, known, lines, number, staged
from bench.data.tree import Tree

LEVELS = {"variant": "data/variants.txt", "family": "data/families.txt", "manufacturer": "data/manufacturers.txt"}
SPLITS: tuple[Split, ...] = ("train", "val", "test")
BOXES = "data/images_box.txt"


def read(release: Release) -> list[Row]:
    """Rows of the official train, val and test split."""
    from torchvision.datasets import FGVCAircraft

    tables = _tables(release.tree, release.level)
    boxes = _boxes(release.tree) if release.boxes else {}
    rows = []
    with staged(release.tree, "fgvc-aircraft-2013b", tables) as root:
        for split in SPLITS:
            listed = FGVCAircraft(root, split=split, annotation_level=release.level)
            for file, label in zip(map(Path, listed._image_files), listed._labels, strict=True):
                if release.boxes and file.stem not in boxes:
                    where = _table(release.level, split)
                    raise fault(release.tree, BOXES, 1, f"no line is that of image {file.stem!r} of {where}")
                rows.append(Row(f"data/images/{file.name}", listed.classes[label], split, boxes.get(file.stem)))
    return rows


def _tables(tree: Tree, level: str) -> dict[str, bytes]:
    """The tables of a level, checked: its classes, and each split's images with their classes."""
    classes = _classes(tree, LEVELS[level])
    seen: dict[str, str] = {}
    tables = {_table(level, split): _images(tree, _table(level, split), classes, seen) for split in SPLITS}
    return {name: _bytes(rows) for name, rows in {LEVELS[level]: classes, **tables}.items()}


def _table(level: str, split: Split) -> str:
    return f"data/images_{level}_{split}.txt"


def _bytes(rows: Iterable[str]) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


def _classes(tree: Tree, table: str) -> list[str]:
    found: dict[str, int] = {}
    for line, (name,) in lines(tree, table, fields=1):
        if name in found:
            raise fault(tree, table, line, f"class {name!r} is there twice, first in line {found[name]}")
        found[name] = line
    return list(found)


def _images(tree: Tree, table: str, classes: list[str], seen: dict[str, str]) -> list[str]:
    """Each line's image and class; `seen` is where the images of all splits stand."""
    found = []
    for line, (image, name) in lines(tree, table, fields=2):
        file_name(tree, table, line, image)
        known(tree, table, line, name, classes, "class")
        if image in seen:
            raise fault(tree, table, line, f"image {image!r} is there twice, first in {seen[image]}")
        seen[image] = f"line {line} of {table}"
        found.append(f"{image} {name}")
    return found


def _boxes(tree: Tree) -> dict[str, Box]:
    """Each image's box: both corners belong to it, and its first pixel is (1, 1)."""
    boxes: dict[str, Box] = {}
    for line, (image, *words) in lines(tree, BOXES, fields=5):
        left, top, right, bottom = (number(tree, BOXES, line, word) for word in words)
        if image in boxes:
            raise fault(tree, BOXES, line, f"image {image!r} is there twice")
        if right < left or bottom < top:
            raise fault(tree, BOXES, line, f"a box from {left:g}, {top:g} to {right:g}, {bottom:g} px holds nothing")
        boxes[image] = (left - 1, top - 1, right, bottom)
    return boxes


LAYOUT = Layout(
    version=1,
    marks=(*LEVELS.values(), *(_table(level, split) for level in LEVELS for split in SPLITS)),
    read=read,
    levels=tuple(LEVELS),
    boxes=True,
)
