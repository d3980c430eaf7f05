"""Food-101: `meta/train.json` and `meta/test.json` list each class's images. Read by torchvision's own class."""

from bench.data.index import Row
from bench.data.layout import Layout, Release
from bench.data.source import Split
from bench.data.tables import fault, json_table, staged
from bench.data.tree import Tree

SPLITS: dict[str, Split] = {"train": "train", "test": "test"}


def read(release: Release) -> list[Row]:
    """Rows of the official train and test split; there is no official val split."""
    from torchvision.datasets import Food101

    tables = [f"meta/{word}.json" for word in SPLITS]
    for table in tables:
        _check(release.tree, table)
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


def _check(tree: Tree, table: str) -> None:
    listed = json_table(tree, table)
    if not isinstance(listed, dict):
        raise fault(tree, table, 1, "no table of class names")
    for label, files in listed.items():
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise fault(tree, table, 1, f"class {label!r} holds no list of images")
        if not all(_inside(file) for file in files):
            raise fault(tree, table, 1, f"class {label!r} lists an image outside the folder")


def _inside(file: str) -> bool:
    return not file.startswith("/") and ".." not in file.split("/") and "\0" not in file


LAYOUT = Layout(version=1, marks=("meta/train.json", "meta/test.json"), read=read)
