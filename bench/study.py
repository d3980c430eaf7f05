"""The Optuna studies of a sweep, one for each candidate: what was drawn, kept beside the results."""

from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from bench.draw import mix
from bench.plan import Plan
from bench.space import Value, sampler


def study_path(plan: Plan) -> Path:
    """Where the studies of a plan's sweep are kept, one for each candidate."""
    return plan.out / "studies" / f"{plan.sweep.name}-{plan.sweep_id[:12]}.log"


def open_studies(plan: Plan, *, fresh: bool = False) -> dict[str, optuna.Study]:
    """Open the study of each candidate of the sweep, or begin it; `fresh` begins all of them anew."""
    path = study_path(plan)
    path.parent.mkdir(parents=True, exist_ok=True)
    if fresh:
        path.unlink(missing_ok=True)
    storage = JournalStorage(JournalFileBackend(str(path)))
    return {name: _study(name, storage) for name in plan.sweep.candidates}


def ask(study: optuna.Study, plan: Plan) -> Trial:
    """Draw the next configuration of a candidate.

    Each draw has a sampler of its own: draw n depends on the seed, n and the results so far, not on how often the
    search was interrupted.
    """
    search = plan.sweep.search
    number = len(study.get_trials(deepcopy=False))
    # A quasi-random sequence is one sequence: Optuna keeps its place in the study.
    seed = search.seed if search.sampler == "qmc" else mix(search.seed, number) % 2**32
    study.sampler = sampler(search.sampler, seed, search.startup)
    space = plan.sweep.candidates[study.study_name].space
    return study.ask({name: domain.distribution() for name, domain in space.items()})


def preview(plan: Plan, candidate: str, count: int) -> Iterator[dict[str, Value]]:
    """The first `count` draws: those made already, then those that would come next without new results."""
    study = _study(candidate, None)
    if study_path(plan).exists():
        for trial in open_studies(plan)[candidate].trials[:count]:
            study.add_trial(trial)
            yield trial.params
    for _ in range(min(count, plan.sweep.draws(candidate)) - len(study.trials)):
        yield ask(study, plan).params


def best_draws(plan: Plan) -> dict[str, dict[str, Value]]:
    """The best configuration of each candidate whose search has ended; not of those with missing or open draws."""
    if not study_path(plan).exists():
        return {}
    found = {}
    for name, study in open_studies(plan).items():
        trials = study.trials[: plan.sweep.draws(name)]
        over = len(trials) == plan.sweep.draws(name) and all(trial.state.is_finished() for trial in trials)
        winner = best(study, plan)
        if over and winner is not None:
            found[name] = winner.params
    return found


def best(study: optuna.Study, plan: Plan) -> FrozenTrial | None:
    """The draw with the highest validation objective, the earliest among equals."""
    trials = study.trials[: plan.sweep.draws(study.study_name)]
    ended = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    return max(ended, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


def _study(name: str, storage: BaseStorage | None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # progress is shown by bench
    return optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=storage is not None
    )
