"""The agenda of a sweep: which trial comes next, and what becomes of each.

First come the draws of Optuna, which wait at rungs (see `halving`), then, when all of them have ended, the
confirmation of the best one. The ledger says what is finished; the study, kept beside it, says what was drawn. So the
same command goes on where it was left, whatever stopped it, and a finished trial is never run again. Several drivers
may work on one sweep, or on several that share trials: a trial that another driver runs is waited for (see `claims`).
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from optuna.trial import FrozenTrial, TrialState

from bench import mirror
from bench.execution import membership, trial_facts
from bench.job import Job, label
from bench.patience import patiently
from bench.plan import Plan
from bench.results.ledger import Ledger
from bench.results.schema import rows_table
from bench.scheduling import claims
from bench.scheduling.draws import Draws
from bench.scheduling.events import emit
from bench.scheduling.lease import Lease
from bench.scheduling.recorded import place, recorded
from bench.study import begin_studies, study_path

POLL = 1.0  # seconds between two looks at a trial that another driver runs
DIED = "the worker process died, and so did those started in its place: killed, as for want of memory, or its node lost"


@dataclass
class Failure:
    """A trial that failed: what, and where its traceback is."""

    label: str
    error: str
    file: str | None


@dataclass
class Tally:
    """What became of the trials of this command."""

    ran: int = 0
    reused: int = 0
    pruned: int = 0
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what did not go as planned and was mended

    def reasons(self) -> list[tuple[str, list[Failure]]]:
        """The failures by what went wrong: what befell many trials, as on a machine without the data, is said once."""
        found: dict[str, list[Failure]] = {}
        for failure in self.failures:
            found.setdefault(failure.error, []).append(failure)
        return list(found.items())


class Agenda:
    """Hands out jobs and records how they end. Lives in the driver; knows nothing of Ray."""

    def __init__(self, plan: Plan, *, force: bool = False, retry_failed: bool = False) -> None:
        self.plan, self.force, self.retry_failed = plan, force, retry_failed
        self._lease = Lease(plan.out / "sweeps" / f"{study_path(plan).stem}.driver")
        with ExitStack() as undo:  # a lease is not kept by what never drives
            undo.callback(self._lease.release)
            self._lease.acquire()
            self._open()
            undo.pop_all()

    def _open(self) -> None:
        """Take in what the sweep's record, ledger and studies say."""
        plan = self.plan
        patiently(plan.record)
        self.ledger = Ledger(plan.out)
        mirror.refresh(self.ledger.folder, fixed=True)
        patiently(self.ledger.renew, plan.sweep.name, plan.sweep_id)  # reports show the version that was asked for last
        self.tally = Tally()
        self.interrupted = False
        studies, self._journal = begin_studies(plan, fresh=self.force)
        self._draws = {name: Draws(plan, name, study) for name, study in studies.items()}
        self._running: dict[str, Job] = {}
        self._stopped: set[str] = set()  # what runs until it hears that it waits at a rung
        self._started: set[str] = set()  # trial ids that this command ran: --force runs each of them once
        self._trained: set[str] = set()  # pretrain ids of those trials
        self._ahead: Job | None = None
        self._later: list[Job] = []
        self._elsewhere: dict[Path, float] = {}  # folders that other drivers work in, and when to look again
        self._confirm: deque[Job] | None = None
        # Draws of earlier commands come first: what is in the ledger is told again, what is not is run.
        self._leftover = deque(self._unseen())
        told = self._leftover and not self.force
        self._recorded_before = patiently(recorded, self.ledger, plan.sweep.name, plan.sweep_id) if told else {}

    def is_done(self) -> bool:
        """Take in everything that is known already, and say whether nothing runs and nothing is left to run."""
        if self._running:
            return False
        if self._ahead is None:
            self._ahead = self._next()
        return self._ahead is None and not self._later

    def take(self, key: str) -> Job | None:
        """Hand out the next job, to be known as `key`; None while there is none (see `is_done`)."""
        job, self._ahead = self._ahead or self._next(), None
        self._keep()  # a draw is on the store before anything comes of it
        if job is not None:
            if mirror.is_mirrored(self.plan.out):  # the worker's mirror need not have the records
                job = job.model_copy(update={"generation": self.ledger.next_generation(job.trial.id)})
            self._running[key] = job
            self._started.add(job.trial.id)
            self._trained.add(job.trial.pretrain_id)
            emit("start", key, {"job": job})
        return job

    def at_rung(self, key: str, epoch: int, objective: float) -> bool:
        """Take in what `key` reached at a rung; whether it trains on, being what comes next. Else it is to be ended."""
        job = self._running.get(key)
        if job is None or job.draw is None:
            return True
        halving = self._draws[job.configuration].halving
        if not halving.reach(job, epoch, objective) or self._is_next(job):
            return True
        self._prune(halving.lost())
        self._stopped.add(key)
        return False

    def _is_next(self, job: Job) -> bool:
        """Whether a draw that has come to a rung would be handed out again at once."""
        if self._leftover or any(draws.missing() for draws in self._draws.values()):
            return False
        halving = self._draws[job.configuration].halving
        waiting = dict(halving.waiting)
        halving.hold(job)
        following = self._going_on(job.configuration)
        halving.waiting = waiting  # this was to see only
        return following is not None and following.draw == job.draw

    def end(self, key: str, result: Mapping[str, Any], *, died: bool = False) -> None:
        """Record how `key` ended: `result` is its last report; `died`: its process ended too often.

        What was not told to wait at a rung, and does not say that it finished or failed, was interrupted: the study
        keeps the draw open, and the next command goes on with it.
        """
        job = self._running.pop(key, None)
        if job is None:
            return
        if result.get("record"):
            mirror.fetch_new(self.ledger.folder / Path(result["record"]).name)
        self._end(key, job, result, died=died)
        self._release(job)

    def close(self) -> None:
        """Leave everything on the store, and the sweep to others."""
        try:
            self._lease.check()
            self._journal.close()
        finally:
            self._lease.release()

    def _keep(self) -> None:
        self._lease.check()
        self._journal.keep()

    def note(self, key: str, text: str) -> None:
        """Take in a line of what a running trial reports: what did not go as planned."""
        job = self._running.get(key)
        line = f"{label(job)}: {text}" if job is not None else ""
        if line and line not in self.tally.notes:  # Tune tells the last result twice
            self.tally.notes.append(line)
            emit("note", key, {"job": job, "text": text})

    def _end(self, key: str, job: Job, result: Mapping[str, Any], *, died: bool) -> None:
        waits = key in self._stopped
        self._stopped.discard(key)
        if result.get("failed") or died:
            self._failed(key, job, str(result.get("failed") or DIED))
        elif result.get("finished"):
            self.tally.ran += 1
            self._finished(job, float(result["objective"]))
            emit("finished", key, {"job": job, "objective": float(result["objective"])})
        elif waits:
            self._hold(key, job)
        else:
            self.interrupted = True

    # What comes next -----------------------------------------------------------------------------------

    def _next(self) -> Job | None:
        while (job := self._candidate()) is not None:
            if self._busy(job):
                self._later.append(job)  # the rows, or the encoder, are there for it when the other one has ended
            elif self._is_ours(job):
                if not self._is_held(job):
                    return job
                self._release(job)
                self._hold(job.trial.id, job)
        return None

    def _release(self, job: Job) -> None:
        """Give a claim back, unless the folder is that of a trial that runs."""
        if not any(other.folder == job.folder for other in self._running.values()):
            claims.release(job.folder)

    def _is_ours(self, job: Job) -> bool:
        """Whether the job is left to run and this driver has claimed it; one that another driver runs comes later."""
        if not (self.force or self.retry_failed) and self._known(job):
            return False
        if not _claim(job.folder):
            if job.folder not in self._elsewhere:
                emit("note", job.trial.id, {"job": job, "text": "another driver runs it, and is waited for"})
            self._elsewhere[job.folder] = time.monotonic() + POLL
            self._later.append(job)
            return False
        self._elsewhere.pop(job.folder, None)
        if not self._known(job):  # another driver may have ended it just before the claim
            return True
        self._release(job)
        return False

    def _busy(self, job: Job) -> bool:
        """Whether the same trial runs under another name, or something else is training the same encoder."""
        if time.monotonic() < self._elsewhere.get(job.folder, 0.0):
            return True
        same = [run for run in self._running.values() if run.trial.pretrain_id == job.trial.pretrain_id]
        return any(run.trial.id == job.trial.id for run in same) or (bool(same) and not job.encoder.exists())

    def _candidate(self) -> Job | None:
        ready = next((job for job in self._later if not self._busy(job)), None)
        if ready is not None:
            self._later.remove(ready)
            return ready
        if self._leftover:
            return self._leftover.popleft()
        if self._confirm is None:
            return self._search()
        return self._confirm.popleft() if self._confirm else None

    def _search(self) -> Job | None:
        """The next draw; when all have ended, those of other drivers too, the first job of the confirmation."""
        # Candidates are drawn in turn, the one that has most before it first: none waits for the others' learning.
        # One whose draw has to wait for an encoder draws no further: it would not have learned from that draw.
        later = [job for job in self._later if job.stage == "search"]
        waiting = {job.configuration for job in later if job.folder not in self._elsewhere}
        missing = {name: draws.missing() for name, draws in self._draws.items()}
        name = max(missing, key=lambda name: (name not in waiting, missing[name]))
        if missing[name] > 0 and name not in waiting:
            return self._draws[name].draw() or self._search()
        for name in self._draws:
            if (ready := self._going_on(name)) is not None:
                return ready
        if self._running or later or self.interrupted:
            return None
        self._leftover.extend(self._unseen())
        if not self._leftover:
            for draws in self._draws.values():
                self._prune(draws.halving.rest())
        if not self._leftover and not self._later:
            chosen = {name: draws.best() for name, draws in self._draws.items()}
            settled = {name: draw.params for name, draw in chosen.items() if draw is not None}
            self._confirm = deque(self.plan.confirm_jobs(settled))
        return self._candidate() if self._leftover or self._confirm else None

    def _going_on(self, name: str) -> Job | None:
        """A candidate's draw that waited at a rung and goes on."""
        mine = (job for job in (*self._running.values(), *self._later) if job.configuration == name)
        return self._draws[name].going_on([job for job in mine if job.stage == "search"])

    def _unseen(self) -> list[Job]:
        """The jobs of draws that others made: earlier commands, or drivers that work on the same sweep now.

        What is in the ledger is told again, what is not is run, unless someone else is running it.
        """
        return [job for draws in self._draws.values() for job in draws.unseen()]

    def _is_held(self, job: Job) -> bool:
        return job.stage == "search" and self._draws[job.configuration].halving.is_held(job)

    def _hold(self, key: str, job: Job) -> None:
        halving = self._draws[job.configuration].halving
        halving.hold(job)
        epoch, objective = halving.last(job)
        emit("waits", key, {"job": job, "epoch": epoch, "objective": objective})

    def _prune(self, jobs: Sequence[Job]) -> None:
        """Record that draws which waited at a rung end there, but for those that another driver trains on."""
        for job in filter(self._is_ours, jobs):
            epoch, objective = self._draws[job.configuration].halving.last(job)
            self._record(job, status="pruned", objective=objective, epochs=epoch)
            self.tally.pruned += 1
            self._draws[job.configuration].tell(job, state=TrialState.PRUNED)
            emit("pruned", job.trial.id, {"job": job, "objective": objective})
            self._release(job)

    def best(self, candidate: str) -> FrozenTrial | None:
        """The candidate's draw with the highest validation objective, the earliest among equals."""
        return self._draws[candidate].best()

    def _known(self, job: Job) -> bool:
        """Whether the ledger holds the trial already; if so, it becomes a member of this sweep and stage."""
        trial_id = job.trial.id
        if self.force and trial_id not in self._started:
            self.ledger.remove(trial_id, sweep=job.sweep)
            if job.trial.pretrain_id not in self._trained:  # else it is of this command, for another trial
                mirror.empty(job.folder)
            return False
        before = self._recorded_before.get(place(job))
        if before is not None:
            self._take_over(job, before.status, before.objective)
            return True
        status = patiently(self.ledger.status, trial_id, job.sweep, job.sweep_id, job.configuration)
        if status == "finished" and job.draw is not None and self._is_pruned(job):
            status = "pruned"  # here, before the trial was finished for another candidate or sweep
        if status == "failed" and self.retry_failed and trial_id not in self._started:
            self.ledger.remove(trial_id, sweep=job.sweep, status="failed")
            mirror.remove(job.folder / "error.txt")
            return False
        if status is None:
            return False
        try:
            self._reuse(job, status)
        except (pa.ArrowException, OSError):  # a damaged ledger file: what it said is measured again
            self.ledger.remove(trial_id)
            return False
        return True

    def _is_pruned(self, job: Job) -> bool:
        return self._draws[job.configuration].halving.trial(job).state == TrialState.PRUNED

    def _reuse(self, job: Job, status: str) -> None:
        objective = 0.0
        if status == "finished":
            if patiently(self.ledger.adopt, job.trial.id, membership(job)) is None:
                raise OSError("its ledger file cannot be read")
            objective = float(self._recorded(job, "objective"))
        elif status == "failed":
            error, file = self._recorded(job, "error"), self._recorded(job, "error_file")
            self._count_failure(job, Failure(label(job), error, file))
        self._take_over(job, status, objective)

    def _count_failure(self, job: Job, failure: Failure) -> None:
        self.tally.failures.append(failure)
        if job.draw is not None:
            self._draws[job.configuration].halving.failed.add(job.draw)

    def _take_over(self, job: Job, status: str, objective: float) -> None:
        if status == "finished":
            self._finished(job, objective)
        elif status == "pruned" and job.stage == "search":
            self._draws[job.configuration].tell(job, state=TrialState.PRUNED)
        self.tally.reused += 1
        emit("reused", job.trial.id, {"job": job, "status": status})

    def _recorded(self, job: Job, column: str) -> Any:
        """A value that the ledger holds of the trial."""
        return self.ledger.recorded(job.trial.id, column)

    # How it ended --------------------------------------------------------------------------------------

    def _finished(self, job: Job, objective: float) -> None:
        if job.stage == "search":
            self._draws[job.configuration].tell(job, value=objective)
        for draws in self._draws.values():
            draws.halving.trained.add(job.trial.pretrain_id)

    def _record(self, job: Job, **measured: Any) -> None:
        """Write the row of a trial that did not finish; where that fails, the next command runs the trial again."""
        try:
            patiently(self.ledger.write, rows_table(trial_facts(job, **measured)))
        except OSError as error:
            self.tally.failures.append(Failure(label(job), f"its row could not be written: {error}", None))

    def _failed(self, key: str, job: Job, error: str) -> None:
        file = job.folder / "error.txt"
        shown = str(file.relative_to(self.plan.out)) if mirror.fetch(file) else None
        self._record(job, status="failed", error=error, error_file=shown)
        # The study is not told: a draw that failed stays open there, so that --retry-failed can still end it.
        self._count_failure(job, Failure(label(job), error, shown))
        emit("failed", key, {"job": job, "error": error})


def _claim(folder: Path) -> bool:
    try:
        return patiently(claims.claim, folder)
    except OSError:  # the trial itself will say what is wrong there
        return True
