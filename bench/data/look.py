"""Look at every image of a dataset once: whether it can be decoded, its bytes' digest, its size and its hash."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from bench.data.decode import Unreadable, load, quiet
from bench.data.index import SPLITS, Index
from bench.data.near import perceptual_hash
from bench.data.tree import Tree, read
from bench.storage import is_remote

_WINDOW = 512  # images in flight: an interrupt waits for no more than these
_REMOTE = 16  # readers at least where the images come over a network

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Look:
    """What one image is. A fault has a reason and nothing else; `digest` is the sha256 of the file's bytes."""

    fault: Literal["", "missing", "unreadable"] = ""
    reason: str = ""
    digest: bytes = b""
    width: int = 0
    height: int = 0
    gray: bool = False
    hash: int = 0


def look_at_files(tree: Tree, index: Index, progress: Progress, *, hashed: bool) -> list[Look]:
    """Read, decode and digest every listed file in parallel; in the index's order. `hashed`: perceptually as well."""
    workers = max(_REMOTE, _cores()) if is_remote(tree.address) else _cores()
    found: list[Look] = []
    with ThreadPoolExecutor(workers) as pool, quiet():
        for start in range(0, len(index), _WINDOW):
            for look in pool.map(lambda file: _file(tree, file, hashed), index.files[start : start + _WINDOW]):
                found.append(look)
                progress(len(found), len(index))
    return found


def look_at_family(family: str, total: int, progress: Progress, *, hashed: bool) -> list[Look]:
    """The same of a built-in family's drawn images, in the order of its index."""
    found: list[Look] = []
    for image in _drawn(family):
        found.append(_picture(image, image.tobytes(), hashed))
        progress(len(found), total)
    return found


def _drawn(family: str) -> Iterator[Image.Image]:
    from bench.data.builtin import draw_split

    for split in SPLITS:
        for image in draw_split(family, split)[0]:
            yield Image.fromarray(image.transpose(1, 2, 0))


def _file(tree: Tree, file: str, hashed: bool) -> Look:
    try:
        data = read(tree, file)
        return _picture(load(data)[0], data, hashed)
    except FileNotFoundError:
        return Look("missing", "listed, and not there")
    except OSError as error:
        return Look("unreadable", f"cannot be read: {error.strerror or error}")
    except Unreadable as error:
        return Look("unreadable", str(error))


def _picture(image: Image.Image, data: bytes, hashed: bool) -> Look:
    return Look(
        digest=hashlib.sha256(data).digest(),
        width=image.width,
        height=image.height,
        gray=_is_gray(image),
        hash=perceptual_hash(image) if hashed else 0,
    )


def _is_gray(image: Image.Image) -> bool:
    """Whether all channels are equal; a few pixels decide of nearly every colour image."""
    pixels = np.asarray(image)
    return all(bool((part[..., :1] == part).all()) for part in (pixels[::16, ::16], pixels))


def _cores() -> int:
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1
