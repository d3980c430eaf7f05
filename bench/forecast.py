"""What a sweep would do: the plan that `bench run --dry-run` shows. Nothing is started."""

import time

import torch
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

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
from bench.study import best_draw, preview
from bench.training.pretrain import build_optimizers, steps_per_epoch, train_batch
from bench.trial import Trial

DRAWS = 8  # how many draws are shown
TIMED_STEPS = 3


def forecast(plan: Plan) -> RenderableType:
    """The datasets, the trials with what is finished already, and the device time they would take."""
    sweep = plan.sweep
    draws = [plan.search_job(number, values) for number, values in enumerate(preview(plan, DRAWS))]
    confirm = plan.confirm_jobs(best_draw(plan) or draws[0].swept)
    head = f"[bold]{escape(sweep.title)}[/]\nsweep {escape(sweep.name)}, profile {escape(sweep.profile)}: a dry run"
    return Group(head, _datasets(plan), _trials(plan, draws, confirm), _time(plan, draws[0].trial, confirm))


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


def _trials(plan: Plan, draws: list[Job], confirm: list[Job]) -> Table:
    sweep = plan.sweep
    table = Table(title="trials", title_justify="left", box=None, header_style="dim")
    for name in ("trial", "id", "state", "configuration"):
        table.add_column(name)
    listing = Ledger(plan.out).listing()
    for job in draws:
        state = listing.status(job.trial.id, job.sweep, job.sweep_id) or "to run"
        table.add_row(label(job), job.trial.id[:8], state, escape(describe(job.swept)))
    if sweep.search.trials > len(draws):
        sampler = sweep.search.sampler
        table.add_row(f"... {sweep.search.trials - len(draws)} more", "", "", f"drawn by {sampler} from the results")
    settled = best_draw(plan) is not None
    for job in confirm:
        known = settled or job.role == "control"  # else which configuration is best is still open
        state = (listing.status(job.trial.id) if known else None) or "to run"
        table.add_row(escape(label(job)), job.trial.id[:8] if known else "", state, job.trial.method)
    return table


def _time(plan: Plan, trial: Trial, confirm: list[Job]) -> str:
    """One sentence on the device time: measured steps of one trial on this machine, times the trials."""
    trained = [job for job in confirm if find_method(job.trial.method).trains]
    trials = plan.sweep.search.trials + len(trained)
    rows = plan.pretrain.counts["unlabelled"] or plan.pretrain.counts["train"]
    steps = steps_per_epoch(rows, trial.training.batch_size) * trial.training.epochs
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(max(1, int(plan.sweep.resources.cpus_per_worker)))
    each = steps * _seconds_per_step(trial, device)
    return (
        f"device time: about {clock(each)} of pretraining per trial, {clock(each * trials)} for {trials} trials "
        f"if none is pruned (from {TIMED_STEPS} steps timed on this {device.type}), evaluation not counted"
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
