"""Successive halving: which draws train on from a rung, and which end there.

A draw that comes to a rung, an epoch, waits there with its checkpoint. First all draws come to the first rung, then the
best 1/factor of them go on to the second, and so on (Jamieson and Talwalkar 2016), but nothing waits for a rung to be
complete: where there is room, the best 1/factor of those that have come so far may go on (Li et al. 2020, "A System
for Massively Parallel Hyperparameter Tuning", algorithm 2). Once no other draw will come, shares are rounded up: of
any number at a rung at least one goes on. What can no longer be among the best is pruned. A draw whose encoder is
there meanwhile, since another draw shares it, has nothing left to be spared. What each draw reached is kept in Optuna's
study: a search that was interrupted, and drivers that share one, know it.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial

from bench.job import Job
from bench.sweep import Prune

SPARE = 8  # draws that wait, in case that those before them fail, though they are not among the best

Rungs = dict[int, dict[int, float]]  # the objective of each draw that has come to a rung, by epoch


def ranked(rung: Mapping[int, float]) -> list[int]:
    """The draws that have come to a rung by their objective there, the best first, the earlier among equals."""
    return sorted(rung, key=lambda draw: (-rung[draw], draw))


@dataclass
class Halving:
    """The rungs of one candidate's `draws` draws: what each reached, and which of them wait."""

    study: optuna.Study
    prune: Prune
    draws: int
    waiting: dict[int, tuple[Job, int]] = field(default_factory=dict)  # and the rung they wait at, by the draw's number
    failed: set[int] = field(default_factory=set)  # draws that take no other one's place
    trained: set[str] = field(default_factory=set)  # pretrain ids of trials that finished

    def reach(self, job: Job, epoch: int, objective: float) -> bool:
        """Keep what a draw in training reached at a rung; False where it is known, or the draw has ended elsewhere."""
        draw = self.trial(job)
        if epoch in draw.intermediate_values or draw.state.is_finished():
            return False
        with suppress(UpdateFinishedTrialError):  # by another driver, just now
            Trial(self.study, draw._trial_id).report(objective, epoch)
        return True

    def is_held(self, job: Job) -> bool:
        """Whether a draw has come to a rung that nobody has let it pass."""
        return any(epoch in job.rungs for epoch in self.trial(job).intermediate_values)

    def hold(self, job: Job) -> None:
        """Have a draw wait at the last rung that it came to."""
        if job.draw is not None:
            self.waiting[job.draw] = job, self.last(job)[0]

    def last(self, job: Job) -> tuple[int, float]:
        """The last rung that a draw came to, an epoch, and its objective there."""
        return max(self.trial(job).intermediate_values.items())

    def next(self, coming: Sequence[Job], *, over: bool) -> Job | None:
        """The waiting draw that goes on now, which waits no more: of the lowest rung that lets one go, the best.

        `coming`: the draws in training, and those that wait for something else; `over`: all draws have been made.
        """
        for draw, (job, last) in self.waiting.items():
            if job.trial.pretrain_id in self.trained:
                return self._go_on(draw, last)
        rungs = self._rungs() if self.waiting else {}
        reached = [(job, self.trial(job).intermediate_values) for job in coming]
        for epoch, rung in sorted(rungs.items()):
            over = over and not any(epoch in job.rungs and epoch not in values for job, values in reached)
            for draw in ranked(rung)[: self.prune.places(len(rung), over=over)]:
                if draw in self.waiting and self.waiting[draw][1] == epoch:
                    return self._go_on(draw, epoch)
        return None

    def lost(self) -> list[Job]:
        """The waiting draws that whatever is to come will not let go on, but some; they wait no more.

        Who is no worse than one that may go on waits with it: the two may share their encoder.
        """
        rungs, most, behind = self._rungs(), self.prune.places(self.draws, over=True) + SPARE, []
        for epoch in {last for _, last in self.waiting.values()}:
            least = sorted(rungs[epoch].values(), reverse=True)[:most][-1]
            behind += [draw for draw, (_, last) in self.waiting.items() if last == epoch and rungs[epoch][draw] < least]
        return [self.waiting.pop(draw)[0] for draw in behind]

    def rest(self) -> list[Job]:
        """All draws that wait; they wait no more."""
        rest = [job for job, _ in self.waiting.values()]
        self.waiting.clear()
        return rest

    def trial(self, job: Job) -> FrozenTrial:
        """A job's draw, by its number: a study's own ways lead over a copy of all of its draws."""
        storage = self.study._storage
        return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(self.study._study_id, job.draw or 0))

    def _go_on(self, draw: int, last: int) -> Job:
        job, _ = self.waiting.pop(draw)
        return job.model_copy(update={"rungs": tuple(epoch for epoch in job.rungs if epoch > last)})

    def _rungs(self) -> Rungs:
        rungs: Rungs = {}
        for trial in self.study.get_trials(deepcopy=False)[: self.draws]:
            if trial.number not in self.failed:
                for epoch, objective in trial.intermediate_values.items():
                    rungs.setdefault(epoch, {})[trial.number] = objective
        return rungs
