"""Check a dataset: every image that is broken, missing, there twice or in two splits, and what the card says otherwise.

Nothing is written to the data. Findings come in a fixed order: by kind, then as the index has the images.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import BinaryIO, NamedTuple

import numpy as np

from bench.data.card import READERS, DatasetCard
from bench.data.dataset import Meaning, compare, meaning, resolve, tree_of
from bench.data.index import SPLITS, Index, plain
from bench.data.look import Look, Progress, look_at_family, look_at_files
from bench.data.near import BITS, nearest
from bench.data.reading import read_index
from bench.data.releases import find_layout
from bench.data.source import Split
from bench.data.splits import NAME, listed_files
from bench.data.tree import GONE, Stamps, Tree, open_tree
from bench.errors import BadData, BadInput

DISTANCE = 4  # bits of 64
TINY = 32  # px of the short side
LONG = 4  # times the short side
FAULTS = ("counts", "classes", "unreadable", "missing", "duplicate", "shared", "labels", "near")
ODD = ("unlisted", "tiny", "long", "gray")  # told, and no faults: releases hold images that no table lists


class Finding(NamedTuple):
    """One thing found. `other`: the image that `file` equals or is near to; `split`: one, or "train/test"."""

    kind: str
    file: str = ""
    other: str = ""
    split: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Tally:
    """The images of one split: as the card says, as tables or folders list them, and those that can be decoded."""

    split: str
    card: int | None
    listed: int
    usable: int


@dataclass(frozen=True)
class Findings:
    """What a check found, and of what."""

    name: str
    location: str
    classes: int
    tallies: tuple[Tally, ...]
    found: tuple[Finding, ...] = field(repr=False)
    distance: int | None = None  # of `near`, in bits; None where it was not asked for

    def of(self, kind: str) -> list[Finding]:
        """The findings of one kind."""
        return [finding for finding in self.found if finding.kind == kind]

    @property
    def faults(self) -> int:
        """How many findings are not mere oddities."""
        return sum(finding.kind not in ODD for finding in self.found)


def check(reference: str, root: str | None, progress: Progress, *, distance: int | None = None) -> Findings:
    """Check a dataset; with `distance` (0..63 bits of 64) also for perceptual duplicates across splits.

    `progress` is told (images done, images in all). Raises UnknownName for what is neither card nor folder,
    BadInput for a faulty card, layout or table, BadData for a folder without images.
    """
    if distance is not None and not 0 <= distance < BITS:
        raise BadInput(f"distance: must be 0 to {BITS - 1} bits of {BITS} (given: {distance})")
    meant = meaning(reference)
    index, looks, location, unlisted = _looked(meant, reference, root, progress, hashed=distance is not None)
    if not len(index):
        raise BadData(f"dataset {meant.name!r} has no image in {location}")
    rows = [row for row, look in enumerate(looks) if not look.fault]
    found = [
        *_against_card(meant.card, index),
        *_classes_without_train(index),
        *_broken(index, looks),
        *_same_bytes(index, looks, rows),
        *(Finding("unlisted", plain(file)) for file in unlisted),
        *(_near(index, looks, rows, distance) if distance is not None else ()),
        *_odd(index, looks, rows),
    ]
    found.sort(key=lambda finding: (FAULTS + ODD).index(finding.kind))  # stable: within a kind as they were found
    tallies = tuple(_tallies(meant.card, index, looks))
    return Findings(meant.name, location, len(index.classes), tallies, tuple(found), distance)


def _looked(
    meant: Meaning, reference: str, root: str | None, progress: Progress, *, hashed: bool
) -> tuple[Index, list[Look], str, list[str]]:
    """The index, a look at each image, where they lie, and the images that no table lists."""
    card = meant.card
    if card is not None and card.reader == "builtin":
        dataset = resolve(reference, root)
        family = dataset.source.location
        looks = look_at_family(family, len(dataset.index), progress, hashed=hashed)
        return dataset.index, looks, "built-in", []
    tree = tree_of(meant.path, card, root) if meant.path and card else meant.tree or open_tree(reference)
    reader = card.reader if card else "folder"
    tree = _Listed(tree) if reader == "folder" and tree.has(NAME) else tree
    level, boxes = (card.level, card.boxes) if card else ("", False)
    index, stamps, _ = read_index(tree, reader, level=level, boxes=boxes)
    looks = look_at_files(tree, index, progress, hashed=hashed)
    return index, looks, tree.address, _unlisted(index, stamps, reader)


@dataclass(frozen=True)
class _Listed:
    """A folder whose splits.csv lists what is not there: the reader of folders takes that for an image that is gone.

    Else it would name the first such lines in an error, and nothing would be said about the other images.
    """

    tree: Tree

    @property
    def address(self) -> str:
        return self.tree.address

    def exists(self) -> bool:
        return self.tree.exists()

    def has(self, name: str) -> bool:
        return self.tree.has(name)

    def open(self, name: str) -> BinaryIO:
        return self.tree.open(name)

    def scan(self) -> dict[str, tuple[int, int]]:
        stamps = self.tree.scan()
        names = set(map(plain, stamps))
        return stamps | {file: GONE for file in listed_files(self.tree) if file and plain(file) not in names}


def _unlisted(index: Index, stamps: Stamps, reader: str) -> list[str]:
    """Images that lie there and are in no table; of a release only beside those that are (not masks, not trimaps)."""
    listed = set(index.files)
    tops = {file.partition("/")[0] if "/" in file else "" for file in listed}
    return [
        file
        for file in sorted(stamps)
        if file not in listed and (reader == "folder" or (file.partition("/")[0] if "/" in file else "") in tops)
    ]


def _against_card(card: DatasetCard | None, index: Index) -> Iterator[Finding]:
    if card is None:
        return
    for split, said, listed in compare(card, index):
        if said != listed:
            yield Finding("counts", split=split, detail=f"{said:,} in the card, {listed:,} listed")
    if isinstance(card.classes, tuple):
        for name in sorted(set(card.classes) ^ set(index.classes)):
            side = "in the card, without an image" if name in card.classes else "has images, not in the card"
            yield Finding("classes", detail=f"{plain(name)!r}: {side}")
    elif card.classes is not None and usual_level(card) and card.classes != len(index.classes):
        yield Finding("classes", detail=f"{card.classes} in the card, {len(index.classes)} listed")


def usual_level(card: DatasetCard) -> bool:
    """Whether the card's classes are those that it counts: its release's usual set of classes."""
    return card.reader in READERS or card.level in ("", find_layout(card.reader).levels[0])


def _classes_without_train(index: Index) -> Iterator[Finding]:
    """A class that is tested and never shown; of a dataset without any train image nothing is said."""
    trained = set(index.labels_of("train").tolist())
    for label, name in enumerate(index.classes):
        if trained and label not in trained:
            yield Finding("classes", split="train", detail=f"{plain(name)!r}: no train image")


def _broken(index: Index, looks: list[Look]) -> Iterator[Finding]:
    for row, look in enumerate(looks):
        if look.fault:
            yield Finding(look.fault, plain(index.files[row]), split=index.splits[row], detail=look.reason)


def _same_bytes(index: Index, looks: list[Look], rows: list[int]) -> Iterator[Finding]:
    """Within a split each further copy is named with the first; across splits each one of the later split."""
    groups: dict[bytes, list[int]] = {}
    for row in rows:
        groups.setdefault(looks[row].digest, []).append(row)
    for group in groups.values():
        if len(group) > 1:
            yield from _group(index, group)


def _group(index: Index, group: list[int]) -> Iterator[Finding]:
    members = {split: [row for row in group if index.splits[row] == split] for split in SPLITS}
    for split, (first, *others) in ((split, rows) for split, rows in members.items() if rows):
        for row in others:
            yield _pair("duplicate", index, row, first, split)
    for early, late in combinations(SPLITS, 2):
        for row in members[late] if members[early] else ():
            yield _pair("shared", index, row, members[early][0], f"{early}/{late}")
    labelled = [row for row in group if index.labels[row] >= 0]
    for row in labelled[1:]:
        here, there = (plain(index.classes[index.labels[which]]) for which in (row, labelled[0]))
        if here != there:
            yield _pair("labels", index, row, labelled[0], _splits(index, row, labelled[0]), f"{here!r} and {there!r}")


def _pair(kind: str, index: Index, row: int, other: int, split: str, detail: str = "") -> Finding:
    return Finding(kind, plain(index.files[row]), plain(index.files[other]), split, detail)


def _splits(index: Index, *rows: int) -> str:
    return "/".join(dict.fromkeys(sorted((index.splits[row] for row in rows), key=SPLITS.index)))


def _near(index: Index, looks: list[Look], rows: list[int], distance: int) -> Iterator[Finding]:
    """Each image of the later split that is near to one of the earlier, with the nearest; equal bytes are no pair."""
    hashes = np.array([look.hash for look in looks], dtype=np.uint64)
    numbers = {digest: number for number, digest in enumerate(dict.fromkeys(look.digest for look in looks))}
    keys = np.array([numbers[look.digest] for look in looks], dtype=np.int64)
    members = {split: np.array([row for row in rows if index.splits[row] == split], dtype=np.int64) for split in SPLITS}
    for early, late in combinations(SPLITS, 2):
        first, second = members[early], members[late]
        near = nearest(hashes[first], hashes[second], distance, (keys[first], keys[second]))
        for column, row, bits, count in zip(near.columns, near.rows, near.distances, near.counts, strict=True):
            more = f", {count - 1:,} more within {distance}" if count > 1 else ""
            detail = f"{bits} of {BITS} bits{more}"
            yield _pair("near", index, second[column], first[row], f"{early}/{late}", detail)


def _odd(index: Index, looks: list[Look], rows: list[int]) -> Iterator[Finding]:
    for row in rows:
        look = looks[row]
        size = f"{look.width}x{look.height} px"
        short, long = sorted((look.width, look.height))
        for kind, is_so in (("tiny", short < TINY), ("long", long > LONG * short), ("gray", look.gray)):
            if is_so:
                yield Finding(kind, plain(index.files[row]), split=index.splits[row], detail=size)


def _tallies(card: DatasetCard | None, index: Index, looks: list[Look]) -> Iterator[Tally]:
    """A row per split that has or should have images; where val is cut from train, both are one row."""
    said = (card.counts if card else None) or {}
    cut = bool(said) and "val" not in said and bool(index.counts["val"])
    groups: list[tuple[Split, ...]] = [("train", "val"), ("test",), ("unlabelled",)]
    groups = groups if cut else [("train",), ("val",), ("test",), ("unlabelled",)]
    for group in groups:
        rows = [row for row, split in enumerate(index.splits) if split in group]
        if rows or said.get(group[0]):
            usable = sum(not looks[row].fault for row in rows)
            yield Tally(" + ".join(group), said.get(group[0]), len(rows), usable)
