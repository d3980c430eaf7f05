"""The drawings behind the built-in families: leaves, wings and shells, batched in numpy.

Conventions. Fields are float32 `[B,H,W]`, colours `[B,3,1,1]`, canvases `[B,3,H,W]` in 0..1 (linear light),
per-image numbers `[B,1,1]`. Object coordinates `x, y` are about -1..1 over the object; `pixel` is the
width of one image pixel in them. Distances are signed, negative inside; edges are anti-aliased over one
pixel. A drawing takes the class only through its table of traits, so that nothing else tells classes apart.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]  # float32 throughout: numpy keeps it next to Python numbers

SIZE = 64  # pixels, height and width
UNIFORMS = 96  # numbers per image that a drawing may use
TILT = 0.35  # radians that a shell hangs askew: up is up, which is what telling rotations asks
GRIDS = (4, 9, 20)  # cells across of the noise that textures are made of
NORMALS = sum(cells**2 for cells in GRIDS) + SIZE**2


class Dice:
    """The random numbers of a batch: one row per image, one column per question asked.

    A drawing asks the same questions in the same order for every image, whatever its class.
    """

    def __init__(self, uniforms: Field, normals: Field) -> None:
        self._uniforms = uniforms
        self._normals = normals
        self._next = 0

    def uniform(self, low: float, high: float) -> Field:
        """Return `[B,1,1]` uniform in [low, high)."""
        column = self._uniforms[:, self._next, None, None]
        self._next += 1
        return low + (high - low) * column

    def log_uniform(self, low: float, high: float) -> Field:
        """Return `[B,1,1]` whose logarithm is uniform."""
        return np.exp(self.uniform(float(np.log(low)), float(np.log(high))))

    def sign(self) -> Field:
        """Return `[B,1,1]` of -1 and 1."""
        return np.where(self.uniform(0, 1) < 0.5, -1, 1).astype(np.float32)

    def colour(self, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]) -> Field:
        """Return colours `[B,3,1,1]`; hue in turns (0 red, 1/3 green)."""
        turns = self.uniform(*hue) - np.arange(3, dtype=np.float32) / 3
        rgb: Field = self.uniform(*value) * (1 - self.uniform(*saturation) * (1 - wave(turns)))
        return rgb.reshape(-1, 3, 1, 1)

    def noise(self, level: int) -> Field:
        """Return smooth noise `[B,H,W]`, about unit variance at the grid's nodes, of `GRIDS[level]` cells."""
        start = sum(cells**2 for cells in GRIDS[:level])
        cells = GRIDS[level]
        grid = self._normals[:, start : start + cells**2].reshape(-1, cells, cells)
        weights = _interpolation(cells)
        return (weights @ grid @ weights.T).astype(np.float32, copy=False)

    def grain(self) -> Field:
        """Return white noise `[B,H,W]`."""
        return self._normals[:, -(SIZE**2) :].reshape(-1, SIZE, SIZE)


@dataclass(frozen=True)
class Pose:
    """Where the object's coordinates lie in the image."""

    x: Field
    y: Field
    pixel: Field


def pose(dice: Dice, scale: tuple[float, float], shift: float, middle: float = np.pi, tilt: float = np.pi) -> Pose:
    """A rotation within `tilt` radians of `middle` (any, by default), either hand, a scale, and a shift.

    The shift is at most `shift` half images each way. Local x points to the right at a rotation of 0 and down the
    image at pi/2; the hand mirrors local y.
    """
    line = (np.arange(SIZE, dtype=np.float32) + 0.5) * (2 / SIZE) - 1
    angle, size = dice.uniform(middle - tilt, middle + tilt), dice.uniform(*scale)
    x = line[None, None, :] - dice.uniform(-shift, shift)
    y = line[None, :, None] - dice.uniform(-shift, shift)
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    return Pose(cos * x + sin * y, dice.sign() * (cos * y - sin * x), (2 / SIZE) / size)


def cover(distance: Field, pixel: Field) -> Field:
    """Share of each pixel inside: 1 at half a pixel within the edge, 0 at half a pixel outside."""
    share: Field = np.clip(0.5 - distance / pixel, 0, 1)
    return share


def paint(canvas: Field, colour: Field, share: Field) -> None:
    """Lay `colour` (`[B,3,1,1]` or a canvas) over `canvas`, in place, by `share` `[B,H,W]`."""
    canvas += (colour - canvas) * share[:, None]


def shade(canvas: Field, dice: Dice, outline: Field) -> None:
    """Darken `canvas` close around an object, in place, as if it lay on the ground."""
    canvas *= 1 - dice.uniform(0.1, 0.5)[..., None] * np.exp(-np.maximum(outline, 0) * 12)[:, None]


def wave(turns: Field) -> Field:
    """A cosine between 0 and 1, one period per turn."""
    height: Field = 0.5 + 0.5 * np.cos(2 * np.pi * turns)
    return height


def smooth_max(a: Field, b: Field, width: float) -> Field:
    """The maximum of two distances with the corner rounded over `width`."""
    share = np.clip(0.5 + (a - b) / (2 * width), 0, 1)
    largest: Field = b + (a - b) * share + width * share * (1 - share)
    return largest


def background(dice: Dice) -> Field:
    """A colour, blotchy in brightness and finely mottled: `[B,3,H,W]`."""
    first = dice.colour((0, 1), (0.05, 0.4), (0.35, 0.7))
    second = first * dice.uniform(0.75, 1.25)[..., None]
    share = np.clip(0.5 + 0.4 * dice.noise(0), 0, 1)
    mottle = 0.03 * dice.noise(2) + 0.04 * dice.noise(1)
    canvas: Field = (first + (second - first) * share[:, None]) * (1 + mottle[:, None])
    return canvas


# name: (lesion's inner edge, outer edge, pale zone's outer edge, softness of the edge, elongation)
# in radii; chosen so that every lesion darkens about the same area.
LESIONS: dict[str, tuple[float, float, float, float, float]] = {
    "spot": (-1, 1.0, -1, 0.0, 1.0),
    "ring": (0.8, 1.3, -1, 0.0, 1.0),
    "halo": (-1, 0.85, 1.45, 0.0, 1.0),
    "streak": (-1, 1.0, -1, 0.0, 2.2),
    "diffuse": (-1, 1.0, -1, 1.0, 1.0),
}


def leaf(labels: NDArray[np.int64], dice: Dice) -> Field:
    """A veined leaf with four to eight lesions; the class is the lesions' shape and margin."""
    canvas, at = background(dice), pose(dice, (0.95, 1.15), 0.1)
    y = at.y + dice.uniform(-0.25, 0.25) * (at.x * at.x - 0.4)
    half = dice.uniform(0.6, 0.75)
    rise, fall = dice.uniform(0.5, 0.75), dice.uniform(0.7, 1.1)
    teeth, depth = dice.uniform(6, 14), dice.uniform(0, 0.12)

    def width(x: Field) -> Field:
        t = np.clip((x + 1) / 2, 1e-4, 1)
        peak = rise / (rise + fall)
        here: Field = half * (t / peak) ** rise * ((1.0001 - t) / (1 - peak)) ** fall
        return here

    saw = 1 - depth * (teeth * at.x % 1)
    side = np.abs(y)
    blade = np.maximum((side - width(at.x) * saw) * 0.85, np.abs(at.x) - 1)
    stalk = np.maximum(side - 0.035, np.abs(at.x + 1.1) - 0.2)
    outline = np.minimum(blade, stalk)
    shade(canvas, dice, outline)
    surface = _leaf_surface(dice, at, y)
    _lesions(surface, labels, dice, at, y, width)
    paint(canvas, surface, cover(outline, at.pixel))
    return canvas


def _leaf_surface(dice: Dice, at: Pose, y: Field) -> Field:
    """The blade's colour with midrib, side veins, mottle and the two halves lit differently."""
    colour = dice.colour((0.1, 0.43), (0.45, 0.85), (0.45, 0.9))
    fold = dice.uniform(-0.15, 0.15) * np.clip(y * 10, -1, 1)
    surface: Field = colour * (1 + dice.uniform(0.02, 0.06) * dice.noise(1) + fold)[:, None]
    veins, lean = dice.uniform(4, 7), dice.uniform(0.5, 1.0)
    side = veins * (at.x - lean * np.abs(y))
    gap = np.abs(side - np.rint(side)) / veins
    rib = np.maximum(cover(np.abs(y) - 0.02, at.pixel), cover(gap - 0.002, at.pixel) * 0.5)
    paint(surface, surface * dice.uniform(1.1, 1.3)[..., None], rib)
    return surface


def _lesions(
    surface: Field, labels: NDArray[np.int64], dice: Dice, at: Pose, y: Field, width: Callable[[Field], Field]
) -> None:
    """Paint the lesions of each image's class on the leaf's surface."""
    table = np.array(list(LESIONS.values()), dtype=np.float32)[labels]
    inner, outer, pale, soft, stretch = (table[:, column, None, None] for column in range(5))
    count, radius = dice.uniform(4.5, 8.5), dice.uniform(0.15, 0.18)
    near, side = np.full_like(at.x, 99), dice.sign()
    for place in range(8):
        along = (place + dice.uniform(0.2, 0.8)) / 4.8 - 0.88
        across = side * (-1) ** place * dice.uniform(0.25, 0.65) * width(along)
        turn = np.where(stretch > 1, dice.uniform(-0.3, 0.3), dice.uniform(0, 2 * np.pi))
        size = radius * dice.uniform(0.85, 1.2) * np.maximum((place * 3) % 8 < count - 0.5, np.float32(1e-3))
        dx, dy = at.x - along, y - across
        cos, sin = np.cos(turn) / size, np.sin(turn) / size
        u, v = (cos * dx + sin * dy) / stretch, (cos * dy - sin * dx) * stretch
        near = np.minimum(near, np.sqrt(u * u + v * v))
    blur = at.pixel / radius
    dark = cover(near - outer, np.maximum(blur, soft * 1.1)) * cover(inner - near, blur)
    hue, value = (-0.03, 0.12), (0.05, 0.25)
    light = dice.colour((0.1, 0.2), (0.3, 0.7), (0.8, 1.0))
    paint(surface, light, cover(near - pale, blur) * dice.uniform(0.5, 0.8))
    paint(surface, dice.colour(hue, (0.3, 0.8), value), dark * dice.uniform(0.8, 1.0))


# name: which of five places along the margin carry an eye-spot
SPOTS: dict[str, tuple[int, int, int, int, int]] = {
    "single": (0, 0, 1, 0, 0),
    "pair": (0, 1, 1, 0, 0),
    "split": (1, 0, 0, 0, 1),
    "spaced": (1, 0, 1, 0, 1),
    "full": (1, 1, 1, 1, 1),
}


def wing(labels: NDArray[np.int64], dice: Dice) -> Field:
    """A butterfly's wing; the class is which places along its margin carry an eye-spot."""
    canvas, at = background(dice), pose(dice, (0.9, 1.1), 0.1)
    x = at.x + 0.95
    radius = np.sqrt(x * x + at.y * at.y)
    half, lean = dice.uniform(0.55, 0.7), dice.uniform(0.1, 0.22)
    across = np.arctan2(at.y, x) / half  # -1 .. 1 from the trailing to the leading edge
    ripple = dice.uniform(0.0, 0.05) * np.abs(np.sin((2.5 * np.pi) * (across + 1)))
    reach = dice.uniform(1.65, 1.85) * (1 + lean * across - ripple - 0.1 * across * across)
    outline = smooth_max((np.abs(across) - 1) * half * radius, radius - reach, 0.25)
    shade(canvas, dice, outline)
    surface = _wing_surface(dice, at, outline, radius / reach, across, half * radius)
    _eye_spots(surface, labels, dice, at, (x, half, lean))
    paint(canvas, surface, cover(outline, at.pixel))
    return canvas


def _wing_surface(dice: Dice, at: Pose, outline: Field, out: Field, across: Field, arc: Field) -> Field:
    """Colour running from root to margin, a marginal band, a cross band and veins."""
    root = dice.colour((0, 1), (0.3, 0.7), (0.45, 0.8))
    tip = root * dice.uniform(0.7, 1.2)[..., None]
    share = np.clip(out + dice.uniform(-0.4, 0.4) + dice.uniform(0.05, 0.2) * dice.noise(1), 0, 1)
    surface: Field = root + (tip - root) * share[:, None]
    trim = root * dice.uniform(0.4, 0.8)[..., None]
    paint(surface, trim, cover(-outline - dice.uniform(0.05, 0.14), at.pixel) * dice.uniform(0.2, 0.7))
    band = np.abs(out - dice.uniform(0.3, 0.45)) - dice.uniform(0.02, 0.06)
    paint(surface, trim, cover(band, at.pixel) * dice.uniform(0, 0.4))
    ray = 2.5 * (across + 1)
    vein = cover(np.abs(ray - np.rint(ray)) * arc * 0.4 - 0.012, at.pixel)
    paint(surface, surface * 0.5, vein * dice.uniform(0.2, 0.5))
    return surface


def _eye_spots(
    surface: Field, labels: NDArray[np.int64], dice: Dice, at: Pose, shape: tuple[Field, Field, Field]
) -> None:
    """Paint ringed spots with a bright pupil at the class's places."""
    x, half, lean = shape
    present = np.array(list(SPOTS.values()), dtype=np.float32)[labels]
    few = present.sum(1).reshape(-1, 1, 1) ** (-0.2)
    size, out = dice.uniform(0.27, 0.31) * few, dice.uniform(1.12, 1.28)
    near = np.full_like(at.x, 99)
    for place in range(5):
        angle = (place - 2) * 0.36 + dice.uniform(-0.04, 0.04)
        away = out * (1 + lean * angle) * dice.uniform(0.95, 1.05)
        dx, dy = x - away * np.cos(angle * half), at.y - away * np.sin(angle * half)
        each = size * dice.uniform(0.85, 1.15) * np.maximum(present[:, place, None, None], 1e-3)
        near = np.minimum(near, np.sqrt(dx * dx + dy * dy) / each)
    blur = at.pixel / size
    paint(surface, dice.colour((0.05, 0.2), (0.2, 0.8), (0.85, 1.0)), cover(near - 1, blur))
    paint(surface, dice.colour((0, 1), (0.2, 0.8), (0.05, 0.25)), cover(near - 0.72, blur))
    paint(surface, dice.colour((0, 1), (0.0, 0.4), (0.8, 1.0)), cover(near - 0.25, blur))


# name: (ridges across the shell, offset of every second ridge in periods, its height, depth of the beads)
RIDGES: dict[str, tuple[float, float, float, float]] = {
    "coarse": (7.0, 0.0, 1.0, 0.0),
    "fine": (12.0, 0.0, 1.0, 0.0),
    "paired": (9.5, 0.3, 1.0, 0.0),
    "alternate": (9.5, 0.0, 0.35, 0.0),
    "beaded": (9.5, 0.0, 1.0, 0.8),
}


def shell(labels: NDArray[np.int64], dice: Dice) -> Field:
    """A hanging scallop; the class is the count, spacing or beading of its ridges."""
    canvas, at = background(dice), pose(dice, (0.9, 1.1), 0.1, np.pi / 2, TILT)
    x, y = at.y, at.x + 0.95  # the hinge is at the top
    radius = np.sqrt(x * x + y * y)
    half = dice.uniform(0.7, 0.95)
    across = np.arctan2(x, y) / half
    reach = dice.uniform(1.65, 1.85) * (1 - dice.uniform(0.08, 0.2) * across * across)
    height = _ridges(labels, dice, across, radius)
    rim = radius - reach - 0.05 * (height - 0.5)
    fan = smooth_max((np.abs(across) - 1) * half * radius, rim, 0.3)
    ears = np.maximum(np.abs(x) - dice.uniform(0.3, 0.5), np.abs(y - 0.16) - 0.13)
    outline = np.minimum(fan, ears)
    shade(canvas, dice, outline)
    paint(canvas, _shell_surface(dice, height, radius / reach), cover(outline, at.pixel))
    return canvas


def _ridges(labels: NDArray[np.int64], dice: Dice, across: Field, radius: Field) -> Field:
    """The ridges' height 0..1 over the shell."""
    table = np.array(list(RIDGES.values()), dtype=np.float32)[labels]
    count, offset, second, beads = (table[:, column, None, None] for column in range(4))
    phase = across * count * dice.uniform(0.9, 1.12) / 2 + dice.uniform(0, 2)
    odd = np.floor(phase) % 2
    place = phase % 1 - 0.5 + np.where(odd > 0, offset, -offset) / 2
    height = np.cos(np.pi * np.clip(place * dice.uniform(1.0, 1.25), -0.5, 0.5)) ** 2
    height = height * np.where(odd > 0, second, 1) * (1 - beads * wave(dice.uniform(3.5, 5) * radius))
    fade = np.clip((radius - 0.35) * 3, 0, 1)  # the hinge is smooth
    faded: Field = 0.5 + fade * (height - 0.5)
    return faded


def _shell_surface(dice: Dice, height: Field, out: Field) -> Field:
    """Ground colour with growth bands, darker between the ridges."""
    first, other = (dice.colour((-0.1, 0.25), (0.1, 0.7), (0.5, 0.95)) for _ in range(2))
    bands = wave(dice.uniform(1, 4) * out + dice.uniform(0, 1) + dice.uniform(0, 0.13) * dice.noise(1))
    surface = first + (other - first) * (dice.uniform(0, 0.6) * bands)[:, None]
    relief = dice.uniform(0.4, 0.65)
    shaded: Field = surface * (0.95 * (1 - relief + relief * 1.4 * height))[:, None]
    return shaded


@cache
def _interpolation(cells: int) -> Field:
    """Weights `[SIZE,cells]` of smoothstep interpolation between the nodes of a grid."""
    at = np.linspace(0, cells - 1, SIZE)
    left = np.minimum(at.astype(int), cells - 2)
    share = at - left
    share = share * share * (3 - 2 * share)
    weights = np.zeros((SIZE, cells), dtype=np.float32)
    weights[np.arange(SIZE), left] = 1 - share
    weights[np.arange(SIZE), left + 1] = share
    return weights


DRAWINGS: dict[str, Callable[[NDArray[np.int64], Dice], Field]] = {"leaves": leaf, "wings": wing, "shells": shell}
