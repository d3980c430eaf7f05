"""Build a pack's files: decode, resize and write every image once, in parallel and in order."""

import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import cast

import numpy as np
import PIL
from PIL import Image

from bench.data.decode import Unreadable, load, quiet, true_size
from bench.data.index import SPLITS, Box, Index, plain
from bench.data.rows import Canvas, Rows, stretch
from bench.data.source import Source
from bench.data.tree import Tree, open_tree, read
from bench.errors import BadData
from bench.storage import is_remote

IMAGES = "images.npy"
WIDEST = 2.5  # the canvas is at most this much longer than it is high, or the reverse
_SAMPLE = 1000  # images whose headers are looked at to choose the canvas
_TASK = 16  # images per task: handing over a task costs as much as opening an image
_REMOTE_WORKERS = 16  # where one waits for a store, not for the processor


@dataclass(frozen=True)
class Skipped:
    """A file that is in the dataset but not in its pack, and why."""

    file: str
    reason: str


Size = tuple[int, int]  # true width and height in px
Kept = list[tuple[int, int, int]]  # (position in the index, true width, true height) of every row
Result = Size | str  # an image that is in the pack now, or the reason why it is not


def build(
    place: Path, source: Source, index: Index, size: int, progress: Callable[[int, int], None], workers: int
) -> None:
    """Write images.npy, table.parquet and pack.json into `place`; BadData if not one image can be read."""
    with quiet():
        if source.reader == "builtin":
            kept, skipped = _draw(place / IMAGES, source.location, index, size, progress)
        else:
            kept, skipped = _decode(place / IMAGES, open_tree(source.location), index, size, progress, workers)
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


def _decode(
    path: Path, tree: Tree, index: Index, size: int, progress: Callable[[int, int], None], workers: int
) -> tuple[Kept, list[Skipped]]:
    """Decode every file into the array at `path`, in parallel."""
    images = list(zip(index.files, index.boxes or repeat(None, len(index)), strict=True))
    with ThreadPoolExecutor(max(workers, _REMOTE_WORKERS) if is_remote(tree.address) else workers) as pool:
        sample = images[:: -(-len(images) // _SAMPLE) or 1]
        canvas = choose_canvas(filter(None, pool.map(lambda image: _header(tree, *image), sample)), size)
        with Rows(path, len(images), canvas) as rows:

            def task(start: int) -> list[Result]:
                return [
                    _one(tree, *images[position], rows, position)
                    for position in range(start, min(start + _TASK, len(images)))
                ]

            # When anything fails, closing the map drops the tasks that have not begun, before the pool waits for them.
            with closing(cast(Generator[list[Result]], pool.map(task, range(0, len(images), _TASK)))) as tasks:
                return _kept(index, rows, itertools.chain.from_iterable(tasks), progress)


def _draw(
    path: Path, family: str, index: Index, size: int, progress: Callable[[int, int], None]
) -> tuple[Kept, list[Skipped]]:
    """Draw a built-in family's images into the array at `path`, split after split, in the order of its index."""
    from bench.data.builtin import draw_split

    images = itertools.chain.from_iterable(draw_split(family, split)[0] for split in SPLITS)
    first = next(images)
    height, width = first.shape[1:]
    canvas = choose_canvas([(width, height)], size)
    with Rows(path, len(index), canvas) as rows:

        def results() -> Iterator[Result]:
            for position, image in enumerate(itertools.chain([first], images)):
                rows.put(position, stretch(Image.fromarray(image.transpose(1, 2, 0)), canvas))
                yield width, height

        return _kept(index, rows, results(), progress)


def _kept(
    index: Index, rows: Rows, results: Iterable[Result], progress: Callable[[int, int], None]
) -> tuple[Kept, list[Skipped]]:
    """Sort the results, which are in the index's order, and leave only the rows that have an image."""
    kept: Kept = []
    skipped: list[Skipped] = []
    for position, result in enumerate(results):
        if isinstance(result, str):
            skipped.append(Skipped(plain(index.files[position]), result))
        else:
            kept.append((position, *result))
        progress(position + 1, len(index))
    rows.keep([position for position, *_ in kept])
    return kept, skipped


def _header(tree: Tree, file: str, box: Box | None) -> Size | None:
    try:
        with tree.open(file) as stream:
            return true_size(stream, box)
    except OSError:
        return None


def _one(tree: Tree, file: str, box: Box | None, rows: Rows, position: int) -> Result:
    """Put one image into its row."""
    try:
        image, size = load(read(tree, file), rows.canvas, box)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except Unreadable as error:
        return str(error)
    rows.put(position, stretch(image, rows.canvas))
    return size


def _write_table(path: Path, index: Index, kept: Kept) -> None:
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
