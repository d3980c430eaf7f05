"""What a sweep would do: the plan that `bench run --dry-run` shows. Nothing is started."""

import time

import torch
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from bench import mirror
from bench.data.dataset import Dataset
from bench.data.index import SPLITS
from bench.data.pack import pack_size
from bench.draw import Draw
from bench.encoders import build_encoder
from bench.images import ImageBatch
from bench.job import Job, label
from bench.plan import Plan, describe
from bench.progress import clock
from bench.registry import build, find_method
from bench.results.ledger import Ledger
from bench.study import best_draws, preview
from bench.training.pretrain import build_optimizers, steps_per_epoch, train_batch
from bench.trial import Trial

DRAWS = 8  # how many draws are shown
TIMED_STEPS = 3


def forecast(plan: Plan) -> RenderableType:
    """The datasets, the trials with what is finished already, and the device time they would take."""
    sweep = plan.sweep
    draws = {name: _draws(plan, name) for name in sweep.candidates}
    settled = best_draws(plan)
    confirm = plan.confirm_jobs({name: settled.get(name, jobs[0].swept) for name, jobs in draws.items()})
    head = f"[bold]{escape(sweep.title)}[/]\nsweep {escape(sweep.name)}, profile {escape(sweep.profile)}: a dry run"
    return Group(head, _datasets(plan), _trials(plan, draws, confirm, set(settled)), _time(plan, draws, confirm))


def _draws(plan: Plan, candidate: str) -> list[Job]:
    """The first draws of a candidate."""
    most = max(1, DRAWS // len(plan.sweep.candidates))
    return [plan.search_job(candidate, *numbered) for numbered in enumerate(preview(plan, candidate, most))]


def _datasets(plan: Plan) -> Table:
    table = Table(title="data", title_justify="left", box=None, header_style="dim")
    for name in ("dataset", "used for", *SPLITS, "classes", "metric", "from"):
        table.add_column(name, justify="right" if name in (*SPLITS, "classes") else "left")
    for fingerprint, source in plan.sources.items():
        dataset = next(d for d in (*plan.evaluate, plan.pretrain) if d.source.fingerprint == fingerprint)
        counts = [str(dataset.counts[split]) for split in SPLITS]
        classes, uses = str(len(dataset.index.classes)), _uses(plan, dataset)
        table.add_row(escape(source.name), uses, *counts, classes, source.metric, escape(source.location))
    return table


def _uses(plan: Plan, dataset: Dataset) -> str:
    fingerprint = dataset.source.fingerprint
    uses = ["pretraining"] if fingerprint == plan.pretrain.source.fingerprint else []
    uses += ["evaluation"] if fingerprint in {d.source.fingerprint for d in plan.evaluate} else []
    return ", ".join(uses)


def _trials(plan: Plan, draws: dict[str, list[Job]], confirm: list[Job], settled: set[str]) -> Table:
    sweep = plan.sweep
    table = Table(title="trials", title_justify="left", box=None, header_style="dim")
    for name in ("trial", "id", "state", "configuration"):
        table.add_column(name)
    mirror.refresh(plan.out / "ledger", fixed=True)
    listing = Ledger(plan.out).listing()
    for name, jobs in draws.items():
        for job in jobs:
            state = listing.status(job.trial.id, job.sweep, job.sweep_id, job.configuration) or "to run"
            table.add_row(escape(label(job)), job.trial.id[:8], state, escape(describe(job.swept)))
        if sweep.draws(name) > len(jobs):
            more = f"... {sweep.draws(name) - len(jobs)} more"
            table.add_row(more, "", "", f"drawn by {sweep.search.sampler} from the results")
    for job in confirm:
        # Else which configuration is best is still open.
        known = job.role == "control" or settled == set(sweep.candidates)
        state = (listing.status(job.trial.id) if known else None) or "to run"
        table.add_row(escape(label(job)), job.trial.id[:8] if known else "", state, job.trial.method)
    return table


def _time(plan: Plan, draws: dict[str, list[Job]], confirm: list[Job]) -> str:
    """One sentence on the device time: measured steps of each candidate on this machine, times its trials."""
    sweep, rows = plan.sweep, plan.pretrain.counts["unlabelled"] or plan.pretrain.counts["train"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(max(1, int(sweep.resources.cpus_per_worker)))
    seconds: dict[str, float] = {}  # of one trial, by its name in the leaderboard
    trained = [job for job in confirm if find_method(job.trial.method).trains]
    searched = [(jobs[0], sweep.draws(name)) for name, jobs in draws.items()]
    for job in (*trained, *(job for job, _ in searched)):
        if job.configuration not in seconds:
            training = job.trial.training
            steps = steps_per_epoch(rows, training.batch_size) * training.epochs if training.epochs else 0
            seconds[job.configuration] = steps * _seconds_per_step(job.trial, device) if steps else 0.0
    each = ", ".join(f"{clock(spent)} ({escape(name)})" for name, spent in seconds.items())
    whole = about = sum(seconds[job.configuration] for job in trained)
    for job, count in searched:
        whole += count * seconds[job.configuration]
        about += count * seconds[job.configuration] * sweep.search.prune.share(job.trial.training.epochs, count)
    unpruned = f", {clock(whole)} if none were pruned" if about < whole else ""
    trials = len(trained) + sum(count for _, count in searched)
    return (
        f"device time: about {clock(about)} of pretraining for {trials} trials{unpruned}; per trial "
        f"{each} (from {TIMED_STEPS} steps timed on this {device.type}), evaluation not counted"
    )


def _seconds_per_step(trial: Trial, device: torch.device) -> float:
    """Seconds of one training step on random images, the fastest of a few."""
    training = trial.training
    method = build(trial.method, trial.config, build_encoder(training.backbone, 0), classes=2).to(device)
    optimizers = build_optimizers(method, training)
    side = pack_size(training.image_size)
    pixels = torch.randint(0, 256, (training.batch_size, 3, side, side), dtype=torch.uint8, device=device)
    images = ImageBatch(
        pixels, torch.ones(len(pixels), device=device), torch.zeros(len(pixels), dtype=torch.int64, device=device)
    )
    seconds = []
    for step in range(TIMED_STEPS):
        start = time.perf_counter()
        draw = Draw(step, len(images), device=device)
        for losses in train_batch(method, optimizers, training, images, draw, 0.0, 0.0):
            float(sum(loss.detach() for loss in losses.values()))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
