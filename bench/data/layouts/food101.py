"""Food-101: `meta/train.json` and `meta/test.json` list each class's images. Listed by torchvision's own class."""

import json
from typing import Any

from bench.data.index import Row
from bench.data.layout import Layout, Release
from bench.data.source import Split
from bench.data.tables import json_table, staged
from bench.data.tree import Tree, place
from bench.errors import BadInput

SPLITS: dict[str, Split] = {"train": "train", "test": "test"}


def read(release: Release) -> list[Row]:
    """Rows of the official train and test split; there is no official val split."""
    from torchvision.datasets import Food101

    tables = _tables(release.tree)
    rows = []
    with staged(release.tree, "food-101", tables, ["images"]) as root:
        for word, split in SPLITS.items():
            listed = Food101(root, split=word)
            folder = listed._images_folder
            rows += [
                Row(file.relative_to(folder.parent).as_posix(), listed.classes[label], split)
                for file, label in zip(listed._image_files, listed._labels, strict=True)
            ]
    return rows


def _tables(tree: Tree) -> dict[str, bytes]:
    """Both tables, checked: each class's images, as paths below images/ without .jpg, none of them twice."""
    seen: dict[str, str] = {}
    tables = {}
    for word in SPLITS:
        table = f"meta/{word}.json"
        listed = json_table(tree, table)
        _check(tree, table, listed, seen)
        tables[table] = json.dumps(listed).encode()
    return tables


def _check(tree: Tree, table: str, listed: Any, seen: dict[str, str]) -> None:
    if not isinstance(listed, dict):
        raise BadInput(f"{place(tree, table)}: no object with each class's images")
    for label, files in listed.items():
        if not label.strip() or not label.isprintable():
            raise BadInput(f"{place(tree, table)}: {label[:80]!r} is no class's name")
        if not isinstance(files, list):
            raise BadInput(f"{place(tree, table)}: class {label!r} has no list of images")
        for position, file in enumerate(files, start=1):
            _check_image(tree, table, f"image {position} of class {label!r}", file, seen)


def _check_image(tree: Tree, table: str, where: str, file: Any, seen: dict[str, str]) -> None:
    if not isinstance(file, str) or not file.isprintable() or "\\" in file:
        raise BadInput(f"{place(tree, table)}: {where}: {str(file)[:80]!r} is no path of an image")
    if any(part in ("", ".", "..") for part in file.split("/")):
        raise BadInput(f"{place(tree, table)}: {where}: {file[:80]!r} is no path below images/")
    if file in seen:
        raise BadInput(f"{place(tree, table)}: {where}: {file!r} is there twice, also as {seen[file]}")
    seen[file] = f"{where} in {table}"


LAYOUT = Layout(version=1, marks=("meta/train.json", "meta/test.json"), read=read)
