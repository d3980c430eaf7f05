"""Figures as plotly specifications: learning curves, accuracy against cost, confusion matrices."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.page.trials import Confusion, Detail
from bench.results import wording
from bench.results.leaderboard import Standing
from bench.safe import label

MOST_LINES = 60  # in one figure of learning curves
MOST_POINTS = 400  # epochs of one line
MOST_LOSSES = 4  # figures of learning curves for one method
MOST_CLASSES = 120  # of a confusion matrix that is drawn
CROWDED = 40  # classes above which their names are small and upright
CONFUSED = 5  # pairs of classes that are named
COLOURS = ("#2f6fde", "#e0762f", "#2a9d63", "#c2419b", "#8b6fd8", "#b8982c", "#2aa3b5", "#d64545")
DASHES = ("solid", "dot", "dash", "dashdot")


@dataclass(frozen=True)
class Figure:
    """A plotly figure; `note` is its text alternative, `least` the width in px below which it scrolls."""

    title: str
    note: str
    spec: Mapping[str, Any]
    height: int = 380
    least: int = 0


def curve_figures(details: Sequence[Detail]) -> list[Figure]:
    """Each method's losses by epoch, a line per trial, coloured by configuration."""
    figures = []
    for method in sorted({detail.method for detail in details if detail.curves}):
        trials = [detail for detail in details if detail.method == method and detail.curves]
        trials = sorted(trials, key=lambda each: each.stage)[:MOST_LINES]
        names = list(dict.fromkeys(str(name) for each in trials for name in each.curves[0]["losses"]))
        figures += [_curves(method, name, trials) for name in names[:MOST_LOSSES]]
    return figures


def _curves(method: str, loss: str, trials: Sequence[Detail]) -> Figure:
    configurations = list(dict.fromkeys(each.configuration for each in trials))
    seen: set[str] = set()
    lines = []
    for each in trials:
        epochs = _thinned(each.curves)
        place = configurations.index(each.configuration)
        lines.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(epochs) < 3 else "lines",
                "x": [_number(epoch.get("number")) for epoch in epochs],
                "y": [_number(epoch["losses"].get(loss)) for epoch in epochs],
                "name": label(each.configuration),
                "legendgroup": str(place),
                "showlegend": each.configuration not in seen,
                "text": label(each.label),
                "hovertemplate": "%{text}<br>epoch %{x}: %{y:.4g}<extra></extra>",
                "opacity": 1.0 if each.stage == "confirm" else 0.45,
                "line": {"color": COLOURS[place % len(COLOURS)], "dash": DASHES[place // len(COLOURS) % len(DASHES)]},
            }
        )
        seen.add(each.configuration)
    layout = {"xaxis": {"title": {"text": "epoch"}}, "yaxis": {"title": {"text": label(loss)}}}
    ends = [value for each in trials if (value := _number(each.curves[-1]["losses"].get(loss))) is not None]
    span = f" At the end it is {min(ends):.4g} to {max(ends):.4g}." if ends else ""
    note = f"{len(trials)} trials of {method}; those of the search are faint.{span}"
    return Figure(f"{method}: {loss} by epoch", note, {"data": lines, "layout": layout})


def front(points: Sequence[tuple[str, float, float]]) -> list[str]:
    """The names on the Pareto front of (name, cost, score): none is both cheaper and better, the cheapest first."""
    best, names = -math.inf, []
    for name, _, score in sorted(points, key=lambda point: (point[1], -point[2], point[0])):
        if score > best:
            best = score
            names.append(name)
    return names


def cost_figure(standing: Standing) -> Figure | None:
    """The mean test score of each configuration with all datasets against its device time, with the Pareto front."""
    points, roles = [], {}
    for name, rows in standing.rows.groupby("configuration", sort=False):
        value, seconds = rows["value"].astype(float), float(rows["device_seconds"].iloc[0])
        if value.notna().all() and math.isfinite(seconds):
            points.append((str(name), seconds, float(value.mean())))
            roles[str(name)] = rows["role"].iloc[0]
    if not points:
        return None
    best = front(points)
    line = sorted((cost, score) for name, cost, score in points if name in best)
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "x": [cost for cost, _ in line],
            "y": [100 * score for _, score in line],
            "line": {"shape": "hv", "dash": "dot", "width": 1.5, "color": "#888888"},
            "hoverinfo": "skip",
        }
    ]
    for place, (name, cost, score) in enumerate(points):
        shape = "diamond-open" if roles[name] == "control" else "circle"
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label(name),
                "x": [cost],
                "y": [100 * score],
                "text": [label(name)],
                "hovertemplate": "%{text}<br>%{x:.3g} s, %{y:.1f} %<extra></extra>",
                "cliponaxis": False,
                "marker": {"size": 12, "symbol": shape, "color": COLOURS[place % len(COLOURS)]},
            }
        )
    layout = {
        "xaxis": {"title": {"text": "device time per trial, seconds"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "mean test score, %"}},
    }
    named = wording.protocol_name(standing.protocol, standing.variant)
    note = f"{named}, mean over datasets and seeds; device time of pretraining. On the front: {', '.join(best)}."
    return Figure("Accuracy against cost", note, {"data": data, "layout": layout})


def confusion_figure(title: str, matrix: Confusion) -> Figure:
    """A row-normalised confusion matrix; one of many classes is described and not drawn."""
    size = len(matrix.classes)
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix.counts]
    note = confused(matrix)
    if size > MOST_CLASSES:
        return Figure(title, f"{size} classes are too many to draw. {note}", {})
    names = [label(_cut(name)) for name in matrix.classes]
    small = {"tickfont": {"size": 9}} if size > CROWDED else {}
    # Names stand on the axes as texts of numbered places: two classes may look alike.
    ticks = {
        "tickmode": "array",
        "tickvals": list(range(size)),
        "ticktext": names,
        "showgrid": False,
        "zeroline": False,
    } | small
    hover = [[f"{true} taken for {said}" for said in names] for true in names] if size <= CROWDED else None
    data = {
        "type": "heatmap",
        "z": [[round(share, 3) for share in row] for row in shares],
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "rgba(47,111,222,0)"], [1, "rgba(47,111,222,0.8)"]],
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": ("%{text}: " if hover else "") + "%{z:.1%}<extra></extra>",
        "colorbar": {"tickformat": ".0%", "thickness": 10, "len": 0.8},
    } | ({"text": hover} if hover else {})
    if size <= 12:
        data["texttemplate"] = "%{z:.0%}"
    layout = {
        "xaxis": {"title": {"text": "answered"}, "constrain": "domain", "tickangle": -90 if small else -40} | ticks,
        "yaxis": {"title": {"text": "true"}, "autorange": "reversed"} | ticks,
    }
    height = max(380, 190 + (12 if small else 16) * size)
    return Figure(title, note, {"data": [data], "layout": layout}, height=height, least=12 * size if small else 0)


def confused(matrix: Confusion) -> str:
    """Which classes are most often taken for which."""
    pairs = [
        (count / sum(row), count, matrix.classes[i], matrix.classes[j])
        for i, row in enumerate(matrix.counts)
        for j, count in enumerate(row)
        if i != j and count
    ]
    if not pairs:
        return "No test image is taken for another class."
    top = sorted(pairs, key=lambda pair: (-pair[0], -pair[1], pair[2], pair[3]))[:CONFUSED]
    said = "; ".join(f"{true} for {answered} ({share:.0%} of its images)" for share, _, true, answered in top)
    return f"Most often mistaken: {said}."


def _cut(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."


def _thinned(epochs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    step = -(-len(epochs) // MOST_POINTS)
    return [*epochs[:-1:step], epochs[-1]]


def _number(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return None
