"""Read the tables of a release (text, CSV, JSON, MATLAB): every fault is one error with its file and line.

Tables come from elsewhere. They are bounded in size, and nothing in them is run.
"""

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.data import matfile
from bench.data.tree import Tree, place
from bench.errors import BadInput, BenchError, short, suggestion

MAX_BYTES = 64 << 20  # the largest table of the known releases has 10 MB


def table_bytes(tree: Tree, name: str) -> bytes:
    """A table's bytes; BadInput when it is missing, unreadable or larger than any real one."""
    try:
        with tree.open(name) as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadInput(f"{place(tree, name)}: this table of the release is missing") from None
    except OSError as error:
        raise BadInput(f"{place(tree, name)}: cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise BadInput(f"{place(tree, name)}: more than {MAX_BYTES >> 20} MiB; no table of the release is so large")
    return data


def text(tree: Tree, name: str) -> str:
    """A table's text, UTF-8."""
    data = table_bytes(tree, name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise fault(tree, name, data.count(b"\n", 0, error.start) + 1, "not UTF-8 text") from None


def lines(tree: Tree, name: str, fields: int | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, words) of every line that is not blank.

    With `fields`, a line is cut into that many words, the last of which may hold blanks; fewer are a fault.
    """
    for number, line in enumerate(text(tree, name).splitlines(), start=1):
        words = line.split() if fields is None else line.split(maxsplit=fields - 1)
        if not words:
            continue
        if fields is not None and len(words) != fields:
            raise fault(tree, name, number, f"{len(words)} fields where {fields} are needed")
        yield number, [word.strip() for word in words]


def whole(tree: Tree, name: str, line: int, word: str) -> int:
    """A whole number in a table."""
    try:
        return int(word)
    except ValueError:
        raise fault(tree, name, line, f"{word!r} is no whole number") from None


def number(tree: Tree, name: str, line: int, word: str) -> float:
    """A finite number in a table."""
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e9:
        raise fault(tree, name, line, f"{word!r} is no number of pixels")
    return value


def known(tree: Tree, name: str, line: int, word: str, names: Sequence[str] | dict[str, Any], kind: str) -> str:
    """A word that another table defines."""
    if word not in names:
        raise fault(tree, name, line, f"{kind} {word!r} is unknown{suggestion(word, names)}")
    return word


def records(tree: Tree, name: str, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, the cells of `columns`, stripped) of a CSV file whose first line names its columns."""
    reader = csv.reader(io.StringIO(text(tree, name), newline=""), strict=True)
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        for column in columns:
            if header.count(column) != 1:
                raise fault(tree, name, 1, f"column {column!r} is there {header.count(column)} times, not once")
        places = [header.index(column) for column in columns]
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise fault(tree, name, reader.line_num, f"{len(cells)} fields where the header has {len(header)}")
            yield reader.line_num, [cells[where].strip() for where in places]
    except csv.Error as error:
        raise fault(tree, name, reader.line_num, f"not valid CSV: {error}") from None


def json_table(tree: Tree, name: str) -> Any:
    """The value of a JSON table."""
    try:
        return json.loads(text(tree, name))
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise fault(tree, name, line, f"not valid JSON: {error}") from None


def matlab(tree: Tree, name: str, variable: str) -> Any:
    """One variable of a `.mat` file as scipy reads it, squeezed; nothing else of the file is read."""
    import scipy.io

    data = table_bytes(tree, name)
    try:
        matfile.check(data)
        found = scipy.io.loadmat(io.BytesIO(data), squeeze_me=True, variable_names=[variable])
    except Exception as error:  # a damaged file raises nearly anything from within scipy
        raise BadInput(f"{place(tree, name)}: not a readable MATLAB file: {error or type(error).__name__}") from None
    if variable not in found:
        raise BadInput(f"{place(tree, name)}: variable {variable!r} is missing")
    return found[variable]


def matlab_bytes(**variables: Any) -> bytes:
    """The bytes of a `.mat` file that holds these variables."""
    import scipy.io

    stream = io.BytesIO()
    scipy.io.savemat(stream, variables)
    return stream.getvalue()


@contextmanager
def staged(tree: Tree, folder: str, tables: Mapping[str, bytes], folders: Sequence[str] = ()) -> Iterator[str]:
    """A temporary root in which `folder` holds `tables` and empty `folders`: what torchvision's classes read.

    They list a release from its tables alone; so the release may have any folder's name, and lie on a remote store.
    The tables are checked before and written anew; what torchvision raises nevertheless is one BadInput.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="bench-tables-") as root:
            for inner in folders:
                (Path(root) / folder / inner).mkdir(parents=True, exist_ok=True)
            for table, data in tables.items():
                copy = Path(root) / folder / table
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(data)
            yield root
    except BenchError:
        raise
    except Exception as error:  # torchvision promises nothing about tables that it does not expect
        reason = f"{type(error).__name__}: {error}"
        raise BadInput(f"{tree.address}: torchvision cannot read the tables of this release ({reason})") from error


def file_name(tree: Tree, name: str, line: int, word: str) -> str:
    """A file's name in a table, without any folder."""
    if not word.isprintable() or set(word) & set("/\\") or word in ("", ".", ".."):
        raise fault(tree, name, line, f"{word[:80]!r} is no file's name")
    return word


def fault(tree: Tree, name: str, line: int, message: str) -> BadInput:
    """The error of one line of a table."""
    return BadInput(f"{place(tree, name)}: line {line}: {short(message)}")
