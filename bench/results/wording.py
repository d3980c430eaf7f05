"""How numbers and names are written in every report, whatever its format."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import pandas as pd

from bench.results.findings import Findings
from bench.results.frames import rows_of
from bench.results.leaderboard import Standing
from bench.results.published import published
from bench.results.ranking import RankTest
from bench.results.selection import FINALITY, NO_FILTERS, Best, Filters
from bench.results.statistics import needed_reach

FEW_SEEDS = 5
EACH = 5  # failed trials of one cause that are named each
NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "mean/class",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
}


def visible(text: object) -> str:
    """`text` on one line without control characters, which a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def percent(value: Any, width: int = 0) -> str:
    """A fraction as percent with one decimal; blank where there is none."""
    return "" if pd.isna(value) else f"{100 * value:{width}.1f}"


def points(value: Any) -> str:
    """A difference of fractions as signed percentage points; blank where there is none."""
    # Adding 0.0 turns the minus zero of a rounded small loss into a plain zero.
    return "" if pd.isna(value) else f"{round(100 * value, 1) + 0.0:+.1f}"


def interval(low: Any, high: Any, *, signed: bool = False) -> str:
    """`[68.4, 73.9]`; blank where there is none."""
    write = points if signed else percent
    return "" if pd.isna(low) or pd.isna(high) else f"[{write(low)}, {write(high)}]"


def p_value(p: Any) -> str:
    """`p = 0.11`, `p < 0.001`; blank where there is none."""
    if pd.isna(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p >= 0.01 else f"p = {p:.3f}"


def duration(seconds: Any) -> str:
    """`48 s`, `3 min 20 s`, `2 h 05 min`; blank where there is none."""
    if pd.isna(seconds):
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def memory(size: Any) -> str:
    """Bytes as MiB or GiB; blank where there is none."""
    if pd.isna(size):
        return ""
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


def count(number: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def number(value: Any) -> str:
    """A hyperparameter's value, short."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).lower() if str(value) in ("True", "False") else visible(value)


def protocol_name(protocol: Any, variant: Any) -> str:
    """`linear`, `knn k=20`."""
    return visible(f"{protocol} {variant}".strip())


def metric_name(metric: Any) -> str:
    """A metric's name for people."""
    return NAMES.get(str(metric), visible(metric))


def standing_name(board: Standing) -> str:
    """`linear`, `knn k=20, macro F1`."""
    metric = f", {metric_name(board.metric)}" if board.metric else ""
    return protocol_name(board.protocol, board.variant) + metric


def legend(board: pd.DataFrame) -> str:
    """What the marks and brackets of a leaderboard mean."""
    ranges = [
        name
        for name, used in (
            ("t over seeds", (board["seeds"] > 1).any()),
            ("bootstrap over test samples for one seed", (board["seeds"] == 1).any()),
        )
        if used
    ]
    known = board["tie"].notna() & ~board["best"]
    untold = "no ties can be told" if (board["seeds"] > 1).any() else "one seed tells no ties"
    ties = "= tied with it (not separated, all pairs over seeds, Holm)" if known.any() else untold
    groups = "; those that share a letter are tied over all datasets" if board["group"].fillna("").any() else ""
    beside = "; F1: macro F1, as the classes are unequal" if board["macro_f1"].notna().any() else ""
    return f"{ties}{groups}; [95 % interval: {', '.join(ranges)}]; n: test samples{beside}"


def filter_line(filters: Filters) -> str:
    """What a filtered report says of itself; empty where nothing is filtered."""
    if filters == NO_FILTERS:
        return ""
    return (
        f"Shown only: {visible(filters)}. Ranks, ties and means over datasets are among what is shown, with all "
        "controls; what validation chose, and what p-values are adjusted for, is as without filters."
    )


def rank_lines(boards: Sequence[Standing]) -> list[str]:
    """`rank_line` of each standing, each caveat that stands alone once."""
    tested = [(standing_name(board), board.test) for board in boards if board.test]
    lines = [rank_line(test) if test.powerless else f"{name}: {rank_line(test)}" for name, test in tested]
    return list(dict.fromkeys(lines))


def rank_line(test: RankTest) -> str:
    """Friedman's test in a sentence, with its caveat; the caveat alone where there is no power."""
    if test.powerless:
        return test.caveat
    numerator, denominator = test.freedom
    value = "over 999" if test.f > 999 else f"{test.f:.2f}"
    return (
        f"Friedman over {count(test.datasets, 'dataset')} and {count(len(test.ranks), 'configuration')}: "
        f"F({numerator}, {denominator}) = {value}, {p_value(test.p_value)} (Iman-Davenport); critical difference "
        f"{test.critical_difference:.2f} ranks (Nemenyi). {test.caveat}"
    ).rstrip()


def seed_lines(board: pd.DataFrame, gaps: pd.DataFrame) -> list[str]:
    """What few seeds cannot show: a line, or none from five seeds on."""
    shown = gaps[gaps["seeds"] > 0]
    seeds = int((shown if len(shown) else board)["seeds"].replace(0, pd.NA).min()) if len(board) else FEW_SEEDS
    if seeds >= FEW_SEEDS:
        return []
    if seeds < 2:
        return ["One seed: nothing about the spread between runs is known, so no difference is settled."]
    tested = int(shown["comparisons"].max()) if len(shown) else 1
    more = f", or {needed_reach(seeds, tested):.1f} where {tested} are tested" if tested > 1 else ""
    return [
        f"{seeds} seeds are few: a difference is separated only if it exceeds {needed_reach(seeds):.1f} standard "
        f"deviations of the paired differences{more}."
    ]


def notes(found: Findings, best: str = "*") -> list[str]:
    """What is said below the leaderboards: the marks (`best` marks the highest), published figures, few seeds."""
    board = found.board
    lines = [f"{best} highest mean, {legend(board)}.", published_line(found.sweep, board)]
    if found.filters.methods and found.gaps.empty and found.selection.leader:
        lines.append(f"Validation prefers {visible(found.selection.leader)}, which the filter hides: no comparison.")
    return [line for line in (*lines, *seed_lines(board, found.gaps), *rank_lines(found.standings)) if line]


def published_line(sweep: str, board: pd.DataFrame) -> str:
    """Where published figures are from; empty where none is shown."""
    study = published(sweep)
    if study is None or board["published"].isna().all():
        return ""
    return f"{study.label} ({study.source}, {study.dataset}); beside, never compared."


def answers(gaps: pd.DataFrame) -> list[str]:
    """The sweep's question answered from a `comparison`, then a sentence for each other configuration.

    The first protocol speaks, which is the objective's. Controls speak where there is nothing else.
    """
    overall = gaps[gaps["dataset"].isna()]
    rivals = overall[overall["role"] != "control"]
    rows = rows_of((overall if rivals.empty else rivals).drop_duplicates("baseline"))
    candidates = 1 + sum(row.role == "best" for row in rows)
    first = [answer(row, candidates) for row in rows[:1]]
    return first + [sentence(row) for row in rows[1:]]


def answer(row: Any, candidates: int) -> str:
    """The sweep's own question in one sentence; `row` is the first of its comparisons."""
    said = sentence(row)
    if candidates < 2 or pd.isna(row.difference):
        return said
    return f"Of {candidates} candidates validation prefers {visible(row.configuration)}: {said[0].lower()}{said[1:]}"


def search_lines(bests: Sequence[Best]) -> list[str]:
    """What the search chose, a line per candidate."""
    lines = []
    for best in bests:
        swept = ", ".join(f"{visible(name)} = {number(value)}" for name, value in sorted(best.swept.items()))
        which = "" if best.draw is None else f"draw {best.draw}, "
        chosen = f"{swept} ({which}validation" if swept else "nothing to search (validation"
        lines.append(f"Search chose for {visible(best.candidate)}: {chosen} {percent(best.objective)} %).")
    return lines


def trial_lines(counts: Mapping[str, int], versions: int) -> list[str]:
    """How many trials ended how, and whether the ledger holds other versions of the sweep."""
    ended = ", ".join(f"{counts[status]} {status}" for status in FINALITY)
    reused = f"; {counts['reused']} of them reused from other sweeps" if counts["reused"] else ""
    lines = [f"Trials: {ended}{reused}."]
    return lines + ([f"The ledger also holds {count(versions, 'earlier version')} of this sweep."] if versions else [])


def failures(rows: Sequence[Any]) -> list[str]:
    """Failed trials, a line each; what befell more than `EACH` of them has one line, with the first and the count."""
    lines = []
    for _, alike in groupby(sorted(rows, key=_reason), key=_reason):
        first, *others = alike
        lines += [failure(first, len(others))] if len(others) >= EACH else [failure(row) for row in (first, *others)]
    return lines


def failure(row: Any, more: int = 0) -> str:
    """One failed trial: which, why, where its traceback is; and `more` like it. `row` is of `failures`."""
    which = row.configuration
    which += "" if pd.isna(row.draw) else f" draw {row.draw}"
    where = "" if pd.isna(row.error_file) else f" ({row.error_file})"
    beside = f" and {more:,} more" if more else ""
    return visible(f"{row.trial_id[:12]} {which}, seed {row.seed}{beside}: {row.error}{where}")


def _reason(row: Any) -> str:
    return str(row.error)


def sentence(row: Any) -> str:
    """One sentence that answers a sweep's question, from a row of `comparison`."""
    name, baseline = visible(row.configuration), visible(row.baseline)
    where = count(row.datasets, "dataset") if pd.isna(row.dataset) else visible(row.dataset)
    start = f"Over {where} and {count(row.seeds, 'seed')} ({protocol_name(row.protocol, row.variant)}), "
    if pd.isna(row.difference):
        return f"{name} and '{baseline}' have no seed in common yet."
    gap = round(100 * row.difference, 1)
    place = "level with" if gap == 0 else f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'}"
    claim = f"{start}{name} scores {place} '{baseline}'"
    if pd.isna(row.low):
        why = "one seed gives no interval" if row.seeds == 1 else str(row.interval)
        return f"{claim}; {why}, so nothing is settled."
    verdict = "separated" if row.separated else "not separated"
    spread = f"95 % interval {points(row.low)} to {points(row.high)}, {p_value(row.p_value)}"
    return f"{claim} ({spread}{adjusted(row)}): {verdict}."


def adjusted(row: Any) -> str:
    """`; p = 0.12 by Holm over 4 comparisons`; empty where nothing else was tested."""
    if pd.isna(row.p_adjusted) or row.comparisons < 2:
        return ""
    return f"; {p_value(row.p_adjusted)} by Holm over {row.comparisons} comparisons"
