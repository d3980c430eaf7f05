"""The index of a dataset: its files, classes and splits, without any pixel. Imports no torch."""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from bench.data.source import Split

SPLITS: tuple[Split, ...] = get_args(Split)
VAL_SHARE = 0.2  # of the train images of each class, where a dataset brings no val split


Box = tuple[float, float, float, float]  # left, top, right, bottom in px of the stored image


class Row(NamedTuple):
    """One image as a dataset's tables or folders tell it; an unlabelled one's label is not looked at."""

    file: str
    label: str
    split: Split
    box: Box | None = None


@dataclass(frozen=True, eq=False)
class Index:
    """Every image of a dataset in a fixed order.

    `files`: relative names with forward slashes; `labels`: int64 `[N]`, positions in `classes`, -1 where
    unlabelled; `splits`: `[N]`; `boxes`: `[N]`, to crop to, or empty.
    """

    name: str
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: npt.NDArray[np.int64] = field(repr=False)
    splits: tuple[Split, ...] = field(repr=False)
    boxes: tuple[Box | None, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def counts(self) -> dict[Split, int]:
        """Images per split; every split is named, an empty one with 0."""
        return {split: self.splits.count(split) for split in SPLITS}

    def count(self, split: Split) -> int:
        """Images of one split."""
        return self.counts[split]

    def labels_of(self, split: Split) -> npt.NDArray[np.int64]:
        """Labels int64 `[count]` of one split."""
        chosen = np.array([one == split for one in self.splits], dtype=bool)
        return np.asarray(self.labels[chosen], dtype=np.int64)


def build_index(name: str, rows: Iterable[Row], *, boxes: bool = False) -> Index:
    """Index rows in file order; `boxes` says whether images are to be cropped to theirs."""
    ordered = sorted(rows, key=lambda row: plain(row.file))
    classes = tuple(sorted({row.label for row in ordered if row.split != "unlabelled"}))
    number = {label: position for position, label in enumerate(classes)}
    labels = [-1 if row.split == "unlabelled" else number[row.label] for row in ordered]
    return Index(
        name=name,
        classes=classes,
        files=tuple(row.file for row in ordered),
        labels=np.array(labels, dtype=np.int64),
        splits=tuple(row.split for row in ordered),
        boxes=tuple(row.box for row in ordered) if boxes else (),
    )


def cut(files: Sequence[str], share: float, *, seed: int = 0) -> set[str]:
    """Choose a `share` of one class's files, at least 1 of 2 or more and never all of them.

    The choice is by a hash of each name: it depends neither on the order of a listing nor on the machine.
    """
    count = min(max(round(len(files) * share), 1), len(files) - 1)
    return set(sorted(files, key=lambda file: (_rank(file, seed), file))[: max(count, 0)])


def by_class(rows: Iterable[Row]) -> dict[str, list[str]]:
    """The files of each class, in the order of the rows."""
    members: dict[str, list[str]] = {}
    for row in rows:
        members.setdefault(row.label, []).append(row.file)
    return members


def with_val(rows: Sequence[Row], *, by_name: bool = False) -> list[Row]:
    """Take a val split from train, class by class, where there is none; test is never touched.

    The choice is by a hash of each image's path, or with `by_name` of CLASS/FILE: then it does not matter into which
    folders a release was unpacked.
    """
    if any(row.split == "val" for row in rows):
        return list(rows)
    key = {row.file: f"{row.label}/{row.file.rpartition('/')[2]}" if by_name else row.file for row in rows}
    train = by_class(row for row in rows if row.split == "train")
    val = {name for members in train.values() for name in cut([key[file] for file in members], VAL_SHARE)}
    return [row._replace(split="val") if row.split == "train" and key[row.file] in val else row for row in rows]


def plain(text: str) -> str:
    """One spelling per name: Unicode NFC (macOS stores NFD), undecodable bytes escaped."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", text).encode("utf-8", "backslashreplace").decode("utf-8")


def _rank(file: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{plain(file)}".encode()).digest()
