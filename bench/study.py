"""The Optuna study of a sweep: what was drawn, kept beside the results."""

from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from bench.draw import mix
from bench.plan import Plan
from bench.space import Value, sampler


def study_path(plan: Plan) -> Path:
    """Where the study of a plan's sweep is kept."""
    return plan.out / "studies" / f"{plan.sweep.name}-{plan.sweep_id[:12]}.log"


def open_study(plan: Plan, *, fresh: bool = False) -> optuna.Study:
    """Open the sweep's study, or begin it; `fresh` begins it anew."""
    path = study_path(plan)
    path.parent.mkdir(parents=True, exist_ok=True)
    if fresh:
        path.unlink(missing_ok=True)
    return _study(plan, JournalStorage(JournalFileBackend(str(path))))


def ask(study: optuna.Study, plan: Plan) -> Trial:
    """Draw the next configuration.

    Each draw has a sampler of its own: draw n depends on the seed, n and the results so far, not on how often the
    search was interrupted.
    """
    search = plan.sweep.search
    number = len(study.get_trials(deepcopy=False))
    # A quasi-random sequence is one sequence: Optuna keeps its place in the study.
    seed = search.seed if search.sampler == "qmc" else mix(search.seed, number) % 2**32
    study.sampler = sampler(search.sampler, seed, search.startup)
    return study.ask({name: domain.distribution() for name, domain in plan.sweep.space.items()})


def preview(plan: Plan, count: int) -> Iterator[dict[str, Value]]:
    """The first `count` draws: those made already, then those that would come next without new results."""
    study = _study(plan, None)
    if study_path(plan).exists():
        for trial in open_study(plan).trials[:count]:
            study.add_trial(trial)
            yield trial.params
    for _ in range(min(count, plan.sweep.search.trials) - len(study.trials)):
        yield ask(study, plan).params


def best_draw(plan: Plan) -> dict[str, Value] | None:
    """The best configuration of a search that has ended; None while draws are missing or open."""
    if not study_path(plan).exists():
        return None
    trials = open_study(plan).trials[: plan.sweep.search.trials]
    ended = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if len(trials) < plan.sweep.search.trials or not ended or any(not trial.state.is_finished() for trial in trials):
        return None
    return max(ended, key=lambda trial: (trial.value or 0.0, -trial.number)).params


def _study(plan: Plan, storage: BaseStorage | None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # progress is shown by bench
    return optuna.create_study(
        storage=storage, study_name=plan.sweep.name, direction="maximize", load_if_exists=storage is not None
    )
