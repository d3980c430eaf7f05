"""Stanford Dogs: MATLAB lists of the official split, a folder per breed, an XML file per image with its boxes.

lists.tar gives `train_list.mat` and `test_list.mat`, images.tar `Images/`, annotation.tar `Annotation/`. Copies that
people pass on have the lists in `lists/`, or the folders one level deeper; these are read too.
"""

import logging
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from bench.data.index import Box, Row
from bench.data.layout import Layout, Release
from bench.data.source import Split
from bench.data.tables import matlab
from bench.data.tree import Tree, place
from bench.data.voc import read_boxes
from bench.errors import BadInput

LISTS: dict[str, Split] = {"train_list.mat": "train", "test_list.mat": "test"}
_LIST_FOLDERS = ("", "lists/")
_IMAGE_FOLDERS = ("Images/", "images/Images/", "images/")
_BOX_FOLDERS = ("Annotation/", "annotation/Annotation/", "annotations/Annotation/", "annotation/")
_FILE = re.compile(r"(?P<folder>\w+-\w[\w.-]*)/(?P<stem>\w[\w.-]*)\.jpg")  # n02085620-Chihuahua/n02085620_5927.jpg
_AT_ONCE = 16  # small files read at the same time; a remote store answers each in some tens of ms
_log = logging.getLogger(__name__)


class _Listed(NamedTuple):
    """One entry of a list; `table` and `row` (1-based) say where it stands."""

    table: str
    row: int
    folder: str
    stem: str
    label: int
    split: Split


def read(release: Release) -> list[Row]:
    """Rows of the official train and test split; there is no official val split. The class is the breed's name."""
    tree = release.tree
    start = next((start for start in _LIST_FOLDERS if any(tree.has(start + table) for table in LISTS)), "")
    listed = [entry for table, split in LISTS.items() for entry in _entries(tree, start + table, split)]
    _check_labels(tree, listed)
    names = _breeds({entry.folder for entry in listed})
    images = _folder_of_images(release)
    boxes = _boxes(tree, [f"{entry.folder}/{entry.stem}" for entry in listed]) if release.boxes else {}
    return [
        Row(
            f"{images}{entry.folder}/{entry.stem}.jpg",
            names[entry.folder],
            entry.split,
            boxes.get(f"{entry.folder}/{entry.stem}"),
        )
        for entry in listed
    ]


def _entries(tree: Tree, table: str, split: Split) -> list[_Listed]:
    files = np.atleast_1d(matlab(tree, table, "file_list"))
    labels = np.atleast_1d(matlab(tree, table, "labels"))
    if files.ndim != 1 or labels.shape != files.shape or labels.dtype.kind not in "uif":
        raise BadInput(
            f"{place(tree, table)}: file_list and labels must be two lists of one length "
            f"(found: {files.shape} and {labels.shape})"
        )
    found = []
    for row, (file, label) in enumerate(zip(files.tolist(), labels.tolist(), strict=True), start=1):
        parts = _FILE.fullmatch(file) if isinstance(file, str) else None
        if parts is None:
            raise _fault(tree, table, row, f"{str(file)[:80]!r} is not WORDNET_ID-BREED/IMAGE.jpg")
        if not 1 <= label < 10_000 or label != int(label):
            raise _fault(tree, table, row, f"label {label!r} is no whole number from 1 on")
        found.append(_Listed(table, row, parts["folder"], parts["stem"], int(label), split))
    return found


def _check_labels(tree: Tree, listed: Iterable[_Listed]) -> None:
    """A folder has one label and a label has one folder, over both lists."""
    label_of: dict[str, int] = {}
    folder_of: dict[int, str] = {}
    for entry in listed:
        label = label_of.setdefault(entry.folder, entry.label)
        folder = folder_of.setdefault(entry.label, entry.folder)
        if label != entry.label or folder != entry.folder:
            other = f"{entry.folder!r} had label {label}" if label != entry.label else f"it was that of {folder!r}"
            raise _fault(
                tree, entry.table, entry.row, f"label {entry.label} contradicts folder {entry.folder!r}: {other}"
            )


def _breeds(folders: Iterable[str]) -> dict[str, str]:
    """n02085620-Chihuahua is "Chihuahua", unless two folders would then share a name."""
    short = {folder: folder.partition("-")[2] for folder in folders}
    names = list(short.values())
    return {folder: name if names.count(name) == 1 else folder for folder, name in short.items()}


def _folder_of_images(release: Release) -> str:
    for folder in _IMAGE_FOLDERS:
        if any(file.startswith(folder) and file.count("/") == folder.count("/") + 1 for file in release.stamps):
            return folder
    return _IMAGE_FOLDERS[0]


def _boxes(tree: Tree, images: list[str]) -> dict[str, Box]:
    """The box of each image, around all its dogs; an image without an annotation stays whole, and is counted."""
    folder = next((folder for folder in _BOX_FOLDERS if tree.has(folder.rstrip("/"))), None)
    if folder is None:
        raise BadInput(f"{place(tree, 'Annotation')}: boxes were asked for; unpack annotation.tar of the release here")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda image: _box(tree, folder + image), images))
    missing = [image for image, box in zip(images, found, strict=True) if box is None]
    if missing:
        _log.warning(
            "%s: %d images have no annotation and stay whole, first %s", tree.address, len(missing), missing[0]
        )
    return {image: box for image, box in zip(images, found, strict=True) if box is not None}


def _box(tree: Tree, name: str) -> Box | None:
    """The smallest box around every dog of one XML file, or None where the file is not there."""
    boxes = read_boxes(tree, name)
    if boxes is None:
        return None
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _fault(tree: Tree, table: str, row: int, message: str) -> BadInput:
    return BadInput(f"{place(tree, table)}: row {row}: {message}")


LAYOUT = Layout(
    version=1, marks=tuple(start + table for start in _LIST_FOLDERS for table in LISTS), read=read, boxes=True
)
