"""Pictures with what is said of them, as small files for a page."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bench.errors import BadData

SIDE = 112  # px: the longer side of a small picture
WIDE = 1200  # px: that of a picture that a method made itself
QUALITY = 80  # of JPEG
MOST_PIXELS = 40_000_000  # a file that claims more is not opened

Mark = Literal["", "right", "wrong"]


@dataclass(frozen=True)
class Picture:
    """A JPEG file with its text alternative; `mark` says whether an answer was right."""

    data: bytes = field(repr=False)
    alt: str
    caption: str = ""
    mark: Mark = ""
    wide: bool = False


@dataclass(frozen=True)
class Row:
    """Pictures side by side, with what is said of all of them."""

    pictures: tuple[Picture, ...]
    caption: str = ""


@dataclass(frozen=True)
class Strip:
    """Rows of pictures under one title; `note` says how they were made; short rows `flow` beside each other."""

    title: str
    note: str
    rows: tuple[Row, ...]
    flow: bool = False

    @property
    def size(self) -> int:
        """Bytes of all pictures."""
        return sum(len(picture.data) for row in self.rows for picture in row.pictures)


@dataclass(frozen=True)
class Album:
    """The pictures of one trial; `missing` are the reasons for those that could not be made."""

    title: str
    trial_id: str
    strips: tuple[Strip, ...] = ()
    missing: tuple[str, ...] = ()


def jpeg(image: Tensor, side: int = SIDE) -> bytes:
    """A JPEG of an image `[3,H,W]` in 0..1, its longer side brought to `side` px; equal images give equal bytes."""
    from PIL import Image

    array = image.detach().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().contiguous().numpy()
    return _encoded(Image.fromarray(array), side, enlarge=True)


def reread(path: Path, side: int = WIDE) -> bytes:
    """A JPEG of a picture file; BadData for one that cannot be read or is too large."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise BadData(f"{path.name}: {picture.width} x {picture.height} px are too many for a page")
            return _encoded(picture.convert("RGB"), side, enlarge=False)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadData(f"{path.name}: cannot be read as a picture: {error}") from None


def _encoded(picture: "object", side: int, *, enlarge: bool) -> bytes:
    from PIL import Image

    assert isinstance(picture, Image.Image)
    scale = side / max(picture.size)
    if enlarge or scale < 1:
        width, height = (max(1, round(each * scale)) for each in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=QUALITY, optimize=True, subsampling=0)
    return sink.getvalue()
