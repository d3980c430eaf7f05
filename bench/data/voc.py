"""Bounding boxes in XML files as Pascal VOC writes them: object/bndbox/{xmin,ymin,xmax,ymax}.

The files come from elsewhere: they are bounded in size, and one that declares a document type, without which there are
no entities to expand, is refused.
"""

import xml.etree.ElementTree as ElementTree

from bench.data.index import Box
from bench.data.tables import fault, number
from bench.data.tree import Tree, place
from bench.errors import BadInput, short

MAX_BYTES = 64 << 10  # the largest real one has 3 KB
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_boxes(tree: Tree, name: str) -> list[Box] | None:
    """The boxes of one file as they stand in it, at least one; None where the file is not there.

    Raises BadInput for a file that cannot be read, is no such XML, or holds no box.
    """
    try:
        with tree.open(name) as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"{place(tree, short(name))}: cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise BadInput(f"{place(tree, name)}: more than {MAX_BYTES >> 10} KiB; no annotation is so large")
    boxes = [_box(tree, name, entry) for entry in _parse(tree, name, data).iter("bndbox")]
    if not boxes:
        raise BadInput(f"{place(tree, name)}: field 'bndbox' is missing")
    return boxes


class _NoDeclarations(ElementTree.TreeBuilder):
    """Builds a tree, and refuses a document type."""

    def doctype(self, name: str, pubid: str, system: str) -> None:
        raise ValueError("it declares a document type")


def _parse(tree: Tree, name: str, data: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(data, parser=ElementTree.XMLParser(target=_NoDeclarations()))
    except ElementTree.ParseError as error:
        raise fault(tree, name, error.position[0], f"not valid XML: {error}") from None
    except (ValueError, LookupError) as error:
        raise BadInput(f"{place(tree, name)}: not valid XML: {error}") from None


def _box(tree: Tree, name: str, entry: ElementTree.Element) -> Box:
    for corner in _CORNERS:
        if entry.find(corner) is None:
            raise BadInput(f"{place(tree, name)}: field {corner!r} of a box is missing")
    left, top, right, bottom = (_pixel(tree, name, entry, corner) for corner in _CORNERS)
    if right < left or bottom < top:
        raise BadInput(f"{place(tree, name)}: a box from {left:g}, {top:g} to {right:g}, {bottom:g} px holds nothing")
    return left, top, right, bottom


def _pixel(tree: Tree, name: str, entry: ElementTree.Element, corner: str) -> float:
    word = entry.findtext(corner, "").strip()
    try:
        return number(tree, name, 0, word)
    except BadInput:
        raise BadInput(f"{place(tree, name)}: field {corner!r}: {word[:80]!r} is no number of pixels") from None
