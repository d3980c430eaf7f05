"""Oxford 102 Flowers: MATLAB tables of 1-based image and class numbers. Listed by torchvision's own class.

torchvision knows the classes' names, which the release lacks.
"""

from typing import Any

import numpy as np

from bench.data.index import Row
from bench.data.layout import Layout, Release
from bench.data.source import Split
from bench.data.tables import matlab, matlab_bytes, staged
from bench.data.tree import Tree, place
from bench.errors import BadInput

LABELS, SETS = "imagelabels.mat", "setid.mat"
SPLITS: dict[Split, str] = {"train": "trnid", "val": "valid", "test": "tstid"}


def read(release: Release) -> list[Row]:
    """Rows of the official train, val and test split."""
    from torchvision.datasets import Flowers102

    class Listed(Flowers102):  # type: ignore[misc, unused-ignore]
        """Reads tables whatever their checksum: the card has those of the release, and a part of it is read too."""

        def _check_integrity(self) -> bool:
            return True

    labels, sets = _tables(release.tree, len(Flowers102.classes))
    # torchvision cannot read a list of one: that is given twice, and the second left out again
    doubled = {variable: numbers * 2 if len(numbers) == 1 else numbers for variable, numbers in sets.items()}
    tables = {LABELS: matlab_bytes(labels=labels * 2), SETS: matlab_bytes(**doubled)}
    rows = []
    with staged(release.tree, "flowers-102", tables) as root:
        for split, variable in SPLITS.items():
            listed = Listed(root, split=split)
            images = list(zip(listed._image_files, listed._labels, strict=True))[: len(sets[variable])]
            rows += [Row(f"jpg/{file.name}", listed.classes[label], split) for file, label in images]
    return rows


def _tables(tree: Tree, classes: int) -> tuple[list[int], dict[str, list[int]]]:
    """The class of each image, and the images of each set; all from 1 on, and no image twice."""
    labels = _numbers(tree, LABELS, "labels", classes, "class")
    sets = {variable: _numbers(tree, SETS, variable, len(labels), "image") for variable in SPLITS.values()}
    seen: dict[int, str] = {}
    for variable, images in sets.items():
        for position, image in enumerate(images, start=1):
            if image in seen:
                raise _fault(tree, SETS, variable, position, f"image {image} is also in {seen[image]}")
            seen[image] = f"{variable}({position})"
    return labels, sets


def _numbers(tree: Tree, table: str, variable: str, most: int, kind: str) -> list[int]:
    """A list of whole numbers from 1 to `most`."""
    values: Any = np.atleast_1d(matlab(tree, table, variable))
    if values.dtype.kind not in "uif" or (values.ndim != 1 and values.size):
        raise BadInput(f"{place(tree, table)}: variable {variable!r} is no list of numbers")
    for position, value in enumerate(values.ravel().tolist(), start=1):
        if not 1 <= value <= most or value != int(value):
            raise _fault(tree, table, variable, position, f"{kind} {value} is none of 1 to {most}")
    return [int(value) for value in values.ravel()]


def _fault(tree: Tree, table: str, variable: str, position: int, message: str) -> BadInput:
    return BadInput(f"{place(tree, table)}: {variable}({position}): {message}")


LAYOUT = Layout(version=1, marks=(SETS, LABELS), read=read)
