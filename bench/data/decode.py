"""Decode any image file to upright 8-bit RGB with Pillow, or say in one line why it cannot be.

Transparent pixels are laid on white. 16-bit gray is scaled by its full range, not by what the image holds, so
that equal values stay equal across images. Of an animation the first frame is taken. Imports no torch.
"""

import io
import logging
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from bench.data.index import Box
from bench.errors import BadData

MAX_PIXELS = 150_000_000  # a larger picture is refused: decoded it takes half a gigabyte
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # none that starts another program
# A JPEG may be decoded at half its scale if that is still this much larger than what is wanted. What comes out then
# differs from full decoding as little (41 dB, measured on photographs) as bicubic from Lanczos resampling.
_DRAFT = 1.5
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


class Unreadable(BadData):
    """An image file that cannot be decoded; the message is the reason, without the file's name."""


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode a file's bytes to upright RGB, uint8 `[H,W,3]`; raises Unreadable."""
    with quiet():
        return np.array(load(data)[0])


def load(
    data: bytes, wanted: tuple[int, int] | None = None, box: Box | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Return the upright RGB picture and its true (width, height); raises Unreadable.

    With `wanted` (width, height) a JPEG may be decoded at 1/2, 1/4 or 1/8 scale, never below _DRAFT times `wanted`.
    With `box` (left, top, right, bottom in px of the stored image) only what is inside it is kept; a box that has no
    pixel inside the image keeps the whole. Call inside `quiet`.
    """
    if not data:
        raise Unreadable("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            full = _checked_size(image)
            inside = _inside(box, full)
            turn = _orientation(image)
            size = inside[2] - inside[0], inside[3] - inside[1]
            if wanted:
                width, height = wanted[::-1] if turn in _SIDEWAYS else wanted
                image.draft(None, (int(_DRAFT * width * full[0] / size[0]), int(_DRAFT * height * full[1] / size[1])))
            image.load()
            upright = _rgb(image if size == full else _cropped(image, inside, full))
            size = size[::-1] if turn in _SIDEWAYS else size
        return (upright.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else upright), size
    except Unreadable:
        raise
    except Exception as error:  # a broken file raises nearly anything from within Pillow
        raise Unreadable(_reason(error)) from None


def true_size(stream: Any, box: Box | None = None) -> tuple[int, int] | None:
    """(width, height) of what `load` keeps, from an open file's header, or None; no PNG's orientation is waited for."""
    try:
        with Image.open(stream, formats=FORMATS) as image:
            left, top, right, bottom = _inside(box, _checked_size(image))
            width, height = right - left, bottom - top
            sideways = image.format != "PNG" and _orientation(image) in _SIDEWAYS
    except Exception:  # the reason is told when it is decoded
        return None
    return (height, width) if sideways else (width, height)


def _checked_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if not width or not height:
        raise Unreadable(f"it has no pixel ({width}x{height})")
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width}x{height} is more than {MAX_PIXELS:,} pixels")
    return width, height


def _inside(box: Box | None, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The whole pixels of `box` that are in the image; all of them where there is no box, or none inside."""
    whole = (0, 0, *size)
    if box is None:
        return whole
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    right, bottom = min(size[0], math.ceil(box[2])), min(size[1], math.ceil(box[3]))
    return (left, top, right, bottom) if right > left and bottom > top else whole


def _cropped(image: Image.Image, inside: tuple[int, int, int, int], full: tuple[int, int]) -> Image.Image:
    """Crop to a box in px of the full image, which may have been decoded at a smaller scale."""
    across, down = image.width / full[0], image.height / full[1]
    left, top, right, bottom = inside
    return image.crop(
        (math.floor(left * across), math.floor(top * down), math.ceil(right * across), math.ceil(bottom * down))
    )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where the EXIF block is broken, which is common and harmless."""
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return turn if turn in _UPRIGHT else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_gray(np.asarray(image) / 257)
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=255, neginf=0)
        return _from_gray(values * 255 if values.max() <= 1 else values)
    if image.has_transparency_data:
        front = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", front.size, "white"), front).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_gray(values: npt.NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "truncated file"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS:,} pixels"
    return f"broken file: {text or type(error).__name__}"


class _Users:
    """How many are inside `quiet`, and what to restore when the last one leaves."""

    lock = threading.Lock()
    inside = 0
    catching: Any = None
    level = logging.NOTSET


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings and log lines about odd files; any number of threads may be inside.

    `warnings.catch_warnings` alone is not enough: it is global, so overlapping threads would restore it wrongly.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    with _Users.lock:
        _Users.inside += 1
        if _Users.inside > 1:
            return
        _Users.catching = warnings.catch_warnings()
        _Users.catching.__enter__()
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        _Users.level = logging.getLogger("PIL").level
        logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)


def _leave() -> None:
    with _Users.lock:
        _Users.inside -= 1
        if not _Users.inside:
            _Users.catching.__exit__(None, None, None)
            logging.getLogger("PIL").setLevel(_Users.level)
