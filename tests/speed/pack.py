"""Packing photographs against only decoding them, on all cores, in one run.

Draws distinct JPEG files of 500 px (quality 90, 4:2:0) with about as many bytes as photographs of that size have. Bare
loops decode every file, with torchvision's `decode_jpeg` and with Pillow, on as many threads as a pack takes.
`open_pack` packs them for 64 px and 224 px views, each time anew, after `resolve` has read the files once for their
digests. Every file is in the page cache. A shared machine disturbs the clock more than processor time, so both are
told. The resize of a whole image to the canvas is measured alone too: where images cannot be decoded at half their
scale, it comes on top of decoding.

python -m tests.speed.pack [--images 12000]
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from bench.cache import ENVIRONMENT
from bench.data.build import choose_canvas
from bench.data.dataset import resolve
from bench.data.pack import open_pack, pack_size, usable_cores
from bench.data.rows import stretch
from bench.data.source import Source
from tests.speed.figures import Figure, Taken, alternate, main, ratio

WIDTH, HEIGHTS = 500, (333, 375, 375, 375, 400, 500)
GRAIN = ((4, 45), (16, 25), (64, 14), (160, 10), (WIDTH, 9))  # fields across the width, and their strength
VIEWS = (64, 224)
GOAL = 0.85


def make(folder: Path, count: int) -> None:
    """Write `count` distinct JPEG files of two classes."""
    for label in "ab":
        (folder / label).mkdir(parents=True)

    def one(number: int) -> None:
        image = drawn(np.random.default_rng(number))
        image.save(folder / "ab"[number % 2] / f"{number:05d}.jpg", quality=90, subsampling="4:2:0")

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(one, range(count)))


def drawn(generator: np.random.Generator) -> Image.Image:
    """Random fields from coarse to fine."""
    height = int(generator.choice(HEIGHTS))
    total = np.full((height, WIDTH, 3), 128, np.float32)
    for across, strength in GRAIN:
        field = generator.normal(0, strength, (3, max(2, height * across // WIDTH), across)).astype(np.float32)
        for channel in range(3):
            plane = Image.fromarray(field[channel]).resize((WIDTH, height), Image.Resampling.BICUBIC)
            total[..., channel] += np.asarray(plane)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def loop(files: Sequence[str], one: Callable[[str], None]) -> None:
    """Do `one` with every file, on all cores."""

    def task(start: int) -> None:
        for file in files[start : start + 16]:
            one(file)

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(task, range(0, len(files), 16)))


def by_torchvision(file: str) -> None:
    """Decode a file to a tensor."""
    decode_jpeg(read_file(file), ImageReadMode.RGB)


def by_pillow(file: str) -> None:
    """Decode a file to a picture."""
    with Image.open(file) as image:
        image.load()


def resizer(canvas: tuple[int, int]) -> Callable[[str], None]:
    """Resize one and the same decoded picture for every file."""
    picture = drawn(np.random.default_rng(0))

    def one(_: str) -> None:
        stretch(picture, canvas)

    return one


def digest(data: Path, cache: Path) -> None:
    """Read every file once."""
    shutil.rmtree(cache, ignore_errors=True)
    resolve(str(data))


def pack(source: Source, cache: Path, view: int) -> None:
    """Pack for views of `view` px."""
    shutil.rmtree(cache / "packs", ignore_errors=True)
    open_pack(source, pack_size(view), cache)


def measure(count: int, arguments: argparse.Namespace) -> Sequence[Figure]:
    """Images per second of each."""
    with tempfile.TemporaryDirectory(prefix="bench-speed-") as name:
        data, cache = Path(name) / "data", Path(name) / "cache"
        os.environ[ENVIRONMENT] = str(cache)
        make(data, count)
        files = sorted(str(path) for path in data.rglob("*.jpg"))
        size = sum(Path(file).stat().st_size for file in files) / count
        source = resolve(str(data)).source
        things: dict[str, Callable[[], None]] = {
            "decode_jpeg": lambda: loop(files, by_torchvision),
            "Pillow": lambda: loop(files, by_pillow),
            "digests": lambda: digest(data, cache),
        }
        for view in VIEWS:
            canvas = choose_canvas([(WIDTH, height) for height in HEIGHTS], pack_size(view))
            things[f"resize {view}"] = partial(loop, files, resizer(canvas))
            things[f"pack {view}"] = partial(pack, source, cache, view)
        taken = alternate(things, arguments.repeats)
    where = f"{count:,} images of {size / 1000:.0f} kB, {usable_cores()} cores"
    return [figure(taken, view, count, where) for view in VIEWS]


def figure(taken: dict[str, Taken], view: int, count: int, where: str) -> Figure:
    """The line of one size."""

    def shown(name: str) -> str:
        one = taken[name]
        return f"{count / one.seconds:,.0f} images/s ({1000 * statistics.median(one.cpu) / count:.2f} ms CPU each)"

    packed, decoded = taken[f"pack {view}"], taken["decode_jpeg"]
    by_cpu = statistics.median(d / p for d, p in zip(decoded.cpu, packed.cpu, strict=True))
    return Figure(
        f"packing for {view} px views, against a bare decode_jpeg loop",
        f"pack {shown(f'pack {view}')}, decode_jpeg {shown('decode_jpeg')}, by CPU time {by_cpu:.2f} x; "
        f"one full-size resize {shown(f'resize {view}')}, Pillow's decoding {shown('Pillow')}, "
        f"digests {shown('digests')}; {where}",
        ratio(decoded, packed),
        "x",
        GOAL,
    )


if __name__ == "__main__":
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--images", type=int, default=3000)
    chosen, sys.argv[1:] = own.parse_known_args()
    main(partial(measure, chosen.images), "packing of 500 px photographs (--images N: how many, 3000)", repeats=3)
