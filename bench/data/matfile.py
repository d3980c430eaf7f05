"""Look over a MATLAB 5 file before scipy reads it, so that no damaged or hostile one takes memory, time or the process.

scipy trusts the sizes in a file: a few wrong bytes make it reserve gigabytes, and deep nesting ends the process. Here
every element must lie inside the one that holds it, and every array must have the bytes that its dimensions need.
The format: "MAT-File Format", MathWorks; the numbers below are its tables 1-1 to 1-3.
"""

import math
import struct
import zlib
from typing import NamedTuple

MAX_BYTES = 256 << 20  # of all variables, decompressed; those of the known releases have 40 MB
_DEEPEST = 8
_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 12, 13})
_LETTERS = frozenset({1, 2, 3, 4, 16, 17, 18})
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMERIC = range(6, 16)  # double, single and the integers
_COMPLEX = 0x0800


class _Element(NamedTuple):
    kind: int
    body: memoryview


def check(data: bytes) -> None:
    """Raise ValueError with a reason if this is no well-formed MATLAB 5 file of numbers, text, cells and structs."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER])
    version = data[125:126] if order == "<" else data[124:125]
    if order is None or version != b"\1" or 0 in data[:4]:
        raise ValueError("not a MATLAB 5 file")
    left, position = MAX_BYTES, _HEADER
    while position < len(data):
        kind, size = _unpack(f"{order}II", data, position)
        position += 8
        body = memoryview(data)[position : position + size]
        if len(body) < size:
            raise ValueError("it is cut short")
        position += size
        left -= _check_variable(kind, body, order, left)


def _check_variable(kind: int, body: memoryview, order: str, left: int) -> int:
    """Check one variable and return its decompressed size in bytes."""
    if kind == _COMPRESSED:
        body = memoryview(_inflate(body, left))
        kind, size = _unpack(f"{order}II", body, 0)
        if size != len(body) - 8:
            raise ValueError("a compressed variable has another size than it says")
        body = body[8:]
    if kind != _MATRIX:
        raise ValueError(f"an element of type {kind} stands where a variable should")
    _check_matrix(body, order, 0)
    return len(body)


def _inflate(body: memoryview, left: int) -> bytes:
    try:
        inflated = zlib.decompressobj().decompress(body, left + 1)
    except zlib.error as error:
        raise ValueError(f"a compressed variable is broken ({error})") from None
    if len(inflated) > left:
        raise ValueError(f"its variables have more than {MAX_BYTES >> 20} MiB")
    return inflated


def _check_matrix(body: memoryview, order: str, depth: int) -> None:
    """Check one array: its flags, dimensions and name, and that what follows is what they need."""
    if not len(body) and depth:  # an empty cell
        return
    if depth > _DEEPEST:
        raise ValueError("its cells are nested too deeply")
    elements = _elements(body, order)
    if [element.kind for element in elements[:2]] != [6, 5] or len(elements) < 4 or elements[2].kind not in (1, 16):
        raise ValueError("a variable has no valid flags, dimensions and name")
    (flags, _), dims = _unpack(f"{order}II", elements[0].body, 0), _whole_numbers(elements[1].body, order)
    if len(dims) < 2 or len(dims) > 32 or min(dims) < 0:
        raise ValueError("an array has impossible dimensions")
    _check_values(flags, math.prod(dims), elements[3:], order, depth)


def _check_values(flags: int, count: int, elements: list[_Element], order: str, depth: int) -> None:
    kind = flags & 0xFF
    if kind in (_CELL, _STRUCT):
        fields = 1 if kind == _CELL else _field_count(elements, order)
        inner = elements if kind == _CELL else elements[2:]
        if len(inner) != count * fields or (not fields and count > 1) or any(one.kind != _MATRIX for one in inner):
            raise ValueError("an array has not as many entries as its dimensions need")
        for element in inner:
            _check_matrix(element.body, order, depth + 1)
    elif kind == _CHAR or kind in _NUMERIC:
        allowed = _LETTERS if kind == _CHAR else _NUMBERS
        parts = 2 if flags & _COMPLEX and kind != _CHAR else 1
        if len(elements) != parts or any(one.kind not in allowed or len(one.body) < count for one in elements):
            raise ValueError("an array has not as many bytes as its dimensions need")
    else:
        raise ValueError(f"an array is of class {kind}, which holds neither numbers, text, cells nor structs")


def _field_count(elements: list[_Element], order: str) -> int:
    if [element.kind for element in elements[:2]] != [5, 1]:
        raise ValueError("a struct has no names of its fields")
    (length,) = _whole_numbers(elements[0].body, order) or (0,)
    if length < 1 or len(elements[1].body) % length:
        raise ValueError("a struct has impossible names of its fields")
    return len(elements[1].body) // length


def _elements(body: memoryview, order: str) -> list[_Element]:
    """The elements that fill an array's body, each padded to 8 bytes; those of up to 4 bytes are packed into 8."""
    found, position = [], 0
    while position < len(body):
        kind, size = _unpack(f"{order}II", body, position)
        begin = position + 8
        if kind >> 16:
            kind, size, begin = kind & 0xFFFF, kind >> 16, position + 4
            if size > 4:
                raise ValueError("a packed element has more than 4 bytes")
        if size > len(body) - begin:
            raise ValueError("an element is longer than what holds it")
        found.append(_Element(kind, body[begin : begin + size]))
        position = position + 8 if begin == position + 4 else begin + -(-size // 8) * 8
    return found


def _whole_numbers(body: memoryview, order: str) -> tuple[int, ...]:
    return struct.unpack(f"{order}{len(body) // 4}i", body[: len(body) // 4 * 4])


def _unpack(form: str, data: bytes | memoryview, position: int) -> tuple[int, int]:
    try:
        first, second = struct.unpack_from(form, data, position)
    except struct.error:
        raise ValueError("it is cut short") from None
    return first, second
