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

_Table = dict[str, tuple[int, str]]  # the line and the value of each id


def read(release: Release) -> list[Row]:
    """Rows of the official train and test split; there is no official val split."""
    tree = release.tree
    files = _table(tree, IMAGES)
    classes = _class_names(tree)
    labels = _table(tree, LABELS, files)
    splits = _table(tree, SPLITS, files)
    boxes = _boxes(tree, files) if release.boxes else dict.fromkeys(files)
    rows = []
    for image, (line, file) in files.items():
        for table, values in ((LABELS, labels), (SPLITS, splits), (BOXES, boxes)):
            if image not in values:
                raise fault(tree, IMAGES, line, f"image id {image!r} is not in {table}")
        name = classes[known(tree, LABELS, labels[image][0], labels[image][1], classes, "class id")]
        _check_folder(tree, labels[image][0], file, name, classes)
        rows.append(Row(f"images/{file}", name, _split(tree, *splits[image]), boxes[image]))
    return rows


def _table(tree: Tree, table: str, known_ids: _Table | None = None) -> _Table:
    """A table of id and value."""
    found: _Table = {}
    for line, (key, value) in lines(tree, table, fields=2):
        if key in found:
            raise fault(tree, table, line, f"id {key!r} is there twice, first in line {found[key][0]}")
        if known_ids is not None:
            known(tree, table, line, key, known_ids, "image id")
        found[key] = line, value
    return found


def _class_names(tree: Tree) -> dict[str, str]:
    """The name of each class id, as the release spells it: "001.Black_footed_Albatross"."""
    names: dict[str, str] = {}
    for key, (line, name) in _table(tree, CLASSES).items():
        if name in names.values():
            raise fault(tree, CLASSES, line, f"class {name!r} is there twice")
        names[key] = name
    return names


def _check_folder(tree: Tree, line: int, file: str, name: str, classes: dict[str, str]) -> None:
    """An image lies in its class's folder; a folder of another class means that a table is damaged."""
    folder = file.partition("/")[0]
    if folder != name and folder in classes.values():
        raise fault(tree, LABELS, line, f"class {name!r} contradicts the folder of {file!r}")


def _split(tree: Tree, line: int, flag: str) -> Split:
    if flag not in ("0", "1"):
        raise fault(tree, SPLITS, line, f"{flag!r} is neither 1 (train) nor 0 (test)")
    return "train" if flag == "1" else "test"


def _boxes(tree: Tree, files: _Table) -> dict[str, Box | None]:
    boxes: dict[str, Box | None] = {}
    for line, (key, *words) in lines(tree, BOXES, fields=5):
        known(tree, BOXES, line, key, files, "image id")
        left, top, width, height = (number(tree, BOXES, line, word) for word in words)
        if key in boxes:
            raise fault(tree, BOXES, line, f"id {key!r} is there twice")
        if width <= 0 or height <= 0:
            raise fault(tree, BOXES, line, f"a box of {width:g} x {height:g} px holds nothing")
        boxes[key] = (left, top, left + width, top + height)
    return boxes


LAYOUT = Layout(version=1, marks=(LABELS, SPLITS), read=read, boxes=True)
