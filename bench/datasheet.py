"""Datasets as people see them: one line per card, and the sheet of one. No card's text is taken for markup."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from bench.cache import cache_folder
from bench.cards import card_paths
from bench.data.card import Archive, DatasetCard, read_card
from bench.data.check import usual_level
from bench.data.dataset import Meaning, meaning, tree_of
from bench.data.index import Index
from bench.data.reading import read_index
from bench.data.releases import find_layout
from bench.data.roots import data_root, find_release, places
from bench.data.shelf import Kept, packs_of
from bench.data.source import Split
from bench.data.tree import Tree
from bench.errors import BenchError

SHOWN: tuple[Split, ...] = ("train", "val", "test", "unlabelled")
_WIDE = 140  # columns from which a title and the terms have room
_TERMS = 115  # of them the other columns take


def visible(text: object) -> str:
    """A text without control characters: names of files and cards come from elsewhere, and may hold any."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode()
        for letter in str(text)
    )


def say(text: object, style: str = "") -> Text:
    """A text as it is; a long word is folded, never cut."""
    return Text(visible(text), style=style, overflow="fold")


def listing(given: str | None, width: int) -> RenderableType:
    """Every dataset card in one line; nothing but marks is looked for under the data root."""
    root = data_root(given)
    wide = width >= _WIDE
    rows = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    rows.add_column("name", no_wrap=True)
    if wide:
        rows.add_column("title", no_wrap=True, overflow="ellipsis", max_width=31)
    for column in ("classes", "train", "val", "test", "unlab."):
        rows.add_column(column, justify="right", no_wrap=True)
    rows.add_column("metric", no_wrap=True)
    rows.add_column("where", overflow="fold", min_width=18)
    if wide:
        rows.add_column("terms", no_wrap=True, overflow="ellipsis", max_width=width - _TERMS)
    with ThreadPoolExecutor(16) as pool:  # a data root may be on a remote store
        for line in pool.map(lambda item: _line(item[0], item[1], root, wide), card_paths("datasets").items()):
            rows.add_row(*line)
    more = [] if wide else [say("terms and more: `bench data show NAME`", "dim")]
    return Group(say(f"data root: {root}", "dim"), rows, *more)


def _line(name: str, path: Path, root: str, wide: bool) -> list[RenderableType]:
    try:
        card = read_card(path)
    except BenchError as error:  # one broken card does not hide the others
        blank: list[RenderableType] = [""] * (len(SHOWN) + 2 + wide)
        return [say(name, "cyan"), *blank, say(f"unreadable: {error}", "red")]
    counts = card.counts or {}
    return [
        say(name, "cyan"),
        *([Text(visible(card.title))] if wide else []),
        say(card.class_count if card.class_count is not None else "?"),
        *(say(f"{counts[split]:,}" if split in counts else "-") for split in SHOWN),
        say(card.metric),
        say(_where(name, path, card, root)),
        *([Text(visible(card.licence.partition(";")[0]))] if wide else []),
    ]


def _where(name: str, path: Path, card: DatasetCard, root: str) -> str:
    if card.reader == "builtin":
        return "built-in"
    try:
        tree = find_release(name, card, root) if card.location is None else tree_of(path, card)
    except BenchError:
        return "not here"
    if tree is None:
        return f"not here, {_to_fetch(card)}"
    inner = tree.address.removeprefix(root).lstrip("/")
    return f"here: {inner if tree.address.startswith(f'{root}/') else tree.address}"


def _to_fetch(card: DatasetCard) -> str:
    """What a fetch would download."""
    sizes = [archive.size for archive in card.archives if archive.addresses]
    if not sizes:
        return "by hand"
    return decimal(sum(size for size in sizes if size)) if all(sizes) else "size unknown"


# ---- the sheet of one dataset


@dataclass(frozen=True)
class _Found:
    """Where a dataset lies and what its tables list, or why they cannot be read."""

    tree: Tree | None
    index: Index | None
    problem: str = ""


def sheet(reference: str, given: str | None = None) -> RenderableType:
    """All about one dataset: its card, where it was looked for, what is there, its packs. Raises as `meaning`."""
    meant = meaning(reference)
    root = data_root(given)
    found = _find(meant, root)
    rows = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    rows.add_column(style="cyan", no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row("name", say(meant.name, "bold"))
    if meant.card is not None:
        for key, value in _facts(meant, meant.card, found.index):
            rows.add_row(key, say(value))
    elif found.index:
        rows.add_row("classes", say(_classes(found.index.classes)))
    parts: list[RenderableType] = [rows, Text(), _counts(meant.card, found)]
    if meant.card is not None and meant.card.archives:
        parts += [Text(), _archives(meant.card)]
    return Group(*parts, Text(), _places(meant, found, root), Text(), _packs(packs_of(_base(meant), cache_folder())))


def _base(meant: Meaning) -> str:
    return meant.name.partition("?")[0]


def _find(meant: Meaning, root: str) -> _Found:
    card, tree = meant.card, meant.tree
    try:
        if card is not None and card.reader == "builtin":
            return _Found(None, None)
        if tree is None and card is not None and meant.path is not None:
            tree = tree_of(meant.path, card) if card.location is not None else find_release(_base(meant), card, root)
        if tree is None:
            return _Found(None, None)
        level, boxes = (card.level, card.boxes) if card else ("", False)
        return _Found(tree, read_index(tree, card.reader if card else "folder", level=level, boxes=boxes)[0])
    except BenchError as error:
        return _Found(tree, None, str(error))


def _facts(meant: Meaning, card: DatasetCard, index: Index | None) -> Iterator[tuple[str, object]]:
    """(field, value) of a card, in the order in which people ask."""
    yield from (("title", card.title), ("summary", card.summary))
    named = index.classes if index else card.classes if isinstance(card.classes, tuple) else None
    if named is not None:
        yield "classes", _classes(named)
    elif card.classes is not None:
        usual = "" if usual_level(card) else f" of the usual level; of {card.level} they are shown once it is here"
        yield "classes", f"{card.classes}{usual}"
    yield from (("metric", card.metric), ("terms", card.licence), ("citation", card.citation))
    yield from ((key, value) for key, value in (("homepage", card.homepage), ("by hand", card.by_hand)) if value)
    yield from (("version", card.version), ("reader", card.reader), ("card", meant.path or "built in, by its folder"))
    yield from _options(_base(meant), card)


def _classes(names: tuple[str, ...]) -> str:
    return f"{len(names)}: {', '.join(names)}" if names else "none"


def _options(name: str, card: DatasetCard) -> Iterator[tuple[str, str]]:
    """How its options are written in a reference, and which are set."""
    if card.reader in ("builtin", "folder"):
        return
    layout = find_layout(card.reader)
    if len(layout.levels) > 1:
        usual, *others = layout.levels
        ways = ", ".join(f'"{name}?level={level}"' for level in others)
        yield "levels", f"{usual} (the usual one); {ways}; now {card.level or usual}"
    if layout.boxes:
        yield "boxes", f'"{name}?boxes=true" crops each image to its bounding box; now {"on" if card.boxes else "off"}'


def _counts(card: DatasetCard | None, found: _Found) -> RenderableType:
    """Images per split: the card's beside those that the tables or folders list."""
    said = (card.counts if card else None) or {}
    rows = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    rows.add_column("images", style="cyan")
    for column in ("card", "found"):
        rows.add_column(column, justify="right")
    rows.add_column("")
    cut = bool(said) and "val" not in said
    for split in SHOWN:
        listed = found.index.counts[split] if found.index else None
        if said.get(split) or listed or (cut and split == "val"):
            shown = "" if listed is None else f"{listed:,}"
            rows.add_row(split, f"{said[split]:,}" if split in said else "-", shown, _remark(split, cut))
    return Group(rows, say(found.problem, "red")) if found.problem else rows


def _remark(split: Split, cut: bool) -> str:
    if cut and split == "train":
        return "no official val"
    return "cut from train: 20 % of each class, the same every time" if cut and split == "val" else ""


def _archives(card: DatasetCard) -> Table:
    rows = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    rows.add_column(style="cyan", no_wrap=True)
    rows.add_column(overflow="fold")
    for archive in card.archives:
        rows.add_row("archive", say(_archive_head(archive)))
        rows.add_row("", say(archive.checksum))
        for address in archive.addresses or ("no address: see by hand",):
            rows.add_row("", say(address))
    return rows


def _archive_head(archive: Archive) -> str:
    size = f"{decimal(archive.size)} ({archive.size:,} bytes)" if archive.size else "size not stated"
    return f"{archive.file}, {size}" + (f", unpacked into {archive.into}/" if archive.into else "")


def _places(meant: Meaning, found: _Found, root: str) -> RenderableType:
    card = meant.card
    rows = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    rows.add_column(style="cyan", no_wrap=True)
    rows.add_column(overflow="fold")
    if card is not None and card.reader == "builtin":
        rows.add_row("found", say("built-in: drawn where it is used, nothing is read"))
        return rows
    if found.tree is not None:
        rows.add_row("found", say(found.tree.address, "green"))
    else:
        rows.add_row("found", say("not here; " + _how(_base(meant), card), "yellow"))
    if meant.path is not None and card is not None and card.location is None:
        for number, place in enumerate(dict.fromkeys(places(_base(meant), card, root))):
            rows.add_row("" if number else "looked in", say(place))
    return rows


def _how(name: str, card: DatasetCard | None) -> str:
    if card is None or card.location is not None:
        return "its location is wrong"
    size = _to_fetch(card)
    return f"`bench data fetch {name}` says how" if size == "by hand" else f"`bench data fetch {name}` downloads {size}"


def _packs(packs: list[Kept]) -> RenderableType:
    rows = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    rows.add_column(style="cyan", no_wrap=True)
    rows.add_column(overflow="fold")
    for number, pack in enumerate(packs):
        what = f"{pack.name}: {pack.canvas[0]}x{pack.canvas[1]} px, {pack.images:,} images, {decimal(pack.bytes)}"
        rows.add_row("" if number else "packs", say(what))
    if not packs:
        rows.add_row("packs", say("none yet; made when first used, or by `bench data pack`"))
    return rows
