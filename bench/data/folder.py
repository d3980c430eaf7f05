"""A dataset that is a folder of images.

With splits.csv (file, class, split) that file decides; images that it does not list are left out, with a
warning. Without it the top folders decide:

- none: every image is unlabelled;
- train, val, test, unlabelled (or a synonym, see `splits.WORDS`): train/CLASS/FILE, unlabelled/FILE;
- any others: they are the classes, cut 60/20/20 class by class; a folder `unlabelled` may lie beside them.

Folders below a class may nest. Where there is no val split, 20 % of each class's train images become it.
"""

import logging
from collections.abc import Iterable

from bench.data.index import VAL_SHARE, Row, by_class, cut, plain
from bench.data.source import Split
from bench.data.splits import NAME, WORDS, read_splits
from bench.data.tree import Stamps, Tree
from bench.errors import BadInput, suggestion
from bench.storage import join

VERSION = 1  # part of every fingerprint: raise it when the same folder would be indexed differently
PARTS = frozenset({"images", "Images", "jpg", "annotations", "Annotation", "meta", "data", "devkit", "parts"})
_log = logging.getLogger(__name__)


def rows_of(tree: Tree, stamps: Stamps) -> list[Row]:
    """Every image's class and split; BadInput says what is wrong with the layout or with splits.csv."""
    if not tree.has(NAME):
        return _by_layout(tree, stamps)
    rows = read_splits(tree, stamps)
    if len(rows) < len(stamps):
        _log.warning("%s: %d images are not in %s and left out", tree.address, len(stamps) - len(rows), NAME)
    return rows


def _by_layout(tree: Tree, images: Iterable[str]) -> list[Row]:
    """Rows of a folder without splits.csv, from its top folders' names."""
    files = sorted(images)
    tops = {file.partition("/")[0] for file in files if "/" in file}
    loose = [file for file in files if "/" not in file]
    if not tops:
        return [Row(file, "", "unlabelled") for file in files]
    if loose:
        raise BadInput(
            f"{tree.address}: {len(loose)} images lie beside the folders of images, first {loose[0]!r}; "
            "move them into a class folder or into 'unlabelled'"
        )
    if any(_word(top) not in (None, "unlabelled") for top in tops):
        return [_in_split_folder(tree, file) for file in files]
    parts = sorted(tops & PARTS)
    if parts:
        raise BadInput(
            f"{tree.address}: folder {parts[0]!r} is part of a release, not a class, and the release's tables are not "
            f"beside it; complete it, or name the folder of class folders (perhaps {join(tree.address, parts[0])})"
        )
    return _in_class_folders(files)


def _word(top: str) -> Split | None:
    return WORDS.get(top.lower())


def _in_split_folder(tree: Tree, file: str) -> Row:
    top, *inner, _ = file.split("/")
    split = _word(top)
    if split is None:
        raise BadInput(f"{tree.address}: {top!r} lies beside split folders but is none{suggestion(top.lower(), WORDS)}")
    if not inner and split != "unlabelled":
        raise BadInput(f"{tree.address}: image {file!r} lies in no class folder; expected {top}/CLASS/FILE")
    return Row(file, plain(inner[0]) if inner else "", split)


def _in_class_folders(files: list[str]) -> list[Row]:
    """Cut each class 60/20/20 into train, val and test; the folder 'unlabelled' stays as it is."""
    rows = [Row(file, "", "unlabelled") for file in files if _word(file.partition("/")[0])]
    named = [file for file in files if not _word(file.partition("/")[0])]
    labelled = [Row(file, plain(file.partition("/")[0]), "train") for file in named]
    for label, members in by_class(labelled).items():
        test = cut(members, VAL_SHARE)
        rest = [file for file in members if file not in test]
        val = cut(rest, VAL_SHARE / (1 - VAL_SHARE))
        rows += [Row(file, label, "test" if file in test else "val" if file in val else "train") for file in members]
    return rows
