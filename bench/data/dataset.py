"""From a dataset reference (a card's name, a card's path or a folder) to its index and its source."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from bench.cards import card_paths, find_card
from bench.data.card import DatasetCard, read_card
from bench.data.digests import cache_folder
from bench.data.folder import read_folder
from bench.data.index import SPLITS, Index
from bench.data.source import Metric, Source, Split
from bench.errors import BadData, BadInput, UnknownName, suggestion

__all__ = ["Dataset", "Index", "Need", "check_usable", "index_of", "resolve"]

Need = Literal["pretraining", "evaluation"]


@dataclass(frozen=True)
class Dataset:
    """A resolved dataset: what travels to workers (`source`) and what is in it (`index`)."""

    source: Source
    index: Index

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.source.name

    @property
    def counts(self) -> dict[Split, int]:
        """Images per split."""
        return self.index.counts

    def labels_of(self, split: Split) -> Any:
        """Labels int64 `[count]` of one split."""
        return self.index.labels_of(split)


class Usable(Protocol):
    """What `check_usable` looks at: a Dataset or a Pack."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def counts(self) -> dict[Split, int]:
        """Images per split."""

    def labels_of(self, split: Split) -> Any:
        """Labels `[count]` of one split."""


def resolve(reference: str) -> Dataset:
    """Find, index and fingerprint a dataset; a card's name goes before a folder of the same name.

    Raises UnknownName for what is neither card nor folder, BadInput for a faulty card, layout or splits.csv.
    """
    if reference in card_paths("datasets") or Path(reference).suffix == ".toml":
        return _from_card(find_card("datasets", reference))
    folder = Path(reference).expanduser().absolute()
    if reference and folder.is_dir():
        return _from_folder(Path(os.path.normpath(folder)), None, "top1")
    if folder.is_file():
        raise BadInput(f"dataset {reference!r} is a file; a folder of images or a card (.toml) is needed")
    error = UnknownName("dataset card", reference, card_paths("datasets"))
    error.args = (f"{error}, and there is no such folder",)
    raise error


def index_of(source: Source, cache: Path) -> Index:
    """Index a source anew, where its images are; BadData when they are no longer what was resolved."""
    if source.reader == "builtin":
        index, fingerprint = _builtin(source.location)
    else:
        folder = Path(source.location)
        if not folder.is_dir():
            raise BadData(f"dataset {source.name!r}: its folder {folder} is not there on this machine")
        data = read_folder(folder, cache)
        index, fingerprint = data.index, data.fingerprint
    if fingerprint != source.fingerprint:
        raise BadData(f"dataset {source.name!r} has changed since it was resolved; start again")
    return index


def check_usable(data: Usable, need: Need) -> None:
    """Raise one BadData before anything trains if `data` cannot serve what is asked of it."""
    counts = data.counts
    shown = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
    problem = ""
    if not sum(counts.values()):
        problem = "has no usable image"
    elif need == "pretraining" and not counts["unlabelled"] + counts["train"]:
        problem = f"has no unlabelled and no train image ({shown})"
    elif need == "evaluation":
        empty = [split for split in SPLITS[1:] if not counts[split]]
        if empty:
            problem = f"has no {' and no '.join(empty)} image ({shown})"
        elif len(np.unique(np.asarray(data.labels_of("train")))) < 2:
            problem = "has one class only among its train images; a probe needs two"
    if problem:
        raise BadData(f"dataset {data.name!r} cannot be used for {need}: it {problem}")


def _from_card(path: Path) -> Dataset:
    card = read_card(path)
    name = path.stem
    if card.reader == "folder":
        folder = Path(os.path.normpath(path.absolute().parent / Path(card.location).expanduser()))
        if not folder.is_dir():
            raise BadInput(f"{path}: location: no folder {str(folder)!r}")
        dataset = _from_folder(folder, name, card.metric)
    else:
        index, fingerprint = _builtin(card.location, f"{path}: location: ")
        source = _source(name, "builtin", card.location, fingerprint, card.metric)
        dataset = Dataset(source, index)
    _check_card(path, card, dataset.index)
    return dataset


def _from_folder(folder: Path, name: str | None, metric: Metric) -> Dataset:
    data = read_folder(folder, cache_folder())
    source = _source(name or data.index.name, "folder", str(folder), data.fingerprint, metric)
    return Dataset(source, data.index)


def _source(name: str, reader: Literal["builtin", "folder"], location: str, fingerprint: str, metric: Metric) -> Source:
    return Source(name=name, reader=reader, location=location, fingerprint=fingerprint, metric=metric)


def _check_card(path: Path, card: DatasetCard, index: Index) -> None:
    """A card that says other classes or counts than the images show is wrong or its images are incomplete."""
    if card.classes is not None and set(card.classes) != set(index.classes):
        odd = sorted(set(card.classes) ^ set(index.classes))[0]
        side = "not among the images" if odd in card.classes else "not in the card"
        others = [name for name in {*card.classes, *index.classes} if name != odd]
        raise BadInput(f"{path}: classes: {odd!r} is {side}{suggestion(odd, others)}")
    for split, count in (card.counts or {}).items():
        if count != index.counts[split]:
            raise BadInput(f"{path}: counts: {split} is {count} in the card but {index.counts[split]} images")


def _builtin(family: str, where: str = "") -> tuple[Index, str]:
    from bench.data import builtin

    if family not in builtin.FAMILIES:
        error = UnknownName("built-in family", family, builtin.FAMILIES)
        error.args = (f"{where}{error}",)
        raise error
    labels = {split: builtin.split_labels(family, split) for split in SPLITS}
    files = [f"{split}/{row:05d}" for split in SPLITS for row in range(len(labels[split]))]
    index = Index(
        name=family,
        classes=tuple(builtin.FAMILIES[family].classes),
        files=tuple(files),
        labels=np.concatenate([labels[split] for split in SPLITS]),
        splits=tuple(split for split in SPLITS for _ in labels[split]),
    )
    return index, builtin.fingerprint(family)
