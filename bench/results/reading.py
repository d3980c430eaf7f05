"""Read from a ledger what a report shows, and little more: large ledgers are mostly searches that lost."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.results.ledger import Ledger, Reading
from bench.results.selection import Filters, of_sweep, select, sweeps


def read_shown(
    out: Path,
    sweep: str | None,
    columns: Sequence[str],
    *,
    every: bool = False,
    search: bool = False,
    trials: Sequence[str] = (),
) -> Reading:
    """The first row of every trial, and the test scores of those that a report shows; of `every` trial if so asked.

    `search`: the report shows what the search chose also where something is confirmed. `trials`: how the ids of further
    trials begin whose scores are read.
    """
    stages = ("search",) if search else ()

    def chosen(frame: pd.DataFrame) -> set[str]:
        open_ = [name for name in sweeps(frame) if search or not (of_sweep(frame, name)["stage"] == "confirm").any()]
        shown = [select(frame, name, Filters(stages=stages)).shown for name in open_]
        named = [trial for trial in frame["trial_id"].unique() if trials and trial.startswith(tuple(trials))]
        return {trial for rows in shown for trial in rows["trial_id"]} | set(named)

    return Ledger(out).read(sweep, columns, depth="scores", searched=None if every else chosen)
