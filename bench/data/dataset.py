"""From a dataset reference (a card's name, a card's path or a folder) to its index and its source."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from bench.cache import cache_folder
from bench.cards import card_paths, find_card
from bench.data.card import OPTIONS, READERS, DatasetCard, read_card
from bench.data.index import SPLITS, Index
from bench.data.reading import read_content
from bench.data.releases import find_layout
from bench.data.roots import data_root, require_release
from bench.data.source import Source, Split
from bench.data.tree import Tree, folder_name, open_tree
from bench.errors import BadData, BadInput, UnknownName, suggestion
from bench.storage import is_remote

__all__ = ["Dataset", "Index", "Need", "check_usable", "index_of", "resolve"]

Need = Literal["pretraining", "evaluation"]
_log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Meaning:
    """What a reference means before any image is looked at: a card (at `path`), or a folder (`tree`).

    A folder that is a release's own has that release's card as well.
    """

    name: str
    card: DatasetCard | None = None
    path: Path | None = None
    tree: Tree | None = None


def meaning(reference: str) -> Meaning:
    """What a reference means, see `resolve`; same errors, and a release need not be there."""
    name, options = _options(reference)
    if name in card_paths("datasets") or Path(name).suffix == ".toml":
        path = find_card("datasets", name)
        return Meaning(_name_of(path, reference), read_card(path, options), path=path)
    tree = open_tree(name)
    if name and tree.exists():
        return _of_folder(tree, reference, options)
    if Path(name).expanduser().is_file():
        raise BadInput(f"dataset {reference!r} is a file; a folder of images or a card (.toml) is needed")
    error = UnknownName("dataset card", name, card_paths("datasets"))
    error.args = (f"{error}, and there is no such folder",)
    raise error


def resolve(reference: str, root: str | None = None) -> Dataset:
    """Find, index and fingerprint a dataset; a card's name goes before a folder of the same name.

    `reference`: a card's name or path, a folder, or a remote address of one. A release's card takes options:
    "aircraft?level=family". `root`: where releases are looked for, see `roots.data_root`.
    Raises UnknownName for what is neither card nor folder, BadInput for a faulty card, layout or table.
    """
    meant = meaning(reference)
    if meant.path is not None and meant.card is not None:
        return from_card(meant.path, meant.card, reference, root)
    dataset = _from_tree(meant.tree or open_tree(reference), meant.name, meant.card)
    if meant.card is not None:
        _tell_part(meant.name, _wrong_counts(meant.card, dataset.index))
    return dataset


def index_of(source: Source, cache: Path) -> Index:
    """Index a source anew, where its images are; BadData when they are no longer what was resolved."""
    if source.reader == "builtin":
        index, fingerprint = _builtin(source.location)
    else:
        tree = open_tree(source.location)
        if not tree.exists():
            raise BadData(f"dataset {source.name!r}: its folder {source.location} is not there on this machine")
        content = read_content(tree, cache, source.reader, level=source.level, boxes=source.boxes)
        index, fingerprint = content.index, content.fingerprint
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


def from_card(path: Path, card: DatasetCard, reference: str, root: str | None = None) -> Dataset:
    """The dataset of a card that was read from `path`; see `resolve`."""
    name = _name_of(path, reference)
    if card.reader == "builtin":
        index, fingerprint = _builtin(card.location or "", f"{path}: location: ")
        source = Source(name=name, reader="builtin", location=index.name, fingerprint=fingerprint, metric=card.metric)
        dataset = Dataset(source, index)
    else:
        dataset = _from_tree(tree_of(path, card, root), name, card)
    _check_card(path, card, dataset.index)
    return dataset


def tree_of(path: Path, card: DatasetCard, root: str | None = None) -> Tree:
    """Where a card's images lie; BadInput where they do not."""
    if card.location is None:
        return require_release(path.stem, card, data_root(root))
    beside = (
        card.location if is_remote(card.location) else str(path.absolute().parent / Path(card.location).expanduser())
    )
    tree = open_tree(beside)
    if not tree.exists():
        raise BadInput(f"{path}: location: no folder {tree.address!r}")
    return tree


def compare(card: DatasetCard, index: Index) -> list[tuple[Split, int, int]]:
    """(split, images in the card, images found) of every split that the card counts.

    Where the release has no val split, the images cut from train for it count as train.
    """
    found = dict(index.counts)
    if "val" not in (card.counts or {}):
        found["train"] += found["val"]
    return [(split, said, found[split]) for split, said in (card.counts or {}).items()]


def _options(reference: str) -> tuple[str, dict[str, str]]:
    """Split "name?key=value&key=value"; BadInput with the nearest key there is.

    A remote address keeps the options that are its store's own ("s3://bucket/birds?region=eu-west-1").
    """
    name, mark, query = reference.partition("?")
    if not mark or (not is_remote(reference) and open_tree(reference).exists()):
        return reference, {}
    options, others = {}, []
    for part in query.split("&"):
        key, equals, value = part.partition("=")
        if key in OPTIONS and equals:
            options[key] = value
        elif is_remote(reference):
            others.append(part)
        else:
            raise BadInput(f"dataset {reference!r}: option {part!r} is not KEY=VALUE{suggestion(key, OPTIONS)}")
    return name + ("?" + "&".join(others) if others else ""), options


def _name_of(path: Path, reference: str) -> str:
    return path.stem + "".join(reference.partition("?")[1:])


def _of_folder(tree: Tree, reference: str, options: dict[str, str]) -> Meaning:
    """A folder that is a release's own is read as the release, with its card; any other as a folder of images."""
    for name, path in card_paths("datasets").items():
        try:
            card = read_card(path)
        except BadInput:  # somebody's faulty card hides no folder
            continue
        if card.reader not in READERS and card.location is None and find_layout(card.reader).is_at(tree):
            said = "&".join(f"{key}={value}" for key, value in options.items())
            return Meaning(f"{name}?{said}" if said else name, read_card(path, options), tree=tree)
    if options:
        raise BadInput(f"dataset {reference!r}: {tree.address} is no release's folder; only those take options")
    return Meaning(folder_name(tree), tree=tree)


def _from_tree(tree: Tree, name: str, card: DatasetCard | None) -> Dataset:
    reader, level, boxes = (card.reader, card.level, card.boxes) if card else ("folder", "", False)
    content = read_content(tree, cache_folder(), reader, level=level, boxes=boxes)
    source = Source(
        name=name,
        reader=reader,
        location=tree.address,
        level=level,
        boxes=boxes,
        fingerprint=content.fingerprint,
        metric=card.metric if card else "top1",
    )
    return Dataset(source, content.index)


def _check_card(path: Path, card: DatasetCard, index: Index) -> None:
    """A card that says other classes or counts than the images show is wrong, or its images are incomplete.

    Of a user's own folder that is an error. A release may lie there in part or in another edition: that is told.
    """
    named = card.classes if isinstance(card.classes, tuple) else None
    if named is not None and set(named) != set(index.classes):
        odd = sorted(set(named) ^ set(index.classes))[0]
        side = "not among the images" if odd in named else "not in the card"
        others = [name for name in {*named, *index.classes} if name != odd]
        raise BadInput(f"{path}: classes: {odd!r} is {side}{suggestion(odd, others)}")
    wrong = _wrong_counts(card, index)
    if wrong and card.reader in READERS:
        raise BadInput(f"{path}: counts: {wrong[0]}")
    _tell_part(path.stem, wrong)


def _wrong_counts(card: DatasetCard, index: Index) -> list[str]:
    return [
        f"{split} is {said} in the card but {found} images"
        for split, said, found in compare(card, index)
        if said != found
    ]


def _tell_part(name: str, wrong: list[str]) -> None:
    if wrong:
        _log.warning("%s: not the whole release: %s; `bench data check` says more", name, ", ".join(wrong))


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
