"""Built-in data: three fine-grained families drawn by formula, so that a first run downloads nothing.

The classes of a family differ in one small trait (a lesion's margin, the places of eye-spots, the spacing of
ridges); pose, colours, background and above all light and gamma vary far more. Image `i` of a split depends on
(family, version, seed, split, i) alone: not on how many are drawn, nor in what order.
"""

import zlib
from collections.abc import Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bench.data.families import DRAWINGS, LESIONS, NORMALS, RIDGES, SIZE, SPOTS, UNIFORMS, Dice
from bench.data.source import Metric, Split
from bench.errors import BadInput, UnknownName
from bench.records import Record, digest

SPLITS: tuple[str, ...] = get_args(Split)
CHUNK = 8  # images drawn together: their fields fit the second-level cache
GOLDEN = 0.6180339887498949


class Family(Record):
    """A built-in dataset: what it holds and how it is scored."""

    name: str
    title: str
    summary: str = Field(description="one line: what tells the classes apart")
    classes: tuple[str, ...]
    weights: tuple[float, ...] = Field(description="share of each class, sums to 1")
    counts: dict[Split, int] = Field(description="images per split")
    metric: Metric = Field(description="headline metric")
    version: int = Field(1, ge=1, description="raised whenever the drawing changes")


def _family(
    name: str,
    title: str,
    summary: str,
    classes: Sequence[str],
    weights: Sequence[float] | None = None,
    version: int = 2,
) -> Family:
    """A family of the usual size; classes are equally frequent unless `weights` says otherwise."""
    return Family(
        name=name,
        title=title,
        summary=summary,
        classes=tuple(classes),
        weights=tuple(weights or [1 / len(classes)] * len(classes)),
        counts={"unlabelled": 1500, "train": 300, "val": 200, "test": 400},
        metric="mean_per_class" if weights else "top1",
        version=version,
    )


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _family(
            "leaves",
            "Leaves (built-in)",
            "drawn leaves; the class is the shape and margin of their lesions",
            list(LESIONS),
            (0.15, 0.18, 0.22, 0.25, 0.2),
        ),
        _family("wings", "Wings (built-in)", "drawn wings; the class is where their eye-spots sit", list(SPOTS)),
        _family(
            "shells",
            "Shells (built-in)",
            "drawn hanging scallops; the class is the spacing of their ridges",
            list(RIDGES),
            version=3,
        ),
    )
}


def find_family(name: str) -> Family:
    """Return a family by name; raises UnknownName with the nearest one there is."""
    if name not in FAMILIES:
        raise UnknownName("built-in family", name, FAMILIES)
    return FAMILIES[name]


def draw_split(family: str, split: str, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw a whole split: uint8 RGB `[N,3,64,64]` and labels `[N]`, all -1 for the unlabelled split.

    Raises UnknownName for a family or split that does not exist, BadInput for a negative seed.
    """
    labels = split_labels(family, split, seed)
    return draw_images(find_family(family), split, range(len(labels)), seed)[0], labels


def split_labels(family: str, split: str, seed: int = 0) -> NDArray[np.int64]:
    """Return the labels `[N]` of `draw_split`, without its images; same errors."""
    found = find_family(family)
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    labels = _labels(found, split, np.arange(found.counts[split]), seed)  # type: ignore[index]
    return np.full_like(labels, -1) if split == "unlabelled" else labels


def draw_images(
    family: Family, split: str, indices: Sequence[int], seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw chosen images of a split with their true classes, also those of the unlabelled split."""
    labels = _labels(family, split, np.asarray(indices, dtype=np.int64), seed)
    images = np.empty((len(indices), 3, SIZE, SIZE), dtype=np.uint8)
    for start in range(0, len(indices), CHUNK):
        part = slice(start, start + CHUNK)
        dice = _dice(family, split, indices[part], seed)
        images[part] = _illuminate(DRAWINGS[family.name](labels[part], dice), dice)
    return images, labels


def fingerprint(family: str) -> str:
    """Sha256 of what decides a family's images at seed 0."""
    found = find_family(family)
    return digest({**found.model_dump(mode="json", exclude={"title", "summary", "metric"}), "seed": 0, "size": SIZE})


def _illuminate(canvas: NDArray[np.float32], dice: Dice) -> NDArray[np.uint8]:
    """Light falling off across the image, its tint, exposure, gamma and grain: uint8 `[B,3,H,W]`."""
    line = np.linspace(-1, 1, SIZE, dtype=np.float32)
    angle, slope = dice.uniform(0, 2 * np.pi), dice.uniform(0, 0.5)
    light = 1 + slope * (np.cos(angle) * line[None, None, :] + np.sin(angle) * line[None, :, None])
    tint = np.concatenate([dice.uniform(0.85, 1.15) for _ in range(3)], axis=1)[..., None]
    lit = np.clip(canvas * (light * dice.log_uniform(0.75, 1.3))[:, None] * tint, 1e-4, 1)
    seen = lit ** dice.log_uniform(0.45, 2.2)[:, None]
    seen += (dice.uniform(0.003, 0.02) * dice.grain())[:, None]
    pixels: NDArray[np.uint8] = (np.clip(seen, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels


def _entropy(family: Family, split: str, index: int, seed: int) -> list[int]:
    if seed < 0:
        raise BadInput(f"seed of {family.name}: must be 0 or more (given: {seed})")
    # The seed comes last: it alone may take more than one 32-bit word.
    return [zlib.crc32(family.name.encode()), family.version, SPLITS.index(split), index, seed]


def _dice(family: Family, split: str, indices: Sequence[int], seed: int) -> Dice:
    """Every image's own numbers."""
    uniforms = np.empty((len(indices), UNIFORMS), dtype=np.float32)
    normals = np.empty((len(indices), NORMALS), dtype=np.float32)
    for row, index in enumerate(indices):
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(_entropy(family, split, index, seed))))
        generator.random(out=uniforms[row], dtype=np.float32)
        generator.standard_normal(out=normals[row], dtype=np.float32)
    return Dice(uniforms, normals)


def _labels(family: Family, split: str, indices: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Classes in a golden-ratio sequence: every stretch of a split has nearly the family's class mix."""
    start = np.random.SeedSequence(_entropy(family, split, 2**32 - 1, seed)).generate_state(1)[0] / 2**32
    edges = np.cumsum(family.weights)[:-1]
    labels: NDArray[np.int64] = np.searchsorted(edges, (start + indices * GOLDEN) % 1.0, side="right")
    return labels.astype(np.int64)
