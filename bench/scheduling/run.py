"""Running a plan on Ray: one Tune experiment for search and confirmation."""

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from bench.errors import BadInput
from bench.plan import Plan
from bench.scheduling.agenda import Agenda
from bench.scheduling.cluster import Cluster


def run_agenda(agenda: Agenda, cluster: Cluster) -> None:
    """Run what is left of an agenda on the connected Ray; returns when it is done or Ctrl-C was pressed.

    Raises BadInput when no trial fits the cluster.
    """
    from ray import tune

    plan = agenda.plan
    slots = trial_slots(plan, cluster)
    storage = Path(tempfile.mkdtemp(prefix=".tune-", dir=plan.out))
    try:
        _tuner(agenda, slots, storage, tune).fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def trial_slots(plan: Plan, cluster: Cluster) -> int:
    """How many trials the cluster runs at a time. Raises BadInput where not even one fits."""
    wanted = plan.sweep.resources
    per_trial = {"CPU": wanted.cpus_per_worker * wanted.workers, "GPU": plan.gpus * wanted.workers}
    there = {"CPU": cluster.cpus, "GPU": cluster.gpus}
    slots = math.inf
    for kind, amount in per_trial.items():
        if amount:
            slots = min(slots, there[kind] // amount)
        if slots < 1:
            raise BadInput(
                f"one trial needs {amount:g} {kind}s ({wanted.workers} workers), Ray has {there[kind]:g}: "
                "ask for fewer with --workers or --set resources.cpus_per_worker=..."
            )
    return int(slots)


def _tuner(agenda: Agenda, slots: int, storage: Path, tune: Any) -> Any:
    from bench.scheduling import trainable
    from bench.scheduling.searcher import AgendaSearcher, Pruner

    plan, searcher = agenda.plan, AgendaSearcher(agenda)
    wanted, prune = plan.sweep.resources, plan.sweep.search.prune
    lone = wanted.workers == 1
    if lone:
        amounts = {"cpu": wanted.cpus_per_worker, "gpu": plan.gpus}
        subject = tune.with_resources(trainable.lone_trial, amounts)
    else:
        subject = trainable.shared_trainable(trainable.DRIVER_SLOT)
    return tune.Tuner(
        subject,
        param_space={
            "cpus": wanted.cpus_per_worker,
            "gpus": plan.gpus,
            "storage": str(storage / "train"),
            "path": str(Path.cwd()),
        },
        tune_config=tune.TuneConfig(
            num_samples=10**9,  # the agenda says when it is done
            max_concurrent_trials=slots,
            reuse_actors=lone,
            search_alg=searcher,
            scheduler=Pruner(searcher, prune) if prune.scheduler == "asha" else None,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=trainable.RETRIES if lone else 0),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        ),
    )
