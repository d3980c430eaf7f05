"""What a sweep of thousands of trials costs its driver: null trials, nothing trained, nothing evaluated.

`driver` calls the real search algorithm, scheduler, agenda, studies and ledger as Tune does, without Ray: what one draw
and one report cost as draws grow in number. `again` starts the same command once more on those results, `ledger` counts
its bytes and files and lists it. `samplers` only draws. `tune` runs trials of no duration through Ray.
What it told is in docs/SCALE.md.

python -m tests.speed.scale [driver again samplers tune ledger] [--draws 3000] [--running 1000] [--sampler tpe]
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import optuna

from bench.execution import trial_facts
from bench.job import Job
from bench.plan import Plan, make_plan
from bench.progress import Board
from bench.results.ledger import Ledger
from bench.results.schema import Measurement, rows_table
from bench.scheduling import events
from bench.scheduling.agenda import Agenda
from bench.study import ask
from bench.sweepfile import load_sweep
from tests.speed.figures import Figure

SWEEP = """
title = "scale"
method = "simclr"
[pretrain]
dataset = "leaves"
epochs = {epochs}
[space]
temperature = {{ log_uniform = [0.05, 1.0] }}
"gamma.low" = {{ uniform = [0.3, 1.0] }}
"pretrain.lr" = {{ log_uniform = [1e-4, 1e-2] }}
[search]
sampler = "{sampler}"
trials = {draws}
prune = {{ scheduler = "{prune}", grace = 3, factor = 3 }}
[evaluate]
datasets = ["leaves"]
protocols = ["linear", "knn"]
[confirm]
seeds = []
controls = []
"""
EPOCHS = 10  # reports of a trial that is not pruned; of 10, rungs are after 3 and 9
PARTS = ("driver", "again", "samplers", "tune", "ledger")


@dataclass
class Clock:
    """Seconds of each call, by what was called and in order."""

    taken: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Time the block."""
        start = time.perf_counter()
        yield
        self.taken.setdefault(what, []).append(time.perf_counter() - start)

    def near(self, what: str, place: int, around: int = 50) -> float:
        """Milliseconds of a call, the median of those up to the `place`-th."""
        taken = self.taken[what][:place]
        return 1e3 * statistics.median(taken[-around:])


def plan_of(folder: Path, draws: int, sampler: str, epochs: int = EPOCHS, prune: str = "asha") -> Plan:
    """A sweep that draws three hyperparameters."""
    path = folder / "scale.toml"
    path.write_text(SWEEP.format(draws=draws, sampler=sampler, epochs=epochs, prune=prune))
    return make_plan(load_sweep(str(path)), out=folder / "out", cache=folder / "cache")


def goodness(job: Job) -> float:
    """A smooth objective with a peak inside the space."""
    rate = float(job.swept["pretrain.lr"])
    return 0.5 + 0.3 * float(job.swept["gamma.low"]) - 10 * abs(rate - 2e-3) - 0.1 * float(job.swept["temperature"])


def record(job: Job) -> dict[str, Any]:
    """Write the rows that a worker would write, one per metric and split, and return its last report."""
    at: Any = {"dataset": "leaves", "samples": 400, "low": 0.4, "high": 0.6, "value": 0.5}
    kinds = [("linear", ""), ("knn", "k=20"), ("knn", "k=200")]
    metrics = ("top1", "top5", "mean_per_class", "macro_f1", "weighted_f1")
    rows = [
        Measurement(**at, protocol=protocol, variant=variant, split=split, metric=metric, headline=metric == "top1")
        for (protocol, variant), split, metric in itertools.product(kinds, ("val", "test"), metrics)
    ]
    value = goodness(job)
    epochs = job.trial.training.epochs
    facts = trial_facts(job, status="finished", objective=value, epochs=epochs, started_at=datetime.now(UTC))
    Ledger(job.results).write(rows_table(facts, rows))
    return {"finished": True, "objective": value, "epoch": epochs}


class Simulation:
    """Plays Tune: keeps `running` trials going and ends the oldest, epoch by epoch, as fast as the driver answers."""

    def __init__(self, plan: Plan, running: int) -> None:
        from bench.scheduling.searcher import AgendaSearcher, Rungs

        self.clock, self.running = Clock(), running
        self.trained: dict[int | None, int] = {}  # epochs that each draw has a checkpoint of
        self.agenda = Agenda(plan)
        self.searcher = AgendaSearcher(self.agenda)
        self.scheduler = Rungs(self.searcher)

    def drive(self) -> None:
        """Run the whole sweep."""
        going: deque[tuple[str, Job]] = deque()
        for number in itertools.count():
            key = f"trial{number}"
            with self.clock.of("suggest"):
                config = self.searcher.suggest(key)
            if isinstance(config, dict):
                going.append((key, Job.model_validate_json(config["job"])))
            if not going:
                break
            if len(going) >= self.running or not isinstance(config, dict):
                self._live(*going.popleft())
        self.agenda.close()

    def _live(self, key: str, job: Job) -> None:
        for epoch in range(self.trained.get(job.draw, 0) + 1, EPOCHS + 1):
            self.trained[job.draw] = epoch
            report = {"epoch": epoch, "loss": 1.0, "images_per_second": 1000.0}
            if epoch in job.rungs:
                report["rung_objective"] = goodness(job) * epoch / EPOCHS
            with self.clock.of("report at a rung" if epoch in job.rungs else "report"):
                # Tune asks the scheduler first, and tells a stopped trial's last result with its end.
                stopped = self.scheduler.on_trial_result(None, SimpleNamespace(trial_id=key), report) == "STOP"
                if not stopped:
                    self.searcher.on_trial_result(key, report)
            if stopped:
                with self.clock.of("end, waits"):
                    self.searcher.on_trial_complete(key, report)
                return
        with self.clock.of("the worker's record"):
            last = record(job)
        with self.clock.of("end"):
            self.searcher.on_trial_complete(key, last)


def driver(folder: Path, draws: int, running: int, sampler: str) -> list[Figure]:
    """What the driver does for a draw, as draws grow in number."""
    plan = plan_of(folder, draws, sampler)
    start = time.perf_counter()
    with events.listening(Board(plan)):
        simulation = Simulation(plan, running)
        simulation.drive()
    whole, clock = time.perf_counter() - start, simulation.clock
    worker = sum(clock.taken["the worker's record"])
    places = [place for place in (100, 300, 1000, 3000, 10_000) if place < draws] + [draws]
    growth = ", ".join(f"{clock.near('suggest', place):.1f} at {place:,}" for place in places)
    tally = simulation.agenda.tally
    each = "; ".join(
        f"{name} {clock.near(name, 100):.2f}, in the end {clock.near(name, len(taken)):.2f}"
        for name, taken in clock.taken.items()
        if name != "suggest"
    )
    how = f"{tally.ran:,} finished, {tally.pruned:,} pruned, {running} at a time; ms per suggestion: {growth}; {each}"
    per_draw = 1e3 * (whole - worker) / draws
    return [
        Figure(f"driver per trial, {sampler}, {draws:,} draws", how, per_draw, "ms", 100.0, lower=True),
    ]


def again(folder: Path, draws: int, sampler: str) -> list[Figure]:
    """The same command on results that are there, and one that asks for a draw more."""
    start = time.perf_counter()
    agenda = Agenda(plan_of(folder, draws, sampler))
    opened = time.perf_counter() - start
    done = agenda.is_done()
    whole = time.perf_counter() - start
    agenda.close()
    how = f"studies and ledger opened in {opened:.1f} s, {agenda.tally.reused:,} known" + (
        "" if done else "; not done?"
    )
    return [Figure(f"the same command again, {draws:,} draws", how, whole, "s", 60.0, lower=True)]


def ledger(folder: Path, draws: int) -> list[Figure]:
    """Bytes and files of those results; listing them."""
    found = [path for path in (folder / "out").rglob("*") if path.is_file()]
    sizes: dict[str, list[int]] = {}
    for path in found:
        sizes.setdefault(path.relative_to(folder / "out").parts[0], []).append(path.stat().st_size)
    said = ", ".join(f"{name}/ {len(of):,} files {sum(of) / draws:,.0f} B a draw" for name, of in sorted(sizes.items()))
    start = time.perf_counter()
    listing = Ledger(folder / "out").listing()
    taken = time.perf_counter() - start
    return [Figure(f"listing {len(listing.records):,} records", said, taken, "s", 1.0, lower=True)]


def samplers(folder: Path, draws: int, names: Sequence[str], repeats: int = 5) -> Iterator[Figure]:
    """What a sampler alone needs for one draw, after so many that ended."""
    for name in names:
        plan = plan_of(folder, draws + repeats, name)
        study = optuna.create_study(study_name="simclr", direction="maximize")
        space = {field: domain.distribution() for field, domain in plan.sweep.candidates["simclr"].space.items()}
        dice = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.add_trials(
            optuna.trial.create_trial(
                params=params, distributions=space, value=params["gamma.low"] - params["temperature"]
            )
            for params in (dice.ask(space).params for _ in range(draws))
        )
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            trial = ask(study, plan)
            taken.append(1e3 * (time.perf_counter() - start))
            study.tell(trial, 0.5)
        how = f"the median of {repeats}, {min(taken):.1f} to {max(taken):.1f}; studies in memory"
        yield Figure(f"one draw by {name} after {draws:,}", how, statistics.median(taken), "ms", 100.0, lower=True)


def null_trial(config: Mapping[str, Any]) -> None:
    """A trial of no duration: its reports and its record only."""
    import ray.tune

    job = Job.model_validate_json(config["job"])
    for epoch in range(1, job.trial.training.epochs + 1):
        report: dict[str, Any] = {"epoch": epoch, "loss": 1.0, "images_per_second": 1000.0}
        ray.tune.report(report | ({"rung_objective": goodness(job)} if epoch in job.rungs else {}))
    ray.tune.report(record(job))


def tuned(folder: Path, draws: int, epochs: int, prune: str, cpus: int) -> list[Figure]:
    """Seconds per trial through a local Ray Tune, from the first trial's end on."""
    from bench.scheduling.cluster import connect
    from bench.scheduling.run import run_agenda

    plan = plan_of(folder, draws, "random", epochs, prune)
    ends: list[float] = []
    reports: list[float] = []

    def heard(kind: str, _key: str, _facts: Mapping[str, Any]) -> None:
        if kind in ("finished", "pruned"):
            ends.append(time.perf_counter())
        elif kind == "epoch":
            reports.append(time.perf_counter())

    with connect(None, cpus=cpus) as cluster, events.listening(heard):
        from bench.scheduling import trainable

        with mock.patch.object(trainable, "lone_trial", null_trial):
            agenda = Agenda(plan)
            busy = time.process_time()
            run_agenda(agenda, cluster)
            busy = time.process_time() - busy
            agenda.close()
    halves = [ends[0], ends[len(ends) // 2], ends[-1]]
    first, second = (1e3 * (b - a) / (len(ends) // 2) for a, b in itertools.pairwise(halves))
    each = (ends[-1] - ends[0]) / (len(ends) - 1)
    how = (
        f"{agenda.tally.ran} finished, {agenda.tally.pruned} pruned, {len(agenda.tally.failures)} failed, "
        f"{len(reports):,} reports of epochs on {cpus} cores; "
        f"first half {first:.0f}, second half {second:.0f} ms a trial; "
        f"{1e3 * busy / draws:.0f} ms of the driver's processor a trial"
    )
    return [Figure(f"Tune per null trial of {epochs} epochs, {draws} trials", how, 1e3 * each, "ms", 200.0, lower=True)]


def main() -> None:
    """Measure the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--draws", type=int, default=1000, help="null trials of the simulation")
    parser.add_argument("--running", type=int, default=100, help="how many run at a time in the simulation")
    parser.add_argument("--sampler", default="tpe", help="tpe, random, qmc or gp; samplers: several, with commas")
    parser.add_argument("--trials", type=int, default=200, help="null trials through Ray Tune")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each of those, one report an epoch")
    parser.add_argument("--prune", default="asha", help="asha, or none, for those")
    parser.add_argument("--cpus", type=int, default=2, help="cores of that Ray, each a trial at a time")
    parser.add_argument("--json", action="store_true", help="one JSON object per figure")
    given = parser.parse_args()
    for figure in measured(given):
        print(
            json.dumps(asdict(figure))
            if given.json
            else f"{figure.what}: {figure.value:.3g} {figure.unit}; {figure.measured}"
        )
        sys.stdout.flush()


def measured(given: argparse.Namespace) -> Iterator[Figure]:
    """The figures, as they come; `again` and `ledger` look at what `driver` left."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if {"driver", "again", "ledger"} & set(given.parts):
            yield from driver(folder, given.draws, given.running, given.sampler)
        if "again" in given.parts:
            yield from again(folder, given.draws, given.sampler)
        if "ledger" in given.parts:
            yield from ledger(folder, given.draws)
    if "samplers" in given.parts:
        with tempfile.TemporaryDirectory() as scratch:
            yield from samplers(Path(scratch), given.draws, given.sampler.split(","))
    if "tune" in given.parts:
        with tempfile.TemporaryDirectory() as scratch:
            yield from tuned(Path(scratch), given.trials, given.epochs, given.prune, given.cpus)


if __name__ == "__main__":
    main()
