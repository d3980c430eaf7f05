"""Stanford Cars: MATLAB annotations of train and test with boxes by 1-based corners. Listed by torchvision's own class.

The original host is gone, so copies differ: the test annotations with their classes lie beside the devkit or in it, and
folders may lie one level deeper, as unpacked from what Kaggle passes on. All of these are read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.data.index import Box, Row
from bench.data.layout import Layout, Release
from bench.data.source import Split
from bench.data.tables import matlab, matlab_bytes, staged
from bench.data.tree import Tree, place
from bench.errors import BadInput

_DEVKITS = ("devkit/", "car_devkit/devkit/")
_TEST = "cars_test_annos_withlabels.mat"
TABLES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"{folder}cars_train_annos.mat" for folder in _DEVKITS),
    "test": (_TEST, *(folder + _TEST for folder in _DEVKITS), "cars_test_annos_withlabels (1).mat"),
}
CLASSES = tuple(f"{folder}cars_meta.mat" for folder in _DEVKITS)
_CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


class _Car(NamedTuple):
    """One annotation: its image, the number of its class from 1 on, and its box if that was asked for."""

    file: str
    label: int
    box: Box | None


def read(release: Release) -> list[Row]:
    """Rows of the official train and test split; there is no official val split."""
    from torchvision.datasets import StanfordCars

    tree = release.tree
    names = _class_names(tree, _found(tree, CLASSES))
    cars = {split: _cars(tree, _table(tree, split), len(names), release.boxes) for split in TABLES}
    tables = {CLASSES[0]: matlab_bytes(class_names=_cells(names))}
    tables |= {TABLES[split][0]: matlab_bytes(annotations=_struct(cars[split])) for split in TABLES}
    rows = []
    with staged(tree, "stanford_cars", tables, ["cars_train", "cars_test"]) as root:
        for split in TABLES:
            listed, folder = StanfordCars(root, split=split), _folder(release, f"cars_{split}/")
            for (file, label), car in zip(listed._samples, cars[split], strict=False):  # a list of one came twice
                rows.append(Row(folder + Path(file).name, listed.classes[label], split, car.box))
    return rows


def _found(tree: Tree, names: Sequence[str]) -> str:
    """The first of these tables that is there, else the usual one, which will be missed."""
    return next((name for name in names if tree.has(name)), names[0])


def _table(tree: Tree, split: Split) -> str:
    table = _found(tree, TABLES[split])
    if split == "test" and not tree.has(table):
        raise BadInput(
            f"{place(tree, table)}: this table of the release is missing; "
            "cars_test_annos.mat of the devkit does not tell the classes of test"
        )
    return table


def _folder(release: Release, folder: str) -> str:
    """Where the images lie: cars_train/, or cars_train/cars_train/."""
    deeper = folder * 2
    return deeper if any(file.startswith(deeper) for file in release.stamps) else folder


def _class_names(tree: Tree, table: str) -> list[str]:
    names = np.atleast_1d(matlab(tree, table, "class_names")).tolist()
    for position, name in enumerate(names, start=1):
        if not isinstance(name, str) or not name.strip():
            raise _fault(tree, table, f"class_names({position})", "no class's name")
        if name in names[: position - 1]:
            raise _fault(tree, table, f"class_names({position})", f"class {name!r} is there twice")
    return list(names)


def _cars(tree: Tree, table: str, classes: int, boxes: bool) -> list[_Car]:
    found = np.atleast_1d(matlab(tree, table, "annotations"))
    for field in ("fname", "class", *(_CORNERS if boxes else ())):
        if found.ndim != 1 or field not in (found.dtype.names or ()):
            raise BadInput(f"{place(tree, table)}: variable 'annotations' is no list of structs with field {field!r}")
    return [_car(tree, table, position, entry, classes, boxes) for position, entry in enumerate(found, start=1)]


def _car(tree: Tree, table: str, position: int, entry: Any, classes: int, boxes: bool) -> _Car:
    where = f"annotations({position})"
    file, label = entry["fname"], _whole(entry["class"])
    if not isinstance(file, str) or not file.isprintable() or file != Path(file).name or "\\" in file or file == "..":
        raise _fault(tree, table, where, f"field 'fname': {str(file)[:80]!r} is no file's name")
    if label is None or not 1 <= label <= classes:
        raise _fault(tree, table, where, f"field 'class': {str(entry['class'])[:80]} is none of 1 to {classes}")
    return _Car(file, label, _box(tree, table, where, entry) if boxes else None)


def _box(tree: Tree, table: str, where: str, entry: Any) -> Box:
    """The box of one annotation: both corners belong to it, and MATLAB's first pixel is (1, 1)."""
    corners = []
    for field in _CORNERS:
        value = _whole(entry[field])
        if value is None:
            raise _fault(tree, table, where, f"field {field!r}: {str(entry[field])[:80]!r} is no number of pixels")
        corners.append(value)
    left, top, right, bottom = corners
    if right < left or bottom < top:
        raise _fault(tree, table, where, f"a box from {left}, {top} to {right}, {bottom} px holds nothing")
    return left - 1, top - 1, right, bottom


def _whole(value: Any) -> int | None:
    """A number of a MATLAB file as a whole number; None for anything else."""
    if isinstance(value, (int, np.integer)):
        return int(value)
    return int(value) if isinstance(value, (float, np.floating)) and value.is_integer() else None


def _cells(names: list[str]) -> Any:
    """A list as scipy writes a MATLAB cell array; one of a single entry is given twice, see `_struct`."""
    return np.array(names * 2 if len(names) == 1 else names, dtype=object)


def _struct(cars: Sequence[_Car]) -> Any:
    """Annotations as scipy writes a MATLAB struct array. torchvision cannot read a list of one, so that is doubled."""
    cars = [*cars] * 2 if len(cars) == 1 else cars
    return np.array([(car.label, car.file) for car in cars], dtype=[("class", object), ("fname", object)])


def _fault(tree: Tree, table: str, where: str, message: str) -> BadInput:
    return BadInput(f"{place(tree, table)}: {where}: {message}")


LAYOUT = Layout(
    version=1, marks=(*(table for tables in TABLES.values() for table in tables), *CLASSES), read=read, boxes=True
)
