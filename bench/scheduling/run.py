"""Running a plan on Ray: one Tune experiment for search and confirmation."""

import math
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.errors import BadInput, suggestion
from bench.plan import Plan
from bench.scheduling.agenda import Agenda
from bench.scheduling.cluster import ACCELERATOR, Cluster
from bench.scheduling.scratch import scratch

MARK = 0.001  # of the accelerator's type: it places a worker and uses nothing up
EPSILON = 1e-9  # Ray counts in ten-thousandths; a third of a GPU fits three times


def run_agenda(agenda: Agenda, cluster: Cluster, log_to: Sequence[str] = ()) -> None:
    """Run what is left of an agenda on the connected Ray; returns when it is done, or Ctrl-C or SIGTERM came.

    `log_to`: trackers beside TensorBoard (see `trackers`).
    Raises BadInput when no trial fits the cluster.
    """
    from ray import tune

    from bench.scheduling import trackers

    plan = agenda.plan
    slots = trial_slots(plan, cluster)
    try:
        with scratch() as storage, _ended_as_by_ctrl_c():
            _tuner(agenda, slots, storage, tune, log_to).fit()
    finally:
        agenda.tally.notes.extend(trackers.dropped)


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, by which job schedulers end a command, end the sweep as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former or signal.SIG_DFL)


def per_worker(plan: Plan) -> dict[str, float]:
    """What one worker holds, by Ray's names."""
    wanted = plan.sweep.resources
    amounts = {"CPU": float(wanted.cpus_per_worker), "GPU": float(plan.gpus)}
    if wanted.accelerator:
        amounts[ACCELERATOR + wanted.accelerator] = MARK
    return {kind: amount for kind, amount in amounts.items() if amount}


def trial_slots(plan: Plan, cluster: Cluster) -> int:
    """How many trials the cluster runs at a time, node by node. Raises BadInput where not even one fits.

    More would be no faster: their workers would wait for each other's places, and Ray Train gives up waiting.
    """
    wanted, amounts = plan.sweep.resources, per_worker(plan)
    kind = wanted.accelerator
    if kind and kind not in cluster.accelerators:
        raise BadInput(f"resources.accelerator: Ray has no {kind!r}{suggestion(kind, cluster.accelerators)}")
    places = sum(_places(node, amounts) for node in cluster.nodes)
    if places >= wanted.fewest:
        return max(1, places // wanted.workers)
    for kind, amount in amounts.items():
        needed, there = amount * wanted.fewest, cluster.total(kind)
        if there < needed:
            raise BadInput(
                f"one trial needs {needed:g} {kind}s ({wanted.fewest} workers), Ray has {there:g}: "
                "ask for fewer with --workers or --set resources.cpus_per_worker=..."
            )
    each = ", ".join(f"{amount:g} {kind}" for kind, amount in amounts.items() if kind in ("CPU", "GPU"))
    raise BadInput(
        f"one trial needs {wanted.fewest} workers of {each}, Ray's machines have places for {places}: "
        "ask for fewer with --workers or for less per worker with --set resources.cpus_per_worker=..."
    )


def _places(node: Mapping[str, float], amounts: Mapping[str, float]) -> int:
    """How many workers a node holds at a time; a fraction of a GPU lies on one GPU."""
    fit = math.inf
    for kind, amount in amounts.items():
        there = node.get(kind, 0.0)
        if kind == "GPU" and amount < 1:
            fit = min(fit, int(there) * math.floor(1 / amount + EPSILON))
        else:
            fit = min(fit, math.floor(there / amount + EPSILON))
    return int(fit)


def _tuner(agenda: Agenda, slots: int, storage: Path, tune: Any, log_to: Sequence[str]) -> Any:
    from bench.scheduling import trackers, trainable
    from bench.scheduling.searcher import AgendaSearcher, Rungs

    plan, searcher = agenda.plan, AgendaSearcher(agenda)
    wanted = plan.sweep.resources
    lone = wanted.workers == 1
    if lone:
        subject = tune.with_resources(trainable.lone_trial, tune.PlacementGroupFactory([per_worker(plan)]))
    else:
        subject = trainable.shared_trainable(trainable.DRIVER_SLOT)
    return tune.Tuner(
        subject,
        param_space={
            "amounts": per_worker(plan),
            "gpus": plan.gpus,
            "fewest": wanted.fewest,
            "scratch": storage.name,
            "path": str(Path.cwd()),
        },
        tune_config=tune.TuneConfig(
            num_samples=10**9,  # the agenda says when it is done
            max_concurrent_trials=slots,
            reuse_actors=lone,
            search_alg=searcher,
            scheduler=Rungs(searcher),
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(storage),
            verbose=0,
            callbacks=trackers.trackers(plan.out, plan.sweep.name, log_to),
            failure_config=tune.FailureConfig(max_failures=trainable.RETRIES if lone else 0),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        ),
    )
