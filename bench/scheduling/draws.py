"""One candidate's draws: made by Optuna, kept in its study, compared at rungs."""

import contextlib
from collections.abc import Sequence

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from bench.errors import BadInput
from bench.job import Job
from bench.plan import Plan
from bench.scheduling.halving import Halving
from bench.study import ask, best


class Draws:
    """The draws of one candidate, those of earlier commands and of other drivers too."""

    def __init__(self, plan: Plan, name: str, study: optuna.Study) -> None:
        self.plan, self.name, self.study = plan, name, study
        self.most = plan.sweep.draws(name)
        self.halving = Halving(study, plan.sweep.search.prune, self.most)
        self._seen: set[int] = set()  # what this driver has taken up

    def made(self) -> list[FrozenTrial]:
        """All draws so far; those beyond what the sweep asks for stay open, for a command that asks for more."""
        return self.study.get_trials(deepcopy=False)[: self.most]

    def missing(self) -> int:
        """How many are still to be made."""
        return self.most - len(self.made())

    def best(self) -> FrozenTrial | None:
        """The draw with the highest validation objective, the earliest among equals."""
        return best(self.study, self.plan)

    def draw(self) -> Job | None:
        """The job of a new draw; None where other drivers have made the last ones meanwhile."""
        while True:
            trial = ask(self.study, self.plan)
            if trial.number >= self.most:
                return None
            self._seen.add(trial.number)
            job = self._job(self.study._storage.get_trial(trial._trial_id))
            if job is not None:
                return job

    def unseen(self) -> list[Job]:
        """The jobs of draws that others made: earlier commands, or drivers that work on the same sweep now."""
        new = [trial for trial in self.made() if trial.state != TrialState.FAIL and trial.number not in self._seen]
        self._seen |= {trial.number for trial in new}
        return [job for trial in new if (job := self._job(trial)) is not None]

    def going_on(self, coming: Sequence[Job]) -> Job | None:
        """The draw that waited at a rung and now goes on; `coming`: those in training or waiting for something else."""
        made = self.made()
        known = all(trial.state == TrialState.FAIL or trial.number in self._seen for trial in made)
        return self.halving.next(coming, over=known and len(made) == self.most)

    def tell(self, job: Job, *, value: float | None = None, state: TrialState | None = None) -> None:
        """Tell Optuna how a draw ended, unless that is known."""
        if job.draw is None or self.halving.trial(job).state.is_finished():
            return
        with contextlib.suppress(UpdateFinishedTrialError):  # another driver has told it meanwhile
            self.study.tell(job.draw, value, state=state)

    def _job(self, trial: FrozenTrial) -> Job | None:
        """The job of a draw; None, and told so, in a corner of the space that the fields do not allow together."""
        try:
            return self.plan.search_job(self.name, trial.number, trial.params)
        except BadInput:
            with contextlib.suppress(UpdateFinishedTrialError):
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            return None
