"""Galleries on one PNG: narrow, light and in large letters, so that it can be read on a phone.

The letters are Pillow's own font, which knows ASCII and little else: other letters lose their accents, or become "?".
"""

import io
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from bench.errors import BadInput
from bench.pictures.gallery import Gallery, Line, Part
from bench.results.wording import visible

WIDTH, MARGIN = 840, 24  # px
TITLE, HEAD, TEXT, SMALL = 34, 28, 22, 18  # px: heights of letters
LEADING = 1.3
BETWEEN, APART = 4, 16  # px between the panels of a draw, and between draws
ACROSS = 6  # panels beside the original, at most
LARGEST = 190  # px: side of a panel, at most
PAPER, INK, PALE, RULE, ACCENT = "#ffffff", "#1f2328", "#57606a", "#d0d7de", "#0969da"
MADE_BY = ("Software", "bench views")
LONGEST = 300  # letters of one text


def sheet(title: str, notes: Sequence[str], galleries: Sequence[Gallery]) -> Image.Image:
    """One picture, `WIDTH` px wide: the title, what is said of it all, and the galleries below each other."""
    page = _Page()
    page.write(title, TITLE)
    for note in notes:
        page.write(note, SMALL, PALE)
    for gallery in galleries:
        page.rule()
        page.write(gallery.title, HEAD, ACCENT)
        for part in gallery.parts:
            _part(page, part)
        for note in gallery.notes:
            page.write(note, TEXT, PALE)
    return page.finished()


def save(picture: Image.Image, path: Path) -> int:
    """Write a PNG and return its size in bytes; the folder is made.

    A file of this command is replaced. Raises BadInput for any other file that is there, and where none can be written.
    """
    check_place(path)
    info = PngInfo()
    info.add_text(*MADE_BY)
    sink = io.BytesIO()
    picture.save(sink, "PNG", pnginfo=info, optimize=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(sink.getvalue())
        temporary.replace(path)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from None
    return len(sink.getvalue())


def check_place(path: Path) -> None:
    """Raise BadInput where `save` would: for another's file, or a folder that cannot be written to."""
    if path.suffix.lower() != ".png":
        raise BadInput(f"--to {path}: the picture is a PNG; name a file that ends in .png, or a folder that is there")
    if path.exists() and not _ours(path):
        raise BadInput(f"{path}: is there already and no picture of `bench views`, so it is not replaced; name another")
    folder = next(each for each in (path.absolute().parent, *path.absolute().parents) if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise BadInput(f"{path}: cannot be written: no leave to write to {folder}")


def _ours(path: Path) -> bool:
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return picture.info.get(MADE_BY[0]) == MADE_BY[1]
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return False


def legible(text: object) -> str:
    """`text` on one line in letters that the font has, cut in its middle where it is very long."""
    shown = visible(text)
    if len(shown) > LONGEST:
        shown = f"{shown[: LONGEST // 2]} ... {shown[-LONGEST // 3 :]}"
    return "".join(letter if _has(letter) else _plain(letter) for letter in shown)


def _plain(letter: str) -> str:
    bare = "".join(part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part))
    return bare if bare and all(map(_has, bare)) else "" if unicodedata.combining(letter) else "?"


@lru_cache(maxsize=4096)
def _has(letter: str) -> bool:
    return letter == " " or (letter.isprintable() and _glyph(letter) != _glyph("\uffff"))


def _glyph(letter: str) -> bytes:
    return bytes(_font(TEXT).getmask(letter))


@lru_cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


@dataclass
class _Item:
    """A picture or a text at its place, px."""

    left: int
    top: int
    what: "Image.Image | str"
    size: int = 0
    colour: str = INK


class _Page:
    """Items from the top down; drawn when all are there, as the height is known then."""

    def __init__(self) -> None:
        self.items: list[_Item] = []
        self.rules: list[int] = []
        self.top = MARGIN

    def write(self, text: object, size: int = TEXT, colour: str = INK) -> None:
        """A text over as many lines as it needs."""
        for line in wrapped(text, size, WIDTH - 2 * MARGIN):
            self.items.append(_Item(MARGIN, self.top, line, size, colour))
            self.top += round(size * LEADING)
        self.top += size // 4

    def rule(self) -> None:
        """A line across."""
        self.top += 14
        self.rules.append(self.top)
        self.top += 18

    def finished(self) -> Image.Image:
        """The page, as high as it has become."""
        picture = Image.new("RGB", (WIDTH, self.top + MARGIN), PAPER)
        draw = ImageDraw.Draw(picture)
        for place in self.rules:
            draw.line([(MARGIN, place), (WIDTH - MARGIN, place)], fill=RULE, width=2)
        for item in self.items:
            if isinstance(item.what, str):
                draw.text((item.left, item.top), item.what, fill=item.colour, font=_font(item.size))
            else:
                picture.paste(item.what, (item.left, item.top))
        return picture


def wrapped(text: object, size: int, width: int) -> list[str]:
    """Lines of at most `width` px; a word that is wider is cut."""
    lines = [""]
    for word in legible(text).split():
        longer = f"{lines[-1]} {word}".lstrip()
        if _fits(longer, size, width):
            lines[-1] = longer
            continue
        lines[-1:] = [*filter(None, lines[-1:]), *_pieces(word, size, width)]
    return lines


def _pieces(word: str, size: int, width: int) -> list[str]:
    """A word cut into pieces that fit."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and not _fits(pieces[-1] + letter, size, width):
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _fits(text: str, size: int, width: int) -> bool:
    return bool(_font(size).getlength(text) <= width)


def _part(page: _Page, part: Part) -> None:
    """A hyperparameter: what it is, then its lines, a wider gap between photographs."""
    page.top += 8
    if part.title:
        page.write(part.title, HEAD)
        page.write(part.note, TEXT, PALE)
    if part.panels:
        page.write(f"Left the photograph, then draws; in each: {', '.join(part.panels)}.", SMALL, PALE)
    photo = None
    for line in part.lines:
        page.top += 14 if photo is not None and line.photo is not photo else 0
        photo = line.photo
        _line(page, line)


def _line(page: _Page, line: Line) -> None:
    """A caption, and below it the photograph and its draws."""
    page.top += 6
    if line.caption:
        page.write(line.caption, TEXT)
    if line.refused:
        page.write(f"refused: {line.refused}", SMALL, PALE)
        return
    panels = len(line.draws[0])
    beside = min(max(1, ACROSS // panels), len(line.draws))  # draws on one row
    columns = min(beside * panels, ACROSS)
    free = WIDTH - 2 * MARGIN - APART * beside - BETWEEN * (columns - beside)
    side = min(LARGEST, free // (columns + 1))
    top = page.top
    page.items.append(_Item(MARGIN, top, _photo(line.photo.picture, side)))
    for start in range(0, len(line.draws), beside):
        left = MARGIN + side + APART
        for draw in line.draws[start : start + beside]:
            left = _draw(page, draw, left, top, side, columns) + APART
        top = page.top
    page.top = max(page.top, top) + 6


def _draw(page: _Page, draw: Sequence[tuple[Tensor, str]], left: int, top: int, side: int, columns: int) -> int:
    """The panels of one draw from `left` on; returns where they end. `page.top` moves below them."""
    largest = max(max(picture.shape[1:]) for picture, _ in draw)
    end = left
    for number, (picture, said) in enumerate(draw):
        place = left + (number % columns) * (side + BETWEEN)
        if number and number % columns == 0:
            top = page.top
        shown = _panel(picture, side, largest)
        page.items.append(_Item(place, top, shown))
        below = top + side + BETWEEN
        for text in wrapped(said, SMALL, side) if said else ():
            page.items.append(_Item(place, below, text, SMALL, PALE))
            below += round(SMALL * LEADING)
        page.top, end = max(page.top, below), max(end, place + side)
    return end


def _panel(picture: Tensor, side: int, largest: int) -> Image.Image:
    """A picture `[3,h,w]`, drawn so that one of `largest` px has `side` px."""
    array = picture.detach().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return _scaled(Image.fromarray(array), side / largest)


def _photo(picture: Image.Image, side: int) -> Image.Image:
    """The whole photograph, its longer side `side` px."""
    return _scaled(picture, side / max(picture.size))


def _scaled(picture: Image.Image, scale: float) -> Image.Image:
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC)
