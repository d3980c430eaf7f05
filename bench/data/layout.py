"""The contract of a released dataset's layout: how its tables become rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from bench.data.index import Row, plain
from bench.data.tree import Stamps, Tree, place
from bench.errors import BadData, BadInput, UnknownName, short


@dataclass(frozen=True)
class Release:
    """What a layout reads: the folder, the stamps of the images in it, the wanted set of classes, and if boxes are."""

    tree: Tree
    stamps: Stamps
    level: str
    boxes: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one release lies on a disk.

    `read` gives every image's row; a listed image that is not among the stamps keeps its row, and is counted as
    missing later. It raises BadInput that names the file and line of a table that cannot be understood.
    """

    version: int  # raise it when the same files would give other rows
    marks: tuple[str, ...]  # relative names; where any of them is there, the release is there
    read: Callable[[Release], list[Row]]
    levels: tuple[str, ...] = ("",)  # names of its sets of classes, the usual one first
    boxes: bool = False  # whether rows can carry a bounding box
    here: Callable[[Tree], bool] | None = None  # where no single name is mark enough

    def is_at(self, tree: Tree) -> bool:
        """Whether the release lies in this folder."""
        return any(tree.has(mark) for mark in self.marks) or (self.here is not None and self.here(tree))

    def rows(self, tree: Tree, stamps: Stamps, level: str, boxes: bool = False) -> list[Row]:
        """Read and check the rows; `level` "" is the usual one, `boxes` whether rows need their bounding boxes.

        Raises BadInput, and UnknownName for a level.
        """
        if level and level not in self.levels:
            raise UnknownName("level", level, filter(None, self.levels))
        if boxes and not self.boxes:
            raise BadInput(f"{tree.address}: boxes: this release has no bounding boxes to crop to")
        rows = self.read(Release(tree, stamps, level or self.levels[0], boxes))
        _check(tree, rows)
        return rows


def _check(tree: Tree, rows: Sequence[Row]) -> None:
    """Tables come from elsewhere: no name may leave the folder, and no image may be listed twice."""
    seen: dict[str, str] = {}
    for row in rows:
        path = PurePosixPath(row.file.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or "\0" in row.file:
            raise BadInput(f"{tree.address}: a table lists {short(repr(row.file))}, which leaves the folder")
        if not _is_text(row.file, row.label):
            shown = short(f"{row.file!r} of class {row.label!r}")
            raise BadInput(f"{tree.address}: a table lists {shown}, which is not text")
        name = plain(path.as_posix())
        if name in seen:
            raise BadInput(f"{place(tree, short(row.file))}: listed twice, in {seen[name]} and in {row.split}")
        seen[name] = row.split
    if not rows:
        raise BadData(f"{tree.address}: its tables list no image")


def _is_text(file: str, label: str) -> bool:
    """Whether a file and a class can have these names; JSON and MATLAB files can spell half a character."""
    try:
        file.encode("utf-8", "surrogateescape")
        label.encode()
    except UnicodeEncodeError:
        return False
    return True
