"""Caltech-UCSD Birds 200-2011: text tables with 1-based ids, bounding boxes as x, y, width, height."""

from bench.data.index import Box, Row
from bench.data.layout import Layout, Release
from bench.data.source import Split
from bench.data.tables import fault, known, lines, number
from bench.data.tree import Tree

IMAGES, LABELS, SPLITS, CLASSES, BOXES = (
    "images.txt",
    "image_class_labels.txt",
    "train_test_split.txt",
    "classes.txt",
    "bounding_boxes.txt",
)


def read(release: Release) -> list[Row]:
    """Rows of the official train and test split; there is no official val split."""
    tree = release.tree
    files = _table(tree, IMAGES)
    classes = _table(tree, CLASSES)
    labels = _table(tree, LABELS, files)
    splits = _table(tree, SPLITS, files)
    boxes = _boxes(tree, files) if tree.has(BOXES) else {}
    rows = []
    for image, (line, file) in files.items():
        for table, values in ((LABELS, labels), (SPLITS, splits)):
            if image not in values:
                raise fault(tree, IMAGES, line, f"image id {image!r} is not in {table}")
        place, label = labels[image]
        name = classes[known(tree, LABELS, place, label, classes, "class id")][1]
        rows.append(Row(f"images/{file}", name, _split(tree, *splits[image]), boxes.get(image)))
    return rows


def _table(tree: Tree, table: str, known_ids: dict[str, tuple[int, str]] | None = None) -> dict[str, tuple[int, str]]:
    """A table of id and value: the line and value of each id."""
    found: dict[str, tuple[int, str]] = {}
    for line, (key, value) in lines(tree, table, fields=2):
        if key in found:
            raise fault(tree, table, line, f"id {key!r} is there twice, first in line {found[key][0]}")
        if known_ids is not None:
            known(tree, table, line, key, known_ids, "image id")
        found[key] = line, value
    return found


def _split(tree: Tree, line: int, flag: str) -> Split:
    if flag not in ("0", "1"):
        raise fault(tree, SPLITS, line, f"{flag!r} is neither 1 (train) nor 0 (test)")
    return "train" if flag == "1" else "test"


def _boxes(tree: Tree, files: dict[str, tuple[int, str]]) -> dict[str, Box]:
    boxes = {}
    for line, (key, *words) in lines(tree, BOXES, fields=5):
        known(tree, BOXES, line, key, files, "image id")
        left, top, width, height = (number(tree, BOXES, line, word) for word in words)
        boxes[key] = (left, top, left + width, top + height)
    return boxes


LAYOUT = Layout(version=1, marks=(IMAGES,), read=read, boxes=True)
