"""Packs: every image of a dataset decoded and resized once, memory-mapped, shared by all trials of a node.

CACHE/packs/KEY/ holds images.npy (uint8 `[N,3,H,W]`), table.parquet (one row per image) and pack.json. It is
built in a temporary folder under a lock and then renamed: a pack that exists is whole.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from bench.cache import cache_folder
from bench.data.build import Skipped, build
from bench.data.dataset import index_of
from bench.data.index import SPLITS
from bench.data.source import Source, Split
from bench.errors import BadInput
from bench.images import ImageBatch
from bench.records import digest

__all__ = ["PACK_VERSION", "Pack", "Skipped", "cache_folder", "open_pack", "pack_size"]

PACK_VERSION = 2  # raise it when the same dataset would be packed differently

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Pack:
    """A dataset's images, ready: rows `0..N-1` in the index's order without the skipped files.

    `images`: uint8 `[N,3,H,W]` RGB, all stretched to one canvas; `aspect`: float32 `[N]`, true width / height;
    `labels`: int64 `[N]`, -1 where unlabelled; `splits`: int64 `[N]`, positions in SPLITS.
    """

    source: Source
    classes: tuple[str, ...]
    images: Tensor = field(repr=False)
    aspect: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    splits: Tensor = field(repr=False)
    files: tuple[str, ...] = field(repr=False)
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def name(self) -> str:
        """What reports call the dataset."""
        return self.source.name

    @cached_property
    def counts(self) -> dict[Split, int]:
        """Usable images per split."""
        return {split: len(self.rows(split)) for split in SPLITS}

    def rows(self, split: Split) -> Tensor:
        """Row numbers of a split, int64, ascending, on the CPU."""
        return (self.splits == SPLITS.index(split)).nonzero()[:, 0]

    def labels_of(self, split: Split) -> Tensor:
        """Labels int64 of one split."""
        return self.labels[self.rows(split)]

    def pretraining_rows(self) -> Tensor:
        """The unlabelled rows where there are any, else the train rows; never val or test."""
        rows = self.rows("unlabelled")
        return rows if len(rows) else self.rows("train")

    def on(self, device: torch.device | str) -> "Pack":
        """The same pack with its images and aspects held on `device`, so that no batch is copied there."""
        return replace(self, images=self.images.to(device), aspect=self.aspect.to(device))

    def batch(self, rows: Tensor, device: torch.device | str = "cpu", *, labelled: bool = False) -> ImageBatch:
        """The images of `rows` on `device`, with their labels if `labelled`; the copy to a GPU does not wait."""
        target, there = torch.device(device), rows.to(self.images.device, non_blocking=True)
        # On its way to a GPU a batch is gathered where the GPU fetches it, without a copy between.
        pinned = target.type == "cuda" and self.images.device.type == "cpu"
        pixels, aspect = (
            torch.index_select(whole, 0, there, out=whole.new_empty((len(rows), *whole.shape[1:]), pin_memory=pinned))
            for whole in (self.images, self.aspect)
        )
        labels = self.labels[rows].to(target, non_blocking=True) if labelled else None
        return ImageBatch(pixels.to(target, non_blocking=True), aspect.to(target, non_blocking=True), labels)


def pack_size(image_size: int) -> int:
    """Short side of the canvas for views of `image_size` px: 1.5 times, up to a multiple of 8.

    A crop that shows a detail is enlarged to the view, and needs more pixels than the whole image would.
    """
    return -(-image_size * 3 // 16) * 8


def open_pack(
    source: Source,
    size: int,
    cache: Path,
    progress: Progress | None = None,
    processes: int | None = None,
) -> Pack:
    """Open a source's pack with a canvas of short side `size` px; build it first if no one has.

    `progress` is told (images done, images in all) while it is built, by `processes` parallel workers (default:
    the usable cores). Any number of processes may open the same pack: one builds, the others wait for it.
    Raises BadData if no image can be read or the data has changed, BadInput if the cache cannot be written.
    """
    if size < 8:
        raise BadInput(f"pack size: must be at least 8 px (given: {size})")
    place = cache / "packs" / digest([source.fingerprint, size, PACK_VERSION])
    pack = _read(place, source)
    if pack is not None:
        with contextlib.suppress(OSError):
            os.utime(place)  # when it was last used, for `bench data clean`
        return pack
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            pack = _read(place, source)
            return pack if pack is not None else _build(place, source, size, cache, progress, processes)
    except OSError as error:
        raise BadInput(
            f"cache folder {cache}: cannot hold the pack of {source.name!r}: {error.strerror or error}; "
            "set BENCH_CACHE to a folder with room"
        ) from error


def _build(
    place: Path, source: Source, size: int, cache: Path, progress: Progress | None, processes: int | None
) -> Pack:
    """Build beside `place` and rename; what an earlier, killed build left is removed first."""
    temporary = place.with_suffix(".tmp")
    for leftover in (temporary, place):
        shutil.rmtree(leftover, ignore_errors=True)
    index = index_of(source, cache)
    temporary.mkdir()
    try:
        build(temporary, source, index, size, progress or _silent, processes or usable_cores())
        temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    pack = _read(place, source)
    if pack is None:
        raise OSError(f"the pack in {place} cannot be read back")
    return pack


def _read(place: Path, source: Source) -> Pack | None:
    """Open a pack; None if there is none or its files do not fit together (a lost or cut file)."""
    import pyarrow
    import pyarrow.parquet

    try:
        notes = json.loads((place / "pack.json").read_bytes())
        # Copy-on-write: torch has no read-only tensors, and no write may reach the shared file.
        images = np.load(place / "images.npy", mmap_mode="c")
        table = pyarrow.parquet.read_table(place / "table.parquet").to_pydict()
        if len(images) != len(table["file"]):
            return None
        sizes = np.array([table["width"], table["height"]], dtype=np.float32)
        return Pack(
            source=source,
            classes=tuple(notes["classes"]),
            images=torch.from_numpy(images),
            aspect=torch.from_numpy(sizes[0] / sizes[1]),
            labels=torch.tensor(table["label"], dtype=torch.int64),
            splits=torch.tensor([SPLITS.index(split) for split in table["split"]], dtype=torch.int64),
            files=tuple(table["file"]),
            skipped=tuple(Skipped(**entry) for entry in notes["skipped"]),
        )
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
        return None


def usable_cores() -> int:
    """The cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def _silent(done: int, total: int) -> None:
    """No progress display."""
