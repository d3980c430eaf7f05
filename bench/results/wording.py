"""How numbers and names are written in every report, whatever its format."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.results.frames import rows_of
from bench.results.leaderboard import Best, trial_counts

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
    ties = "= not separated from it, paired over seeds" if known.any() else "ties cannot be told from these seeds"
    return f"{ties}; [95 % interval: {', '.join(ranges)}]; n: test samples"


def answers(gaps: pd.DataFrame) -> list[str]:
    """The sweep's question answered from a `comparison`: a sentence per baseline and other candidate.

    Controls answer where there is neither. By the first protocol, which is the objective's.
    """
    overall = gaps[gaps["dataset"].isna()]
    rivals = overall[overall["role"] != "control"]
    rows = overall if rivals.empty else rivals
    return [sentence(row) for row in rows_of(rows.drop_duplicates("baseline"))]


def search_lines(bests: Sequence[Best]) -> list[str]:
    """What the search chose, a line per candidate."""
    lines = []
    for best in bests:
        swept = ", ".join(f"{visible(name)} = {number(value)}" for name, value in sorted(best.swept.items()))
        which = "" if best.draw is None else f"draw {best.draw}, "
        chosen = f"{swept} ({which}validation" if swept else "nothing to search (validation"
        lines.append(f"Search chose for {visible(best.candidate)}: {chosen} {percent(best.objective)} %).")
    return lines


def trial_lines(frame: pd.DataFrame, sweep: str) -> list[str]:
    """How many trials ended how, and whether the ledger holds other versions of the sweep."""
    counts = trial_counts(frame, sweep)
    ended = ", ".join(f"{counts[status]} {status}" for status in ("finished", "pruned", "failed"))
    reused = f"; {counts['reused']} of them reused from other sweeps" if counts["reused"] else ""
    lines = [f"Trials: {ended}{reused}."]
    others = frame.loc[frame["sweep"] == sweep, "sweep_id"].nunique() - 1
    return lines + ([f"The ledger also holds {count(others, 'earlier version')} of this sweep."] if others else [])


def failure(row: Any) -> str:
    """One failed trial: which, why, and where its traceback is; `row` is of `failures`."""
    which = row.configuration
    which += "" if pd.isna(row.draw) else f" draw {row.draw}"
    where = "" if pd.isna(row.error_file) else f" ({row.error_file})"
    return visible(f"{row.trial_id[:12]} {which}, seed {row.seed}: {row.error}{where}")


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
    return f"{claim} (95 % interval {points(row.low)} to {points(row.high)}, {p_value(row.p_value)}): {verdict}."
