"""iCassava: leaf diseases in the three layouts in which they were released, told apart by what is there.

- the zip that TFDS reads: `cassavaleafdata/` with train, validation and test, all labelled (SPLIT/CLASS/FILE.jpg);
- Kaggle 2019: train/CLASS/FILE.jpg, and test/0/FILE.jpg without labels, which is not used: its images are the labelled
  validation and test images of the zip;
- Kaggle 2020: train.csv (image_id, label 0..4) and train_images/; test_images/ is not used.

A folder `extraimages` beside any of them is its unlabelled part. Zips of Kaggle unpack to train/train/CLASS too.
Where there is no labelled test split, 20 % of each class become it, chosen by a hash of class and file name, so that
copies that were unpacked in other ways have the same one.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bench.data.index import VAL_SHARE, Row, cut
from bench.data.layout import Layout, Release
from bench.data.source import Split
from bench.data.tables import fault, json_table, known, records
from bench.data.tree import Tree, place
from bench.errors import BadInput, suggestion

CLASSES = ("cbb", "cbsd", "cgm", "cmd", "healthy")  # in the order of the labels 0..4 of 2020
ZIP = "cassavaleafdata"
TABLE, TABLE_IMAGES, TABLE_NAMES = "train.csv", "train_images", "label_num_to_disease_map.json"
EXTRA = "extraimages"
_COLUMNS = ("image_id", "label")
_SPLITS: dict[str, Split] = {"train": "train", "validation": "val", "test": "test"}
_UNLABELLED_TEST = "0"
_log = logging.getLogger(__name__)


class _Image(NamedTuple):
    """A labelled image; `key` is its class and file name, however deep the zip was unpacked."""

    file: str
    label: str
    split: Split
    key: str


def read(release: Release) -> list[Row]:
    """Rows of whichever layout is there; BadInput where two are, or a folder is no class."""
    tree, files = release.tree, sorted(release.stamps)
    in_folders = list(_in_folders(tree, files))
    if _has_table(tree):
        if in_folders:
            raise BadInput(
                f"{tree.address}: two releases lie here, {TABLE} of 2020 and the class folders of 2019 (first "
                f"{in_folders[0].file!r}); keep each in a folder of its own"
            )
        images = _in_table(tree)
    else:
        images = in_folders
    _check_once(tree, images)
    labelled = [Row(image.file, image.label, image.split) for image in _with_test(images)]
    extra = [Row(file, "", "unlabelled") for file in files if _top(file) == EXTRA]
    _tell_unused(tree, files, {row.file for row in (*labelled, *extra)})
    return labelled + extra


def is_here(tree: Tree) -> bool:
    """Whether the class folders are there, all five, or the table of 2020: a folder `train` alone says nothing."""
    return any(_has_classes(tree, base) for base in ("train", f"{ZIP}/train", "train/train")) or _has_table(tree)


def _has_classes(tree: Tree, base: str) -> bool:
    return all(
        any(tree.has(f"{base}/{spelt}") for spelt in (name, name.upper(), name.capitalize())) for name in CLASSES
    )


def _has_table(tree: Tree) -> bool:
    """A table `train.csv` of another competition has other columns."""
    if not (tree.has(TABLE_IMAGES) and tree.has(TABLE)):
        return False
    if tree.has(TABLE_NAMES):
        return True
    try:
        with tree.open(TABLE) as stream:
            first = stream.readline(200).decode("utf-8-sig", "replace")
    except OSError:
        return False
    return sorted(word.strip().lower() for word in first.split(",")) == sorted(_COLUMNS)


def _parts(file: str) -> list[str]:
    """The parts of an image's name without the zip's own folder and a top folder that is there twice."""
    parts = file.split("/")
    parts = parts[1:] if parts[0] == ZIP else parts
    return parts[1:] if len(parts) > 1 and parts[0].lower() == parts[1].lower() else parts


def _top(file: str) -> str:
    parts = _parts(file)
    return parts[0].lower() if len(parts) > 1 else ""


def _in_folders(tree: Tree, files: Iterable[str]) -> Iterator[_Image]:
    """Every image in SPLIT/CLASS/; case does not matter, as the zips were made on several systems."""
    for file in files:
        top, *inner, name = _parts(file)
        split = _SPLITS.get(top.lower()) if inner else None
        if split is None or (split == "test" and inner == [_UNLABELLED_TEST]):
            continue
        label = inner[0].lower()
        if label not in CLASSES or len(inner) > 1:
            hint = suggestion(label, CLASSES) if label not in CLASSES else ""
            raise BadInput(f"{place(tree, file)}: folder {'/'.join(inner)!r} is no class of cassava{hint}")
        yield _Image(file, label, split, f"{label}/{name}")


def _in_table(tree: Tree) -> list[_Image]:
    """Every image of train.csv, which gives all of them the split "train"."""
    names = _label_names(tree)
    images: dict[str, _Image] = {}
    for line, (name, label) in records(tree, TABLE, _COLUMNS):
        if not name or "/" in name or "\\" in name or "\0" in name:
            raise fault(tree, TABLE, line, f"image_id {name!r} is no file name")
        if name in images:
            raise fault(tree, TABLE, line, f"image_id {name!r} is there twice")
        label = names[known(tree, TABLE, line, label, names, "label")]
        images[name] = _Image(f"{TABLE_IMAGES}/{name}", label, "train", f"{label}/{name}")
    return list(images.values())


def _label_names(tree: Tree) -> dict[str, str]:
    """The class of each label: as the release's JSON says ("Cassava Mosaic Disease (CMD)"), else the usual one."""
    usual = {str(label): name for label, name in enumerate(CLASSES)}
    if not tree.has(TABLE_NAMES):
        return usual
    said = json_table(tree, TABLE_NAMES)
    if not isinstance(said, dict) or set(said) != set(usual):
        raise fault(tree, TABLE_NAMES, 1, f"labels {', '.join(usual)} are needed, each with its disease")
    names: dict[str, str] = {}
    for label, disease in said.items():
        short = str(disease).rpartition("(")[2].strip(") ").lower()
        if short not in CLASSES or short in names.values():
            raise fault(tree, TABLE_NAMES, 1, f"label {label}: {str(disease)[:80]!r} is none of {', '.join(CLASSES)}")
        names[label] = short
    return names


def _check_once(tree: Tree, images: Iterable[_Image]) -> None:
    """A zip that was unpacked twice would put the same image into train and into a test that is cut from it."""
    seen: dict[tuple[Split, str], str] = {}
    for image in images:
        other = seen.setdefault((image.split, image.key), image.file)
        if other != image.file:
            raise BadInput(f"{place(tree, image.file)}: lies here twice, also as {other!r}; remove one")


def _with_test(images: list[_Image]) -> list[_Image]:
    """Where no test image is labelled, take 20 % of each class's train images."""
    if any(image.split == "test" for image in images):
        return images
    keys: dict[str, list[str]] = {}
    for image in images:
        if image.split == "train":
            keys.setdefault(image.label, []).append(image.key)
    test = {key for members in keys.values() for key in cut(members, VAL_SHARE)}
    return [image._replace(split="test") if image.split == "train" and image.key in test else image for image in images]


def _tell_unused(tree: Tree, files: Iterable[str], used: set[str]) -> None:
    """Log how many images are left out, and why."""
    unused = Counter("test/0" if _parts(file)[:2] == ["test", "0"] else "other" for file in files if file not in used)
    if unused["test/0"]:
        _log.warning(
            "%s: %d images of test/%s are left out: they have no labels, and are the labelled validation and test "
            "images of the release as a zip (%s)",
            *(tree.address, unused["test/0"], _UNLABELLED_TEST, ZIP),
        )
    if unused["other"]:
        _log.warning("%s: %d images are in no split of the release and left out", tree.address, unused["other"])


LAYOUT = Layout(version=1, marks=(), read=read, here=is_here)
