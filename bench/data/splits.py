"""Read a folder's splits.csv (file, class, split); every fault is one error with its file, line and field."""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from bench.data.index import Row, plain
from bench.data.source import Split
from bench.data.tables import fault, table_bytes
from bench.data.tree import Tree, place
from bench.errors import BadInput, suggestion

NAME = "splits.csv"
WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "unlabelled": "unlabelled",
    "unlabeled": "unlabelled",
    "extra": "unlabelled",
    "extraimages": "unlabelled",
}
_COLUMNS = ("file", "class", "split")

_Line = tuple[int, str, str, Split]


def read_splits(tree: Tree, images: Iterable[str]) -> list[Row]:
    """Return the row of every line; `images` are the relative names that the folder holds."""
    names = {plain(image): image for image in images}
    raw = list(_lines(tree))
    rows = [(line, file, label, _split(tree, line, word)) for line, file, label, word in raw]
    _check_files(tree, rows, names)
    _check_classes(tree, rows)
    return [Row(names[plain(file)], label, split) for _, file, label, split in rows]


def listed_files(tree: Tree) -> list[str]:
    """The names in splits.csv as they are written there; BadInput where it is not such a table."""
    return [file for _, file, _, _ in _lines(tree)]


def _lines(tree: Tree) -> Iterator[tuple[int, str, str, str]]:
    """Yield (line number, file, class, split word), stripped."""
    reader = csv.reader(io.StringIO(_text(tree), newline=""), strict=True)
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        places = [_column(tree, header, column) for column in _COLUMNS]
        empty = True
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            empty = False
            if len(cells) != len(header):
                raise _fault(tree, reader.line_num, f"{len(cells)} fields where the header has {len(header)}")
            file, label, word = (cells[place].strip() for place in places)
            yield reader.line_num, file, plain(label), word
    except csv.Error as error:
        raise _fault(tree, reader.line_num, f"not valid CSV: {error}") from None
    if empty:
        raise BadInput(f"{place(tree, NAME)}: lists no image")


def _text(tree: Tree) -> str:
    data = table_bytes(tree, NAME)
    try:
        text = data.decode("utf-8-sig")  # spreadsheets put a byte order mark before UTF-8
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        saved = "it is UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte {error.start}"
        raise _fault(tree, line, f"not UTF-8 text ({saved}); save it as UTF-8") from None
    if not text.strip():
        raise BadInput(f"{place(tree, NAME)}: empty; its first line must be {','.join(_COLUMNS)}")
    return text


def _column(tree: Tree, header: list[str], column: str) -> int:
    if header.count(column) == 1:
        return header.index(column)
    if column in header:
        raise _fault(tree, 1, f"column {column!r} is there {header.count(column)} times")
    others = [name for name in header if name not in _COLUMNS]
    hint = "; fields are separated by commas" if len(header) == 1 else suggestion(column, others)
    raise _fault(tree, 1, f"column {column!r} is missing{hint}")


def _split(tree: Tree, line: int, word: str) -> Split:
    if word.lower() not in WORDS:
        raise _fault(tree, line, f"split {word!r} is unknown{suggestion(word.lower(), WORDS)}")
    return WORDS[word.lower()]


def _check_files(tree: Tree, rows: list[_Line], names: dict[str, str]) -> None:
    first: dict[str, int] = {}
    missing = []
    for line, file, _, _ in rows:
        name = plain(file)
        pure = PurePosixPath(file.replace("\\", "/"))
        if not file:
            raise _fault(tree, line, "field 'file' is blank")
        if pure.is_absolute() or ".." in pure.parts or ":" in "".join(pure.parts[:1]):
            raise _fault(tree, line, f"file {file!r} leaves the folder; give it relative to {tree.address}")
        if name in first:
            raise _fault(tree, line, f"file {file!r} is listed twice, first in line {first[name]}")
        first[name] = line
        if name not in names:
            missing.append((line, file))
    if missing:
        raise _missing(tree, missing, names)


def _missing(tree: Tree, missing: list[tuple[int, str]], names: dict[str, str]) -> BadInput:
    line, file = missing[0]
    if len(missing) == 1:
        if tree.has(file):
            return _fault(tree, line, f"file {file!r} is not an image of a known format")
        return _fault(tree, line, f"file {file!r} is not there{_nearest(file, names)}")
    shown = ", ".join(f"{file!r} (line {line})" for line, file in missing[:3])
    return _fault(tree, line, f"{len(missing)} files are not there: {shown}{_nearest(file, names)}")


def _nearest(file: str, names: dict[str, str]) -> str:
    """Suggest among the names in the same folder first: matching against 20,000 names takes seconds."""
    folder = str(PurePosixPath(file).parent)
    near = [name for name in names if str(PurePosixPath(name).parent) == folder]
    hint = suggestion(file, near[:5000] or list(names)[:5000])
    return hint if hint.startswith("; did") else ""


def _check_classes(tree: Tree, rows: list[_Line]) -> None:
    """A labelled file has a class, and a folder that is named as a class holds only that class."""
    classes = {label for _, _, label, split in rows if split != "unlabelled"}
    for line, file, label, split in rows:
        if split == "unlabelled":
            continue
        folders = [plain(part) for part in PurePosixPath(file).parts[:-1]]
        named = [part for part in folders if part in classes]
        if not label:
            hint = f"; did you mean {folders[-1]!r}?" if folders else ""
            raise _fault(tree, line, f"field 'class' is blank for a {split} image{hint}")
        if named and label not in named:
            raise _fault(tree, line, f"class {label!r} contradicts the folder; did you mean {named[-1]!r}?")


def _fault(tree: Tree, line: int, message: str) -> BadInput:
    return fault(tree, NAME, line, message)
