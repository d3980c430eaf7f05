"""What a method's views are: over the searched range of each of its hyperparameters, and jigsaw's tiles."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.draw import Draw
from bench.errors import BenchError
from bench.images import ImageBatch
from bench.pictures.album import Picture, Row, Strip, jpeg
from bench.pictures.scene import Scene, spread
from bench.records import set_path
from bench.space import Domain, Value
from bench.sweep import split_path

SHOWN = 4  # images
PLACES = ("low", "middle", "high")


def ends(domain: Domain) -> tuple[Value, ...]:
    """The low, middle and high value of a range; the first, middle and last of a list of choices."""
    if domain.choice is not None:
        values = domain.choice
        return tuple(dict.fromkeys((values[0], values[len(values) // 2], values[-1])))
    if domain.integers is not None:
        low, high = domain.integers
        return tuple(dict.fromkeys((low, (low + high) // 2, high)))
    first, last = domain.uniform or domain.log_uniform or (0.0, 0.0)
    middle = (first * last) ** 0.5 if domain.log_uniform else (first + last) / 2
    return tuple(dict.fromkeys((first, middle, last)))


def view_strips(scene: Scene, space: Mapping[str, Domain]) -> list[Strip]:
    """A strip for each searched hyperparameter that changes the views; the same images and random numbers."""
    pack = scene.pack(scene.trial.data)
    images = pack.batch(spread(pack.pretraining_rows(), SHOWN))
    strips = []
    for path, domain in sorted(space.items()):
        place, key = split_path(path)
        shown = [(value, _views(scene, images, key, value)) for value in ends(domain)] if place == "method" else []
        known = [(value, view) for value, view in shown if view is not None]
        if len(known) > 1 and any(not torch.equal(known[0][1], view) for _, view in known[1:]):
            strips.append(_strip(path, known, pack.name))
    return strips


def _strip(path: str, known: list[tuple[Value, Tensor]], dataset: str) -> Strip:
    names = PLACES if len(known) == len(PLACES) else tuple("" for _ in known)
    rows = []
    for name, (value, views) in zip(names, known, strict=True):
        told = f"{path} = {value:.4g}" if isinstance(value, float) else f"{path} = {value}"
        caption = f"{told} ({name})" if name else told
        rows.append(Row(tuple(Picture(jpeg(view), f"view with {caption}") for view in views), caption))
    note = f"{dataset}, images to pretrain on; all else as in this trial, the same random numbers in every row."
    return Strip(f"Views over the searched range of {path}", note, tuple(rows))


def _views(scene: Scene, images: ImageBatch, key: str, value: Value) -> Tensor | None:
    """The last of the method's views `[B,3,H,W]` with one setting changed; None where it has none or refuses it."""
    try:
        method = scene.untrained(set_path(dict(scene.trial.config), key, value))
        with torch.no_grad():
            made = method.views(images, Draw(0, len(images)), scene.trial.training.image_size)
    except (BenchError, RuntimeError, ValueError):
        return None
    pictures = [view for view in made if view.dim() == 4 and len(view) == len(images) and view.shape[1] == 3]
    return pictures[-1].float() if pictures else None


def tile_strips(scene: Scene) -> list[Strip]:
    """For jigsaw: an image, its tiles where they belong, and laid out in an order with the number to be told."""
    from methods.jigsaw import Jigsaw

    config: dict[str, Any] = {**scene.trial.config, "normalise": False}
    method = scene.untrained(config)
    assert isinstance(method, Jigsaw)
    pack = scene.pack(scene.trial.data)
    images = pack.batch(spread(pack.pretraining_rows(), SHOWN))
    with torch.no_grad():
        tiles, which = method.views(images, Draw(0, len(images)), scene.trial.training.image_size)
    tiles = tiles.unflatten(0, (len(images), -1))
    rows = []
    for view, own, number in zip(scene.whole(images), tiles, which[:, 0].tolist(), strict=True):
        order = method.orders[number]
        told = " ".join(str(tile + 1) for tile in order.tolist())
        pictures = (
            Picture(jpeg(view), "the whole image", "image"),
            Picture(jpeg(laid_out(own)), "its tiles where they belong", "tiles of a random view"),
            Picture(jpeg(laid_out(own[order])), f"its tiles in the order {told}", f"order {number}: {told}"),
        )
        rows.append(Row(pictures))
    note = f"{pack.name}; the network is shown the last and must tell which of {len(method.orders)} orders it is."
    return [Strip("Jigsaw's permutations", note, tuple(rows), flow=True)]


def laid_out(tiles: Tensor, gap: int = 2) -> Tensor:
    """Tiles `[N*N,3,t,t]` in 0..1 as one picture, row by row, with white gaps."""
    grid, side = round(len(tiles) ** 0.5), tiles.shape[-1]
    whole = tiles.new_ones(3, grid * (side + gap) - gap, grid * (side + gap) - gap)
    for place, tile in enumerate(tiles):
        top, left = (side + gap) * (place // grid), (side + gap) * (place % grid)
        whole[:, top : top + side, left : left + side] = tile
    return whole
