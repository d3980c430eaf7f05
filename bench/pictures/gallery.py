"""What a sweep's augmentations do over what it searches: looks at photographs, before anything is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bench.draw import Draw, mix
from bench.errors import BenchError
from bench.method import Shown
from bench.pictures.photos import Photo
from bench.pictures.ranges import ends, middle, places, span, told
from bench.pictures.scene import untrained
from bench.pictures.viewing import differ, looks
from bench.records import canonical_json
from bench.space import Domain, Value
from bench.sweep import Sweep

COMPARED = 16  # draws of each photograph that tell whether a hyperparameter changes anything
Panel = tuple[Tensor, str]  # a picture [3,h,w] in 0..1, and what is said of it or ""


@dataclass(frozen=True, eq=False)
class Line:
    """One photograph at one value: the panels of each draw, or why there are none."""

    caption: str
    photo: Photo
    draws: tuple[tuple[Panel, ...], ...] = field(default=(), repr=False)
    refused: str = ""


@dataclass(frozen=True, eq=False)
class Part:
    """One hyperparameter over its range; `panels` names what is side by side in each draw."""

    title: str
    note: str
    panels: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Gallery:
    """One candidate: a part for each hyperparameter that changes what is seen; `notes` tell of the others."""

    title: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Seen:
    """The looks at each photograph in one configuration, or why it was refused."""

    looks: Sequence[Sequence[Shown]] = ()
    refused: str = ""

    def differs(self, other: "_Seen") -> bool:
        """Whether anything is seen here that is not seen there."""
        if self.refused or other.refused:
            return self.refused != other.refused
        return any(differ(one, two) for one, two in zip(self.looks, other.looks, strict=True))

    def line(self, caption: str, number: int, photo: Photo, draws: int) -> Line:
        """The line of one photograph."""
        if self.refused:
            return Line(caption, photo, refused=self.refused)
        shown = self.looks[number]
        return Line(caption, photo, tuple(tuple(_panel(part, draw) for part in shown) for draw in range(draws)))


@dataclass(frozen=True)
class _Eye:
    """Looks at photographs in configurations of a candidate; equal ones are looked at once."""

    sweep: Sweep
    candidate: str
    photos: Sequence[Photo]
    draws: int
    seed: int
    known: dict[str, _Seen] = field(default_factory=dict)

    def see(self, values: Mapping[str, Value]) -> _Seen:
        try:
            settled = self.sweep.candidate(self.candidate, values)
            size = settled.training.image_size
            key = canonical_json([settled.method, settled.config, settled.training.backbone, size])
            if key not in self.known:
                method = untrained(settled.method, settled.config, settled.training.backbone)
                self.known[key] = _Seen(
                    [
                        looks(method, photo.batch(self.draws, size), Draw(mix(self.seed, number), self.draws), size)
                        for number, photo in enumerate(self.photos)
                    ]
                )
        except (BenchError, RuntimeError, ValueError) as error:  # a method of the user's own can raise anything
            return _Seen(refused=str(error))
        return self.known[key]


def gallery(sweep: Sweep, candidate: str, photos: Sequence[Photo], draws: int, seed: int) -> Gallery:
    """Look at a candidate's views of `photos`, `draws` of each.

    Each searched hyperparameter is taken to the ends and the middle of its range, all others stay in the middle of
    theirs; the random numbers are the same at each value. One that changes nothing is told of and not drawn.
    """
    space, method = sweep.candidates[candidate].space, sweep.method(candidate)
    eye = _Eye(sweep, candidate, photos, max(draws, COMPARED), seed)
    centre = {path: middle(domain) for path, domain in space.items()}
    shown = {path: [eye.see(centre | {path: value}) for value in ends(domain)] for path, domain in space.items()}
    active = [path for path, seen in shown.items() if any(seen[0].differs(other) for other in seen[1:])]
    around = {path: centre[path] for path in active}
    parts = [_part(path, space[path], around, shown[path], photos, draws) for path in active]
    parts = parts or _as_they_are(eye.see(centre), photos, draws)
    idle = ", ".join(f"{path} ({span(space[path])})" for path in space if path not in active)
    notes = [f"Not drawn, as the views stay the same: {idle}."] if idle else []
    notes += [] if parts else ["This method has no views."]
    return Gallery(candidate if method == candidate else f"{candidate} ({method})", tuple(parts), tuple(notes))


def _part(
    path: str,
    domain: Domain,
    around: Mapping[str, Value],
    shown: Sequence[_Seen],
    photos: Sequence[Photo],
    draws: int,
) -> Part:
    values = ends(domain)
    lines = []
    for number, photo in enumerate(photos):
        for value, place, seen in zip(values, places(values, domain), shown, strict=True):
            caption = f"{told(path, value)}, {place}" if place else told(path, value)
            lines.append(seen.line(caption, number, photo, draws))
    others = ", ".join(told(other, value) for other, value in around.items() if other != path)
    note = f"Searched over {span(domain)}" + (f"; here {others}." if others else ".")
    return Part(path, note, next(filter(None, map(_names, shown)), ()), tuple(lines))


def _as_they_are(seen: _Seen, photos: Sequence[Photo], draws: int) -> list[Part]:
    """The views of a candidate whose search does not change them; nothing for a method without any."""
    if not seen.refused and not _names(seen):
        return []
    lines = tuple(seen.line("", number, photo, draws) for number, photo in enumerate(photos))
    return [Part("", "", _names(seen), lines)]


def _panel(part: Shown, draw: int) -> Panel:
    return part.pictures[draw], part.captions[draw] if part.captions else ""


def _names(seen: _Seen) -> tuple[str, ...]:
    """What is side by side in each draw."""
    return tuple(part.name for part in seen.looks[0]) if seen.looks else ()
