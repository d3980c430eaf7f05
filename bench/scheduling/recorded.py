"""What the ledger holds of a sweep when its driver starts, read in one go.

To ask the ledger about one trial is to list its folder. A driver that goes on with thousands of draws would list
thousands of files thousands of times: ten thousand draws would take it a quarter of an hour.
"""

from typing import NamedTuple

from bench.job import Job
from bench.results.ledger import Ledger

_COLUMNS = ("trial_id", "sweep_id", "stage", "configuration", "status", "objective")
Place = tuple[str, str, str]  # trial, stage, configuration


class Recorded(NamedTuple):
    """How a trial ended that is recorded in its place in the sweep: "finished" or "pruned"."""

    status: str
    objective: float


def place(job: Job) -> Place:
    """What its record is known by within a version of a sweep."""
    return job.trial.id, job.stage, job.configuration


def recorded(ledger: Ledger, sweep: str, sweep_id: str) -> dict[Place, Recorded]:
    """The trials of this version of the sweep that need nothing more, by place; not those whose file is damaged."""
    from bench.results.frames import rows_of  # imports pandas, which a sweep that begins does without

    frame = ledger.read(sweep, _COLUMNS, depth="first").frame
    rows = frame[
        (frame["sweep_id"] == sweep_id) & frame["status"].isin(["finished", "pruned"]) & frame["objective"].notna()
    ]
    return {
        (row.trial_id, row.stage, row.configuration): Recorded(row.status, float(row.objective))
        for row in rows_of(rows)
    }
