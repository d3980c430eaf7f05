"""The page from a ledger frame: one HTML file that holds everything and contacts no address.

A content security policy in the page forbids every request and every script but the page's own (by their hashes), so
a browser keeps that promise whatever the results hold. The same results give the same bytes: there is no date of now.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from bench.page.diagram import diagram
from bench.page.figures import MOST_CLASSES, Figure, confusion_figure, cost_figure, curve_figures
from bench.page.searches import Searched, searches
from bench.page.tables import Board, Gap, board, gaps
from bench.page.trials import LEAST_DETAILS, MOST_DETAILS, Detail, details
from bench.pictures.album import Album, Strip
from bench.results import wording
from bench.results.findings import Findings, Records, findings
from bench.results.frames import rows_of
from bench.results.ledger import Reading
from bench.results.selection import NO_FILTERS, Filters
from bench.safe import data_uri, script_hash, script_json

MOST_MATRICES = 24  # of one sweep
MOST_PICTURES = 8_000_000  # bytes of all pictures on a page, before base64
LEAST_RANKED = 3  # configurations of a critical-difference diagram


@dataclass(frozen=True)
class SweepView:
    """What the template shows of one sweep."""

    anchor: str
    name: str
    title: str
    narrowed: str
    answers: Sequence[str]
    lines: Sequence[str]
    boards: Sequence[Board]
    notes: Sequence[str]
    unconfirmed: bool
    gaps: Sequence[Gap]
    leader: str
    searches: Sequence[Searched]
    curves: Sequence[Figure]
    cost: Figure | None
    matrices: Sequence[Figure]
    matrix_note: str
    diagram: Markup | None
    diagram_note: str
    failures: Sequence[tuple[str, str]]  # what is said, and the trial's anchor or ""
    details: Sequence[Detail]
    trials: int
    albums: Sequence[Album]
    definition: str


def render_page(
    frame: pd.DataFrame,
    sweep: str | None = None,
    *,
    out: Path | None = None,
    cache: Path | None = None,
    records: Records | None = None,
    problems: Sequence[str] = (),
    filters: Filters = NO_FILTERS,
    live: str = "",
) -> str:
    """The page of one sweep, or of all where `sweep` is None. Raises UnknownName.

    `frame` holds ledger rows (their heads suffice); `out` is the results' folder, whose studies, trials and records
    give what a frame does not; `cache` is where packs lie: without it there are no pictures. `records` are the sweeps'
    definitions by id, `problems` the ledger's unreadable files. With `live`, a name for this very page, it asks the
    server that it came from for the live progress (`bench.serve`).
    """
    found = findings(frame, sweep, filters, records)
    most = max(LEAST_DETAILS, MOST_DETAILS // max(1, len(found)))
    views = [_view(each, f"sweep-{number}", out, cache, most) for number, each in enumerate(found, 1)]
    return _html(_bounded(views), problems, live)


def write_page(
    to: Path,
    reading: Reading,
    sweep: str | None,
    *,
    out: Path,
    records: Records,
    filters: Filters = NO_FILTERS,
    pictures: bool = True,
) -> Path:
    """Write the page to a file, or as report.html to a folder (which is made); returns the file's path."""
    from bench.cache import cache_folder

    path = to / "report.html" if to.is_dir() or not to.suffix else to
    cache = cache_folder() if pictures else None
    page = render_page(
        reading.frame, sweep, out=out, cache=cache, records=records, problems=reading.problems, filters=filters
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # who has the old page open never sees half a new one
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def _view(found: Findings, anchor: str, out: Path | None, cache: Path | None, most: int) -> SweepView:
    trials = details(found, out, most)
    shown = {detail.trial_id: detail.anchor for detail in trials}
    first = found.standings[0] if found.standings else None
    on_board = [detail for detail in trials if detail.trial_id in set(found.selection.shown["trial_id"])]
    matrices, matrix_note = _matrices(found, on_board)
    cd, cd_note = _diagram(found)
    return SweepView(
        anchor=anchor,
        name=found.sweep,
        title=found.title,
        narrowed=wording.filter_line(found.filters),
        answers=wording.answers(found.gaps),
        lines=wording.search_lines(found.bests) + wording.trial_lines(found.counts, found.versions),
        boards=[board(standing, on_board) for standing in found.standings],
        notes=wording.notes(found) if len(found.board) else [],
        unconfirmed=bool(len(found.board) and (found.board["stage"] == "search").all()),
        gaps=gaps(found),
        leader=found.selection.leader or "",
        searches=searches(out, found.sweep, str(found.selection.rows["sweep_id"].iloc[0]), found.record),
        curves=curve_figures(trials),
        cost=cost_figure(first) if first else None,
        matrices=matrices,
        matrix_note=matrix_note,
        diagram=cd,
        diagram_note=cd_note,
        failures=[(wording.failure(row), shown.get(row.trial_id, "")) for row in rows_of(found.failures)[:most]],
        details=trials,
        trials=int(found.selection.rows["trial_id"].nunique()),
        albums=_albums(found, on_board, out, cache),
        definition=json.dumps(found.record, indent=1, sort_keys=True) if found.record else "",
    )


def _matrices(found: Findings, details: Sequence[Detail]) -> tuple[list[Figure], str]:
    """Confusion matrices of each configuration's lowest seed, in the leaderboard's order and its first protocol."""
    if not found.standings:
        return [], "No finished trial has a test score yet."
    first, figures, seeds = found.standings[0], [], set()
    for name in first.rows["configuration"].unique():
        mine = sorted((each for each in details if each.configuration == name), key=lambda each: each.seed)
        for matrix in sorted(mine[0].confusions, key=lambda each: each.dataset) if mine else ():
            if (matrix.protocol, matrix.variant) == (first.protocol, first.variant):
                seeds.add(mine[0].seed)
                figures.append(confusion_figure(f"{name} on {matrix.dataset}", matrix))
    if not figures:
        return [], "The ledger holds no confusion matrix of these trials."
    more = "" if len(figures) <= MOST_MATRICES else f" The first {MOST_MATRICES} of {len(figures)} are shown."
    which = ", ".join(map(str, sorted(seeds)))
    named = wording.protocol_name(first.protocol, first.variant)
    note = f"{named}, test images of one trial of each configuration: seed {which}. Each row adds up to 100 %.{more}"
    return figures[:MOST_MATRICES], note


def _diagram(found: Findings) -> tuple[Markup | None, str]:
    test = found.standings[0].test if found.standings else None
    if test is None:
        return None, "No critical-difference diagram: it needs two datasets and three configurations with all of them."
    if len(test.ranks) < LEAST_RANKED:
        return None, f"No critical-difference diagram: {len(test.ranks)} ranked configurations are fewer than three."
    return diagram(test), " ".join(wording.rank_lines(found.standings[:1]))


def _albums(found: Findings, details: Sequence[Detail], out: Path | None, cache: Path | None) -> list[Album]:
    """The pictures of each method's best candidate: of its trial on the leaderboard with the lowest seed."""
    if out is None or cache is None:
        return []
    from bench.pictures.make import make_album  # imports torch

    albums, seen = [], set()
    for best in found.bests:  # the best on validation first
        mine = [each for each in details if each.configuration == best.candidate and each.status == "finished"]
        if not mine or mine[0].method in seen:
            continue
        trial = min(mine, key=lambda each: (each.seed, each.trial_id))
        seen.add(trial.method)
        title = f"{trial.method}: {trial.label}"
        albums.append(make_album(title, trial.trial_id, trial.config, trial.chosen, found.record, out, cache))
    return albums


def _bounded(views: Sequence[SweepView]) -> list[SweepView]:
    """The views with no more pictures than `MOST_PICTURES` bytes."""
    left, kept = MOST_PICTURES, []
    for view in views:
        albums = []
        for album in view.albums:
            albums.append(bounded(album, left))
            left -= sum(strip.size for strip in albums[-1].strips)
        kept.append(replace(view, albums=albums))
    return kept


def bounded(album: Album, most: int) -> Album:
    """The album with strips of `most` bytes in all; it says how many are left out."""
    kept: list[Strip] = []
    for strip in album.strips:
        if strip.size + sum(other.size for other in kept) <= most:
            kept.append(strip)
    dropped = len(album.strips) - len(kept)
    reason = (
        f"{wording.count(dropped, 'strip')} of pictures left out: a page holds {MOST_PICTURES // 10**6} MB of them."
    )
    return replace(album, strips=tuple(kept), missing=album.missing + ((reason,) if dropped else ()))


def _html(views: Sequence[SweepView], problems: Sequence[str], live: str) -> str:
    specs: list[Mapping[str, Any]] = []

    def place(figure: Figure) -> int:
        """Number a figure and keep its specification for the page's script."""
        specs.append({**figure.spec, "height": figure.height})
        return len(specs) - 1

    template = _environment().from_string(_part("page.html"))
    scripts = {"plotly": plotly_bundle(), "own": _part("page.js")} | ({"live": _part("live.js")} if live else {})
    body = template.render(
        views=views,
        problems=[wording.visible(problem) for problem in problems],
        place=place,
        specs=lambda: Markup(script_json(specs)),
        style=Markup(_part("page.css") + (_part("live.css") if live else "")),
        scripts={name: Markup(text) for name, text in scripts.items()},
        hashes=" ".join(script_hash(text) for text in scripts.values()),
        jpeg=lambda picture: data_uri(picture.data, "image/jpeg"),
        most_details=MOST_DETAILS,
        most_classes=MOST_CLASSES,
        lines=lambda text: Markup(escape(text)),  # JSON in ASCII or one line: its line breaks may stay
        number=wording.number,
        percent=wording.percent,
        live=live,
    )
    return body + "\n"


@lru_cache(maxsize=1)
def plotly_bundle() -> str:
    """plotly.js as its Python package ships it: there is one bundle, of 4.8 MB."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _environment() -> Environment:
    """Every text is escaped, and what cannot be seen in it (direction marks, control characters) is blanked."""

    def seen(value: Any) -> Any:
        return value if isinstance(value, Markup) else wording.visible(value)

    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=seen)


def _part(name: str) -> str:
    return (files("bench.page") / name).read_text(encoding="utf-8")
