"""`bench views`: a sweep's galleries on one PNG."""

from collections.abc import Sequence
from pathlib import Path

from bench.pictures.gallery import gallery
from bench.pictures.photos import Photo, from_dataset, from_files
from bench.pictures.sheet import check_place, save, sheet
from bench.results.wording import count
from bench.sweep import Sweep


def peek(
    sweep: Sweep,
    files: Sequence[Path],
    *,
    images: int,
    draws: int,
    seed: int,
    to: Path | None = None,
    data_root: str | None = None,
) -> list[str]:
    """Draw the views of every candidate and return what is to be said of it, a line each.

    Of photographs in `files`, or of `images` images of the dataset that the sweep pretrains on. Raises BadInput or
    BadData before anything is drawn: for a photograph that cannot be read or is smaller than the views, and for a
    place that cannot be written or holds a file of another kind.
    """
    path = _place(sweep, to)
    check_place(path)
    size = sweep.pretrain.image_size
    photos = from_files(files, size) if files else from_dataset(sweep.pretrain.dataset, images, seed, data_root)
    galleries = [gallery(sweep, name, photos, draws, seed) for name in sweep.candidates]
    picture = sheet(f"Views of {sweep.name}", _notes(sweep, photos, seed), galleries)
    written = save(picture, path)
    said = [f"{each.title}: {note}" for each in galleries for note in each.notes]
    return [f"{path}: {picture.width} x {picture.height} px, {written / 1e6:.1f} MB", *said]


def _place(sweep: Sweep, to: Path | None) -> Path:
    name = f"{sweep.name}-views.png"
    return Path(name) if to is None else to / name if to.is_dir() else to


def _notes(sweep: Sweep, photos: Sequence[Photo], seed: int) -> list[str]:
    """What holds for the whole picture."""
    size = sweep.pretrain.image_size
    small = sum(photo.short < size for photo in photos)
    names = ", ".join(photo.name for photo in photos)
    lines = [
        sweep.title,
        f"Profile {sweep.profile}, views of {size} px, seed {seed}. Photographs: {names}.",
        "From row to row only the value changes: the same photograph, the same random numbers.",
    ]
    enlarged = f"{small} of {count(len(photos), 'photograph')}: smaller than the views and enlarged, as in training."
    return lines + ([enlarged] if small else [])
