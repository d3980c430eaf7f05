"""Batches of a pack that is not in memory: read from the disk in random order, beside the same from memory.

A pack's images are memory-mapped. What does not fit into memory is read from the disk again in every epoch; here the
system is told to forget the file before each measured epoch, which is the worst case. What matters is whether the disk
gives images faster than the small encoder trains on them.

python -m tests.speed.streaming
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bench.cache import cache_folder
from bench.data.dataset import resolve
from bench.data.pack import Pack, open_pack, pack_size
from tests.speed.figures import Apart, Figure, alternate, main, ratio
from tests.speed.pretraining import BATCH, SIZE, STEPS, model_alone

IMAGES = 20_000


def write(path: Path, like: Pack) -> None:
    """Write `IMAGES` images, those of a pack again and again, and wait until they are on the disk."""
    with path.open("wb") as file:
        shape = (IMAGES, *like.images.shape[1:])
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for number in range(IMAGES):
            file.write(like.images[number % len(like)].numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())


def forget(path: Path) -> None:
    """Have the system drop the file from memory."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def epoch(path: Path) -> None:
    """Every batch of an epoch, in random order, as training takes them."""
    images = torch.from_numpy(np.load(path, mmap_mode="c"))
    for rows in torch.randperm(IMAGES).split(BATCH):
        images.index_select(0, rows)


def measure(arguments: argparse.Namespace) -> Sequence[Figure]:
    """Images per second of batches from the disk, against those that the small encoder trains on."""
    pack = open_pack(resolve(arguments.data).source, pack_size(SIZE), cache_folder())
    with (
        tempfile.TemporaryDirectory(dir=cache_folder()) as name,
        Apart(model_alone, "small", arguments.data, kept=True) as train,
    ):
        path = Path(name) / "images.npy"
        write(path, pack)

        def cold() -> None:
            forget(path)
            epoch(path)

        taken = alternate({"disk": cold, "memory": lambda: epoch(path), "model": train}, arguments.repeats)
        size = path.stat().st_size / 1e9
    disk, memory = (IMAGES / taken[where].seconds for where in ("disk", "memory"))
    model = BATCH * STEPS / taken["model"].seconds
    return [
        Figure(
            "batches of a pack that is read from the disk, against what the small encoder trains on",
            f"{disk:,.0f} images/s from the disk, {memory:,.0f} from memory, the model alone {model:,.0f}; "
            f"{IMAGES:,} images, {size:.1f} GB, {ratio(taken['disk'], taken['memory']):.1f} times slower than memory",
            disk / model,
            "x",
            1,
        )
    ]


if __name__ == "__main__":
    main(measure, "a pack larger than memory", repeats=3)
