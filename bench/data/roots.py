"""Where data lives: the data root, and a release's folder below it."""

import os
from collections.abc import Iterator

from bench.cache import cache_folder
from bench.data.card import DatasetCard
from bench.data.releases import find_layout
from bench.data.tree import Tree, open_tree
from bench.errors import BadInput
from bench.storage import is_remote, join, normal

ENVIRONMENT = "BENCH_DATA"


def data_root(given: str | None = None) -> str:
    """The folder or address of all data: `given` (--data-root), else BENCH_DATA, else in the user's cache folder."""
    return normal(given or os.environ.get(ENVIRONMENT) or str(cache_folder() / "data"))


def places(name: str, card: DatasetCard, root: str) -> Iterator[str]:
    """Where a release is looked for: ROOT/NAME, ROOT/NAME/FOLDER, ROOT/FOLDER of each of its folders, then ROOT."""
    yield join(root, name)
    for folder in card.folders:
        yield join(root, name, folder)
    for folder in card.folders:
        yield join(root, folder)
    yield root


def find_release(name: str, card: DatasetCard, root: str) -> Tree | None:
    """The first place where the card's release lies, or None."""
    layout = find_layout(card.reader)
    return next((tree for tree in map(open_tree, places(name, card, root)) if layout.is_at(tree)), None)


def require_release(name: str, card: DatasetCard, root: str) -> Tree:
    """The place where the card's release lies; BadInput says where it was looked for and what to do."""
    tree = find_release(name, card, root)
    if tree is not None:
        return tree
    if is_remote(root):
        open_tree(root).exists()  # a bucket that is not there, or gives no access, is told as such
    looked = ", ".join(dict.fromkeys(places(name, card, root)))
    raise BadInput(
        f"dataset {name!r} is not here (looked in {looked}); `bench data fetch {name}` says how to get it, and "
        f"--data-root or {ENVIRONMENT} where it is"
    )
