"""The Optuna studies of a sweep, one for each candidate: what was drawn, kept beside the results."""

import math
import os
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState

from bench.draw import mix
from bench.errors import BenchError
from bench.growing import Growing, fetched
from bench.patience import patiently
from bench.plan import Plan
from bench.records import canonical_json
from bench.space import Value, sampler

SMALL = 1000  # configurations of a space that is small enough to try each once
ATTEMPTS = 1000  # random draws until one is new


def study_path(plan: Plan) -> Path:
    """Where the studies of a plan's sweep are kept, one for each candidate."""
    return plan.out / "studies" / f"{plan.sweep.name}-{plan.sweep_id[:12]}.log"


def begin_studies(plan: Plan, *, fresh: bool = False) -> tuple[dict[str, optuna.Study], Growing]:
    """Open the study of each candidate of the sweep, or begin it, and their journal; `fresh` begins all of them anew.

    For the driver. What was drawn is on a store once the journal's `keep` has returned.
    """
    journal = Growing(study_path(plan))
    return _studies(plan, journal.open(fresh=fresh)), journal


def read_studies(plan: Plan) -> dict[str, optuna.Study]:
    """The studies as they are now, for readers; none where the sweep has none yet."""
    path = fetched(study_path(plan))
    return _studies(plan, path) if path.exists() else {}


def _studies(plan: Plan, path: Path) -> dict[str, optuna.Study]:
    storage = Drawn(Journal(path))
    return {name: _study(name, storage) for name in plan.sweep.candidates}


class Drawn(JournalStorage):
    """The studies' storage, of which samplers can learn from draws that came to a rung."""

    _shown: Callable[[FrozenTrial], FrozenTrial] | None = None

    @contextmanager
    def learning(self, sampler: str) -> Iterator[None]:
        """Meanwhile, draws that wait at a rung are listed as pruned ones.

        To "gp", which learns from finished draws alone, all that came to a rung are, with the objective at the first.
        """
        self._shown = _at_first_rung if sampler == "gp" else _as_pruned
        try:
            yield
        finally:
            self._shown = None

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All draws of a study, or those in some states."""
        if self._shown is None:
            return super().get_all_trials(study_id, deepcopy, states)
        listed = map(self._shown, super().get_all_trials(study_id, deepcopy))
        return [trial for trial in listed if states is None or trial.state in states]


def _as_pruned(trial: FrozenTrial) -> FrozenTrial:
    if trial.state != TrialState.RUNNING or not trial.intermediate_values:
        return trial
    pruned = copy(trial)
    pruned.state, pruned.datetime_complete = TrialState.PRUNED, trial.datetime_start
    return pruned


def _at_first_rung(trial: FrozenTrial) -> FrozenTrial:
    if not trial.intermediate_values:
        return trial
    shown = copy(trial)
    shown.state, shown.datetime_complete = TrialState.COMPLETE, trial.datetime_start
    shown.values = [trial.intermediate_values[min(trial.intermediate_values)]]
    return shown


class Journal(JournalFileBackend):
    """Optuna's journal, which an append that was cut short (a full disk, a lost server) does not spoil.

    Optuna would write the next line behind the half one, and no one could read either.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._own_lock = path, JournalFileSymlinkLock(str(path))
        super().__init__(str(path), self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines or nothing. Storage that is away for a while is waited for; raises BenchError."""
        try:
            patiently(self._append, logs)
        except OSError as error:
            reason = error.strerror or error
            raise BenchError(f"{self.path}: cannot be written: {reason}; the same command goes on from here") from error

    def _append(self, logs: list[dict[str, Any]]) -> None:
        self._cut_half_line()
        try:
            super().append_logs(logs)
        except OSError:
            self._cut_half_line()
            raise

    def _cut_half_line(self) -> None:
        if not self._has_half_line():
            return
        self._own_lock.acquire()
        try:
            if self._has_half_line():  # else someone was writing just then
                text = self.path.read_bytes()
                os.truncate(self.path, text.rfind(b"\n") + 1)
        finally:
            self._own_lock.release()

    def _has_half_line(self) -> bool:
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return file.read() not in (b"", b"\n")


def ask(study: optuna.Study, plan: Plan) -> Trial:
    """Draw the next configuration of a candidate.

    Each draw has a sampler of its own: draw n depends on the seed, n and the results so far, those at rungs too, not on
    how often the search was interrupted. In a small space no configuration is drawn twice before all have been: it
    would give the same result again.
    """
    with _learning(study, plan):
        return _draw(study, plan)


def _learning(study: optuna.Study, plan: Plan) -> AbstractContextManager[None]:
    storage = study._storage
    return storage.learning(plan.sweep.search.sampler) if isinstance(storage, Drawn) else nullcontext()


def _draw(study: optuna.Study, plan: Plan) -> Trial:
    search, drawn = plan.sweep.search, [trial.params for trial in study.get_trials(deepcopy=False)]
    if search.sampler == "qmc":  # a quasi-random sequence is one sequence: Optuna keeps its place in the study
        return _ask(study, plan, "qmc", search.seed)
    name, seed = search.sampler, mix(search.seed, len(drawn)) % 2**32
    if _untried(plan, study.study_name, drawn) and _ask(_copy(study), plan, name, seed).params in drawn:
        name, empty = "random", _study(study.study_name, None)
        others = (mix(search.seed, len(drawn), attempt) % 2**32 for attempt in range(ATTEMPTS))
        seed = next((other for other in others if _ask(empty, plan, name, other).params not in drawn), seed)
    return _ask(study, plan, name, seed)


def _untried(plan: Plan, candidate: str, drawn: list[dict[str, Value]]) -> bool:
    """Whether the candidate's space is small and holds configurations that are not `drawn`."""
    every = math.prod(domain.size() for domain in plan.sweep.candidates[candidate].space.values())
    return every <= SMALL and len({canonical_json(params) for params in drawn}) < every


def _ask(study: optuna.Study, plan: Plan, name: str, seed: int) -> Trial:
    study.sampler = sampler(name, seed, plan.sweep.search.startup)
    space = plan.sweep.candidates[study.study_name].space
    return study.ask({field: domain.distribution() for field, domain in space.items()})


def _copy(study: optuna.Study) -> optuna.Study:
    """The same study in memory, to see what would be drawn."""
    copy = _study(study.study_name, None)
    copy.add_trials(study.get_trials(deepcopy=False))
    return copy


def preview(plan: Plan, candidate: str, count: int) -> Iterator[dict[str, Value]]:
    """The first `count` draws: those made already, then those that would come next without new results."""
    study = _study(candidate, None)
    made = read_studies(plan)
    if made:
        with _learning(made[candidate], plan):
            study.add_trials(made[candidate].trials[:count])
        yield from (trial.params for trial in study.trials)
    for _ in range(min(count, plan.sweep.draws(candidate)) - len(study.trials)):
        yield ask(study, plan).params


def best_draws(plan: Plan) -> dict[str, dict[str, Value]]:
    """The best configuration of each candidate whose search has ended; not of those with missing or open draws."""
    found = {}
    for name, study in read_studies(plan).items():
        trials = study.get_trials(deepcopy=False)[: plan.sweep.draws(name)]
        over = len(trials) == plan.sweep.draws(name) and all(trial.state.is_finished() for trial in trials)
        winner = best(study, plan)
        if over and winner is not None:
            found[name] = winner.params
    return found


def best(study: optuna.Study, plan: Plan) -> FrozenTrial | None:
    """The draw with the highest validation objective, the earliest among equals."""
    trials = study.get_trials(deepcopy=False)[: plan.sweep.draws(study.study_name)]
    ended = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    return max(ended, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


def _study(name: str, storage: BaseStorage | None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # progress is shown by bench
    return optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=storage is not None
    )
