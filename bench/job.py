"""A job: a trial with what a worker needs to run it and its rows need to say of it."""

from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from bench import mirror
from bench.data.source import Source
from bench.records import Record
from bench.space import Value
from bench.trial import Trial


class Provenance(Record):
    """Where the code came from; found once, by the driver."""

    git_commit: str = ""
    git_dirty: bool = False
    versions: dict[str, str] = Field(default_factory=dict)


class Job(Record):
    """One trial as a sweep asks for it. Everything here but `trial` leaves the result as it is."""

    trial: Trial
    sources: dict[str, Source]  # by fingerprint
    sweep: str
    sweep_id: str
    stage: Literal["search", "confirm"]
    configuration: str
    role: Literal["best", "baseline", "control"] | None = None
    draw: int | None = None
    swept: dict[str, Value] = Field(default_factory=dict)
    rungs: tuple[int, ...] = ()
    out: str  # a folder, or an address on a store
    cache: str
    workers: int = 1
    threads: int = 1
    generation: int = 0  # of its ledger record, at least: other machines' records may not be at hand
    provenance: Provenance = Provenance()

    @cached_property
    def results(self) -> Path:
        """The results folder, or this machine's mirror of it."""
        return mirror.local(self.out)

    @cached_property
    def folder(self) -> Path:
        """Checkpoints, encoder and errors of this pretraining, shared by all trials that use it."""
        return self.results / "trials" / self.trial.pretrain_id[:16]

    @property
    def encoder(self) -> Path:
        """Where the pretrained encoder is kept."""
        return self.folder / "encoder.safetensors"

    @property
    def state(self) -> Path:
        """The checkpoint of its training, until the encoder is kept; the one before it lies beside it."""
        return self.folder / "state.safetensors"


def label(job: Job) -> str:
    """What people call a job: "simclr, draw 3", or "simclr, seed 1"."""
    number = f"draw {job.draw}" if job.stage == "search" else f"seed {job.trial.seed}"
    return f"{job.configuration}, {number}"
