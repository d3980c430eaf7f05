"""What a method's views look like: over the searched range of each of its hyperparameters, and what it is given.

The report's page and `bench views` both draw what is made here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bench.draw import Draw
from bench.errors import BenchError
from bench.images import ImageBatch
from bench.method import Method, Shown
from bench.pictures.album import Picture, Row, Strip, jpeg
from bench.pictures.ranges import ends, places, told
from bench.pictures.scene import Scene, spread
from bench.records import set_path
from bench.space import Domain, Value
from bench.sweep import split_path

SHOWN = 4  # images


def looks(method: Method, images: ImageBatch, draw: Draw, size: int) -> list[Shown]:
    """What is shown of the views of `images`: empty where a method has none."""
    with torch.no_grad():
        return method.shown(method.views(images, draw, size), len(images))


def differ(one: Sequence[Shown], other: Sequence[Shown]) -> bool:
    """Whether two looks at the same images show anything different."""
    alike = len(one) == len(other) and all(
        a.captions == b.captions and torch.equal(a.pictures, b.pictures) for a, b in zip(one, other, strict=True)
    )
    return not alike


def view_strips(scene: Scene, space: Mapping[str, Domain]) -> list[Strip]:
    """A strip for each searched hyperparameter that changes the views; the same images and random numbers."""
    pack = scene.pack(scene.trial.data)
    images = pack.batch(spread(pack.pretraining_rows(), SHOWN), labelled=True)
    strips = []
    for path, domain in sorted(space.items()):
        place, key = split_path(path)
        shown = [(value, _changed(scene, images, key, value)) for value in ends(domain)] if place == "method" else []
        known = [(value, views) for value, views in shown if views]
        if any(differ(known[0][1], views) for _, views in known[1:]):
            strips.append(_strip(path, domain, known, pack.name))
    return strips


def given_strip(scene: Scene) -> list[Strip]:
    """Some images, each with what the method is given of it; none for a method without views."""
    pack = scene.pack(scene.trial.data)
    images = pack.batch(spread(pack.pretraining_rows(), SHOWN), labelled=True)
    shown = looks(scene.untrained(scene.trial.config), images, Draw(0, len(images)), scene.trial.training.image_size)
    rows = []
    for index, whole in enumerate(scene.whole(images)):
        first = Picture(jpeg(whole), "the whole image", "image")
        rows.append(Row((first, *(_picture(part, index) for part in shown))))
    note = f"{pack.name}, images to pretrain on: one random draw of each, in this trial's configuration."
    return [Strip("What the method is given", note, tuple(rows), flow=True)] if shown else []


def _picture(part: Shown, index: int) -> Picture:
    caption = f"{part.name}: {part.captions[index]}" if part.captions else part.name
    return Picture(jpeg(part.pictures[index]), caption, caption)


def _strip(path: str, domain: Domain, known: Sequence[tuple[Value, list[Shown]]], dataset: str) -> Strip:
    named = places(tuple(value for value, _ in known), domain)
    rows = []
    for place, (value, views) in zip(named, known, strict=True):
        caption = f"{told(path, value)} ({place})" if place else told(path, value)
        alt = f"{views[-1].name} with {caption}"
        rows.append(Row(tuple(Picture(jpeg(view), alt) for view in views[-1].pictures), caption))
    note = f"{dataset}, images to pretrain on; all else as in this trial, the same random numbers in every row."
    return Strip(f"Views over the searched range of {path}", note, tuple(rows))


def _changed(scene: Scene, images: ImageBatch, key: str, value: Value) -> list[Shown]:
    """The looks with one setting changed; none where the method refuses it."""
    config: dict[str, Any] = set_path(dict(scene.trial.config), key, value)
    try:
        return looks(scene.untrained(config), images, Draw(0, len(images)), scene.trial.training.image_size)
    except (BenchError, RuntimeError, ValueError):
        return []
