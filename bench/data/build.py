"""Build a pack's files: decode, resize and write every image once, in parallel and in order."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from bench.data.decode import Unreadable, load, quiet, true_size
from bench.data.index import SPLITS, Box, Index, plain
from bench.data.source import Source
from bench.data.tree import Tree, open_tree, read
from bench.errors import BadData

Canvas = tuple[int, int]  # width, height in px
WIDEST = 2.5  # the canvas is at most this much longer than it is high, or the reverse
_WINDOW = 512  # images in flight: bounds the memory of results that wait for a slow one before them


@dataclass(frozen=True)
class Skipped:
    """A file that is in the dataset but not in its pack, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Picture:
    """One image on the canvas, uint8 `[3,H,W]`, and its true size in px."""

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int


Result = Picture | str  # or the reason why there is no picture


def build(
    place: Path, source: Source, index: Index, size: int, progress: Callable[[int, int], None], workers: int
) -> None:
    """Write images.npy, table.parquet and pack.json into `place`; BadData if not one image can be read."""
    with ThreadPoolExecutor(workers) as pool, quiet():
        if source.reader == "builtin":
            canvas, results = _drawn(source.location, size)
        else:
            canvas, results = _files(open_tree(source.location), index, size, pool)
        kept, skipped = _write(place / "images.npy", index, canvas, results, progress)
    if not kept:
        first = "; ".join(f"{entry.file}: {entry.reason}" for entry in skipped[:3])
        raise BadData(f"dataset {source.name!r} has no usable image{f' ({first})' if first else ''}")
    _write_table(place / "table.parquet", index, kept)
    notes = {
        "name": source.name,
        "fingerprint": source.fingerprint,
        "classes": [plain(name) for name in index.classes],
        "metric": source.metric,
        "size": size,
        "skipped": [asdict(entry) for entry in skipped],
        "versions": {"pillow": PIL.__version__, "numpy": np.__version__},
    }
    (place / "pack.json").write_text(json.dumps(notes, indent=1), encoding="utf-8")


def choose_canvas(sizes: Iterable[tuple[int, int]], size: int) -> Canvas:
    """Canvas for images of these (width, height): the median aspect, short side `size` or their median if less.

    The long side is a multiple of 8; if it would exceed the short one by less than that the canvas is square.
    """
    array = np.array(list(sizes), dtype=np.float64).reshape(-1, 2)
    if not len(array):
        return size, size
    aspect = float(np.clip(np.median(array[:, 0] / array[:, 1]), 1 / WIDEST, WIDEST))
    short = max(min(size, int(np.median(array.min(axis=1)))), 1)
    long = round(short * max(aspect, 1 / aspect) / 8) * 8
    if long - short < 8:
        return short, short
    return (long, short) if aspect > 1 else (short, long)


def _files(tree: Tree, index: Index, size: int, pool: ThreadPoolExecutor) -> tuple[Canvas, Iterator[Result]]:
    images = list(zip(index.files, index.boxes or repeat(None, len(index)), strict=True))
    canvas = choose_canvas(filter(None, pool.map(lambda image: _header(tree, *image), images)), size)
    return canvas, _in_windows(pool, tree, images, canvas)


def _in_windows(
    pool: ThreadPoolExecutor, tree: Tree, images: list[tuple[str, Box | None]], canvas: Canvas
) -> Iterator[Result]:
    for start in range(0, len(images), _WINDOW):
        yield from pool.map(lambda image: _picture(tree, image[0], image[1], canvas), images[start : start + _WINDOW])


def _header(tree: Tree, file: str, box: Box | None) -> tuple[int, int] | None:
    try:
        with tree.open(file) as stream:
            return true_size(stream, box)
    except OSError:
        return None


def _picture(tree: Tree, file: str, box: Box | None, canvas: Canvas) -> Result:
    try:
        image, (width, height) = load(read(tree, file), canvas, box)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except Unreadable as error:
        return str(error)
    return Picture(_stretch(image, canvas), width, height)


def _stretch(image: Image.Image, canvas: Canvas) -> npt.NDArray[np.uint8]:
    """Resample to the canvas, antialiased; Pillow's integer arithmetic gives the same bytes on every machine."""
    if image.size != canvas:
        image = image.resize(canvas, Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(image).transpose(2, 0, 1)


def _drawn(family: str, size: int) -> tuple[Canvas, Iterator[Result]]:
    """A built-in family's images in the order of its index, split after split."""
    from bench.data.builtin import draw_split

    splits = (draw_split(family, split)[0] for split in SPLITS)
    images = itertools.chain.from_iterable(splits)
    first = next(images)
    height, width = first.shape[1:]
    canvas = choose_canvas([(width, height)], size)
    pictures = (
        Picture(_stretch(Image.fromarray(image.transpose(1, 2, 0)), canvas), width, height)
        for image in itertools.chain([first], images)
    )
    return canvas, pictures


def _write(
    path: Path, index: Index, canvas: Canvas, results: Iterator[Result], progress: Callable[[int, int], None]
) -> tuple[list[tuple[int, int, int]], list[Skipped]]:
    """Write the images as they come; return (position in the index, width, height) of those kept.

    Plain writes: on a full disk they fail with an error, where a memory map would end the process.
    """
    kept: list[tuple[int, int, int]] = []
    skipped: list[Skipped] = []
    width, height = canvas
    with path.open("wb") as stream:
        begin = _write_header(stream, (len(index), 3, height, width))
        for position, result in enumerate(results):
            if isinstance(result, str):
                skipped.append(Skipped(plain(index.files[position]), result))
            else:
                stream.write(np.ascontiguousarray(result.pixels).data)
                kept.append((position, result.width, result.height))
            progress(position + 1, len(index))
        stream.seek(0)
        if _write_header(stream, (len(kept), 3, height, width)) != begin:
            raise OSError("the array's header has changed its length")
    return kept, skipped


def _write_header(stream: IO[bytes], shape: tuple[int, ...]) -> int:
    """Write an .npy header, which numpy pads so that the first dimension can be corrected; return its end."""
    np.lib.format.write_array_header_1_0(
        stream, {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
    )
    return stream.tell()


def _write_table(path: Path, index: Index, kept: list[tuple[int, int, int]]) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {
            "file": plain(index.files[position]),
            "class": plain(index.classes[index.labels[position]]) if index.labels[position] >= 0 else None,
            "label": int(index.labels[position]),
            "split": index.splits[position],
            "width": width,
            "height": height,
        }
        for position, width, height in kept
    ]
    columns = [("file", "string"), ("class", "string"), ("label", "int64"), ("split", "string")]
    columns += [("width", "int32"), ("height", "int32")]
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in columns])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)
