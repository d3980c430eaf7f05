"""The critical-difference diagram (Demsar, JMLR 7, 2006, figure 1) as SVG that follows the page's colours."""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from bench.results.ranking import RankTest
from bench.results.wording import visible

WIDTH, SIDE, ROW, TOP = 860, 250, 22, 64
LONGEST = 26  # characters of a name in the diagram


def diagram(test: RankTest) -> Markup:
    """Average ranks on an axis, the best at the left; bars join what the critical difference does not separate."""
    count = len(test.ranks)
    names = list(test.ranks)
    half = -(-count // 2)
    bars = _bars(test, count)
    first = TOP + 14 + 9 * len(test.cliques)
    height = first + ROW * half + 8
    parts = [_axis(count), _reach(test, count), *bars]
    for place, name in enumerate(names):
        left = place < half
        row = place if left else count - 1 - place
        parts.append(_leader(name, test.ranks[name], count, first + ROW * row, left=left))
    told = "; ".join(f"{visible(name)} {rank:.2f}" for name, rank in test.ranks.items())
    words = f"Average ranks over {test.datasets} datasets: {told}. Critical difference {test.critical_difference:.2f}."
    body = Markup("").join(parts)
    return Markup(
        '<svg class="diagram" viewBox="0 0 {w} {h}" role="img" aria-label="{t}" preserveAspectRatio="xMidYMid meet">'
        "{b}</svg>"
    ).format(w=WIDTH, h=height, t=words, b=body)


def _x(rank: float, count: int) -> float:
    return SIDE + (rank - 1) / max(1, count - 1) * (WIDTH - 2 * SIDE)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, kind)


def _text(x: float, y: float, text: object, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(text))


def _axis(count: int) -> Markup:
    step = max(1, math.ceil(count / 12))
    ticks = range(1, count + 1, step)
    parts = [_line(_x(1, count), TOP, _x(count, count), TOP, "axis")]
    for tick in ticks:
        parts += [_line(_x(tick, count), TOP - 5, _x(tick, count), TOP, "axis")]
        parts += [_text(_x(tick, count), TOP - 9, tick, "middle")]
    return Markup("").join(parts)


def _reach(test: RankTest, count: int) -> Markup:
    """How long the critical difference is on the axis; no longer than the axis."""
    start, end = _x(1, count), _x(min(count, 1 + test.critical_difference), count)
    more = "" if 1 + test.critical_difference <= count else " (more than the axis)"
    return Markup("").join(
        (_line(start, 22, end, 22, "reach"), _text(start, 15, f"CD = {test.critical_difference:.2f}{more}", "start"))
    )


def _bars(test: RankTest, count: int) -> Sequence[Markup]:
    lines = []
    for place, members in enumerate(test.cliques):
        ranks = [test.ranks[name] for name in members]
        y = TOP + 10 + 9 * place
        lines.append(_line(_x(min(ranks), count) - 4, y, _x(max(ranks), count) + 4, y, "clique"))
    return lines


def _leader(name: str, rank: float, count: int, y: float, *, left: bool) -> Markup:
    """A line from the axis to a name at the side, with its rank."""
    x, end = _x(rank, count), SIDE - 10 if left else WIDTH - SIDE + 10
    shown = visible(name)
    shown = shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."
    words = f"{shown} {rank:.2f}" if left else f"{rank:.2f} {shown}"
    parts = (
        _line(x, TOP, x, y, "leader"),
        _line(x, y, end, y, "leader"),
        _text(end + (-5 if left else 5), y + 4, words, "end" if left else "start"),
    )
    return Markup("").join(parts)
