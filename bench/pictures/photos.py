"""Photographs to look at: named files, or some of a dataset's training split. Nothing is packed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.data.build import choose_canvas
from bench.data.dataset import Dataset, resolve
from bench.data.decode import Unreadable, load, quiet
from bench.data.pack import pack_size
from bench.data.rows import stretch
from bench.errors import BadData, BadInput
from bench.images import ImageBatch

MOST_BYTES = 200_000_000  # of a photograph's file
MOST_TRIED = 50  # unreadable files of a dataset, before it is given up


@dataclass(frozen=True, eq=False)
class Photo:
    """An upright RGB picture; `name` says which."""

    name: str
    picture: Image.Image = field(repr=False)

    @property
    def short(self) -> int:
        """Its short side in px."""
        return min(self.picture.size)

    def batch(self, count: int, size: int) -> ImageBatch:
        """The picture `count` times as a pack for views of `size` px holds it, each labelled 0."""
        canvas = choose_canvas([self.picture.size], pack_size(size))
        pixels = torch.from_numpy(stretch(self.picture, canvas)).expand(count, -1, -1, -1)
        width, height = self.picture.size
        return ImageBatch(pixels, torch.full((count,), width / height), torch.zeros(count, dtype=torch.int64))


def from_files(paths: Sequence[Path], least: int) -> list[Photo]:
    """Photographs from files. Raises BadInput for one that cannot be read, or whose short side is below `least` px."""
    photos = []
    for path in paths:
        photo = Photo(path.name, _opened(path))
        if photo.short < least:
            width, height = photo.picture.size
            raise BadInput(
                f"{path}: {width} x {height} px is smaller than the views of {least} px: take a larger photograph, or "
                f"--set pretrain.image_size={max(16, photo.short // 16 * 16)}"
            )
        photos.append(photo)
    return photos


def _opened(path: Path) -> Image.Image:
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; name an image file, or give the folder as --dataset")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadInput(f"{path}: is larger than {MOST_BYTES // 10**6} MB")
        with quiet():
            return load(path.read_bytes())[0]
    except FileNotFoundError:
        raise BadInput(f"{path}: there is no such image file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None
    except Unreadable as error:
        raise BadInput(f"{path}: cannot be read as an image: {error}") from None


def from_dataset(reference: str, count: int, seed: int, root: str | None = None) -> list[Photo]:
    """`count` images of a dataset's training split (its unlabelled ones where it has none), chosen by `seed`.

    Files that cannot be read are passed over. Raises BadInput for an unknown dataset, BadData where none can be read.
    """
    dataset = resolve(reference, root)
    rows = [row for row, split in enumerate(dataset.index.splits) if split == "train"]
    rows = rows or [row for row, split in enumerate(dataset.index.splits) if split == "unlabelled"]
    if not rows:
        raise BadData(f"dataset {dataset.name!r} has no train and no unlabelled image to look at")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    photos = _readable(dataset, [rows[int(place)] for place in order], count)
    if not photos:
        raise BadData(f"dataset {dataset.name!r}: none of its training images that were tried can be read")
    return photos


def _readable(dataset: Dataset, rows: Sequence[int], count: int) -> list[Photo]:
    photos: list[Photo] = []
    for tried, photo in enumerate(_read(dataset, rows)):
        photos += [photo] if photo else []
        if len(photos) == count or tried - len(photos) >= MOST_TRIED:
            break
    return photos


def _read(dataset: Dataset, rows: Sequence[int]) -> Iterator[Photo | None]:
    """The images of these rows of the index one by one, None for what cannot be read."""
    index, source = dataset.index, dataset.source
    if source.reader == "builtin":
        yield from _drawn(source.location, [index.files[row] for row in rows])
        return
    from bench.data.tree import open_tree, read

    tree = open_tree(source.location)
    for row in rows:
        box = index.boxes[row] if index.boxes else None
        try:
            with quiet():
                yield Photo(f"{dataset.name}/{index.files[row]}", load(read(tree, index.files[row]), box=box)[0])
        except (OSError, Unreadable):
            yield None


def _drawn(family: str, files: Sequence[str]) -> Iterator[Photo]:
    """Images of a built-in family by their names in its index, SPLIT/NUMBER."""
    from bench.data.builtin import draw_images, find_family

    for name in files:
        split, _, number = name.partition("/")
        pixels = draw_images(find_family(family), split, [int(number)])[0][0]
        yield Photo(f"{family}/{name}", Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))))
