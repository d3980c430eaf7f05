"""The Optuna study of a sweep: what was drawn, kept beside the results."""

from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial

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
    study.sampler = sampler(search.sampler, mix(search.seed, number) % 2**32, search.startup)
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


def _study(plan: Plan, storage: BaseStorage | None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # progress is shown by bench
    return optuna.create_study(
        storage=storage, study_name=plan.sweep.name, direction="maximize", load_if_exists=storage is not None
    )
