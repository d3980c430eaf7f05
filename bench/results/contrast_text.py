"""A contrast for the terminal, as Markdown and as JSON."""

import json
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.results import wording
from bench.results.contrast import Board, Contrast, Result
from bench.results.grid import Cell, Grid, Line, plain_table
from bench.results.markdown import escape, paragraph, table_lines
from bench.results.sides import Side
from bench.results.statistics import Mean
from bench.results.tables import Entry, TextTable
from bench.results.wording import visible

LETTERS = ("A", "B")
HEADS = (*LETTERS, "A - B", "p")
_COSTS = ("objective", "device_seconds", "images_per_second", "peak_memory_bytes")
_COST_HEADS = ("validation %", "device time", "images/s", "memory")


def terminal(found: Contrast) -> RenderableType:
    """The answer, who is compared, the scores, the costs, what differs, and what to know."""
    parts: list[RenderableType] = [Text(found.answer, "bold"), Text("\n".join(who(found)))]
    for board in found.boards:
        lines = [Line([Text(_where(each))], dict(zip(HEADS, _cells(each), strict=True))) for each in board.results]
        grid = Grid(["dataset"], {head: Text(head) for head in HEADS}, lines)
        parts.append(Group(Text.assemble((_title(board), "bold"), ", test score in %, A - B in points"), grid))
    parts += [Text("\n".join(alone(found)))] if alone(found) else []
    parts += [_rich(table) for table in (costs(found), differences(found)) if table.rows]
    parts += [Text(line) for line in only(found)]
    parts.append(Text("\n".join((*legend(found), *found.notes)), "dim"))
    return Group(*(each for part in parts for each in (part, Text(""))))


def markdown(found: Contrast) -> str:
    """The same in Markdown."""
    parts = [f"**{escape(found.answer)}**", "\n".join(f"- {escape(line)}" for line in who(found))]
    for table in (*map(scores, found.boards), costs(found), differences(found)):
        parts += [f"**{escape(table.title)}**", table_lines(table)] if table.rows else []
    lines = [*alone(found), *only(found), *legend(found), *found.notes]
    return "\n\n".join([*parts, *map(paragraph, lines)]) + "\n"


def as_json(found: Contrast) -> str:
    """The same as data: fractions, null where there is no number."""
    sides = []
    for side, name, cost in zip(found.sides, found.names, found.costs, strict=True):
        facts: dict[str, Any] = {"name": name, "sweep": side.sweep, "stages": sorted(side.rows["stage"].unique())}
        facts |= {"seeds": side.seeds, "trials": sorted(side.finished["trial_id"])}
        sides.append(facts | {key: _number(cost[key]) for key in _COSTS})
    both = {name: {"a": a, "b": b} for name, (a, b) in found.differing.both.items()}
    tree = {
        "answer": found.answer,
        "a": sides[0],
        "b": sides[1],
        "results": [_record(board, each) for board in found.boards for each in board.results],
        "differs": both,
        "only_a": dict(found.differing.only[0]),
        "only_b": dict(found.differing.only[1]),
        "notes": list(found.notes),
    }
    return json.dumps(tree, indent=2, allow_nan=False) + "\n"


def _record(board: Board, each: Result) -> dict[str, Any]:
    place = {"protocol": board.protocol, "variant": board.variant, "dataset": each.dataset}
    gap = each.gap
    numbers = ("difference", "low", "high", "p_value")
    paired = {name: None if gap is None else _number(getattr(gap, name)) for name in numbers}
    return {
        **place,
        "metric": each.metric or board.metric,
        "samples": each.samples,
        "a": _mean(each.first),
        "b": _mean(each.second),
        **paired,
        "pairs": 0 if gap is None else int(gap.seeds),
        "alone_a": list(each.alone[0]),
        "alone_b": list(each.alone[1]),
    }


def _mean(mean: Mean | None) -> dict[str, Any] | None:
    if mean is None:
        return None
    return {"mean": mean.mean, "low": _number(mean.low), "high": _number(mean.high), "seeds": mean.seeds}


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def who(found: Contrast) -> list[str]:
    """A line for each side: its letter, its name and where it is from."""
    return [
        f"{letter}  {visible(name)}: {_origin(side)}"
        for letter, name, side in zip(LETTERS, found.names, found.sides, strict=True)
    ]


def _origin(side: Side) -> str:
    stages = " and ".join(sorted(side.rows["stage"].unique()))
    word = "seed" if len(side.seeds) == 1 else "seeds"
    return f"{visible(side.rows['method'].iloc[0])}, sweep {visible(side.sweep)}, {stages}, {word} {_list(side.seeds)}"


def scores(board: Board) -> TextTable:
    """One protocol's scores and differences."""
    table = TextTable(f"{_title(board)}, test score in %, A - B in points", ["dataset", *HEADS, "pairs"])
    for each in board.results:
        *cells, last = _cells(each)
        texts = [f"{cell.value} {cell.interval}".strip() for cell in cells]
        pairs = last.interval.partition(" ")[0]
        table.rows.append([Entry(_where(each).replace("\n", ", ")), *map(Entry, (*texts, last.value, pairs))])
    return table


def _cells(each: Result) -> list[Cell]:
    """Both means, the difference, and its p with the number of pairs."""
    gap = each.gap
    means = [
        Cell() if mean is None else Cell(wording.percent(mean.mean, 4), wording.interval(mean.low, mean.high))
        for mean in (each.first, each.second)
    ]
    if gap is None:
        return [*means, Cell(), Cell("", wording.count(0, "pair"))]
    style = "bold" if gap.separated is True else ""
    difference = Cell(wording.points(gap.difference), wording.interval(gap.low, gap.high, signed=True), style=style)
    p = wording.p_value(gap.p_value).removeprefix("p ").removeprefix("= ")
    return [*means, difference, Cell(p, wording.count(int(gap.seeds), "pair"))]


def _where(each: Result) -> str:
    if each.dataset is None:
        return "mean over datasets"
    count = "" if each.samples is None else f", n={each.samples}"
    return f"{visible(each.dataset)}\n{wording.metric_name(each.metric)}{count}"


def _title(board: Board) -> str:
    metric = f", {wording.metric_name(board.metric)}" if board.metric else ""
    return wording.protocol_name(board.protocol, board.variant) + metric


def alone(found: Contrast) -> list[str]:
    """The seeds without a partner, each list of places once."""
    places: dict[tuple[Any, ...], list[str]] = {}
    for board in found.boards:
        for each in board.results:
            if each.dataset is not None and any(each.alone):
                places.setdefault(each.alone, []).append(f"{visible(each.dataset)} ({_title(board)})")
    lines = []
    for seeds, where in places.items():
        sides = [f"{_list(mine)} of {letter}" for mine, letter in zip(seeds, LETTERS, strict=True) if mine]
        lines.append(f"Seeds without a partner: {' and '.join(sides)}, on {', '.join(where)}.")
    return lines


def costs(found: Contrast) -> TextTable:
    """What a trial of each side cost, and its validation objective."""
    table = TextTable("cost per trial", ["", *_COST_HEADS])
    for letter, cost in zip(LETTERS, found.costs, strict=True):
        objective, seconds, speed, memory = (cost[key] for key in _COSTS)
        rate = "" if math.isnan(speed) else f"{speed:,.0f}"
        texts = [wording.percent(objective), wording.duration(seconds), rate, wording.memory(memory)]
        table.rows.append([Entry(letter), *map(Entry, texts)])
    return table


def differences(found: Contrast) -> TextTable:
    """The fields that both have and that differ."""
    table = TextTable("what differs in their configurations", ["field", *LETTERS])
    for name, values in found.differing.both.items():
        table.rows.append([Entry(visible(name)), *(Entry(_value(value)) for value in values)])
    return table


def only(found: Contrast) -> list[str]:
    """The fields that only one side has; a line where nothing differs at all."""
    lines = []
    for letter, fields in zip(LETTERS, found.differing.only, strict=True):
        told = ", ".join(f"{visible(name)} = {_value(value)}" for name, value in fields.items())
        lines += [f"Only {letter} has: {told}."] if told else []
    return lines if lines or found.differing.both else ["Their configurations do not differ, but for the seeds."]


def legend(found: Contrast) -> list[str]:
    """What the numbers are."""
    lines = [
        "[95 % interval: t over seeds; of one seed bootstrap over test samples]; A - B and p: paired over the seeds "
        "that both have (t), each row by itself; n: test samples."
    ]
    if alone(found):
        lines.append("A and B are means over all their seeds, A - B over the pairs.")
    return lines


def _value(value: Any) -> str:
    return (
        visible(json.dumps(value))
        if isinstance(value, list | dict)
        else "none"
        if value is None
        else wording.number(value)
    )


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _rich(table: TextTable) -> RenderableType:
    shown: Table = plain_table()
    for index, head in enumerate(table.heads):
        shown.add_column(head, justify="left" if index == 0 or table.heads[0] == "field" else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(entry.text) for entry in row))
    return Group(Text(table.title, "bold"), shown)
