"""One trial from images to ledger rows: pretrain, evaluate, write. Runs in every worker of the trial."""

import json
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from bench import memory, mirror
from bench.distributed import average, rank
from bench.draw import mix
from bench.encoders import Encoder, build_encoder
from bench.errors import TrialFailed
from bench.evaluate import evaluate, open_job_pack, quick_objective
from bench.job import Job
from bench.method import Method
from bench.patience import patiently
from bench.registry import build
from bench.results.ledger import Ledger
from bench.results.schema import Membership, TrialFacts, rows_table
from bench.training import checkpoint
from bench.training.pretrain import Epoch, History, peak_memory, pretrain

LOCK = ".training.lock"  # in a trial's folder: held by who trains there
ENDING = 60.0  # seconds that a run which was told to end is waited for
PICTURED = 8  # images that a method's own pictures show

Report = Callable[[dict[str, Any]], None]


def run_job(job: Job, report: Report, device: torch.device) -> None:
    """Run one trial and report its epochs; the last report says `finished` and its validation `objective`.

    `report` is called by every rank; the ledger is written by rank 0. A report's `notes`, lines, say what did not go
    as planned; they are kept in the job's folder too.
    """
    torch.set_num_threads(job.threads)
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32 on a GPU too, in training that asks for it and in evaluation
    device = torch.empty(0, device=device).device  # "cuda" is "cuda:0" from here on: packs are kept under the name
    with memory.kept():
        _run(job, report, device)


def _run(job: Job, report: Report, device: torch.device) -> None:
    started, clock = datetime.now(UTC), time.perf_counter()
    trainer = _Trainer(job, device, report)
    history = trainer.train()
    outcome: dict[str, Any] = {}
    if rank() == 0:
        measurements, objective = evaluate(job, trainer.encoder)
        facts = _facts(job, trainer.encoder, history, objective, device, started, time.perf_counter() - clock)
        record = patiently(Ledger(job.results).write, rows_table(facts, measurements), job.generation)
        outcome = {"objective": objective, "record": record.name}
    report({"finished": True, "epoch": job.trial.training.epochs, **outcome, **trainer.notes()})


class _Trainer:
    """The pretraining part of a job, with its reports."""

    def __init__(self, job: Job, device: torch.device, report: Report) -> None:
        self.job, self.device, self.report = job, device, report
        self._notes: list[str] = []
        trial = job.trial
        encoder = build_encoder(trial.training.backbone, mix(trial.seed, 0) % 2**31)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(trial.seed, 1))
            classes = len(open_job_pack(job, trial.data, device).classes) if trial.data else 0
            method = build(trial.method, trial.config, encoder, classes)
        self.method = method.to(device).to(memory_format=torch.channels_last)

    @property
    def encoder(self) -> Encoder:
        """The encoder as it is now."""
        return self.method.encoder

    def train(self) -> History:
        """Pretrain, or load the encoder of an earlier trial that pretrained the same."""
        if not type(self.method).trains:
            return History()
        with _alone(self.job.folder, self.device):
            mirror.refresh(self.job.folder)
            return self._load(self.job.encoder) or self._pretrain()

    def _pretrain(self) -> History:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        history = pretrain(
            self.method,
            open_job_pack(self.job, self.job.trial.data, self.device),
            self.job.trial.training,
            self.job.trial.seed,
            state=self.job.state,
            on_epoch=self._on_epoch,
            on_note=self._note,
        )
        if rank() == 0:
            self._save(self.job.encoder, history)
        return history

    def _load(self, saved: Path) -> History | None:
        """The history of the encoder that is kept, put in place; None where there is none, or a damaged one."""
        if not saved.exists():
            return None
        try:
            tensors, facts = checkpoint.load(saved, str(self.device))
        except TrialFailed as error:
            self._note(f"{error}; it is trained anew")
            return None
        checkpoint.restore_module(self.encoder, tensors)
        return History([Epoch(**epoch) for epoch in facts["epochs"]], facts["peak_memory_bytes"], facts.get("parts", 1))

    def _note(self, text: str) -> None:
        self._notes.append(text)
        line = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC {socket.gethostname()}: {text}\n"
        with suppress(OSError):
            self.job.folder.mkdir(parents=True, exist_ok=True)
            path = self.job.folder / "notes.txt"
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
            mirror.stored(path)

    def notes(self) -> dict[str, Any]:
        """What is to be said with the next report, once."""
        said, self._notes = self._notes, []
        return {"notes": said} if said else {}

    def _on_epoch(self, epoch: Epoch) -> None:
        facts: dict[str, Any] = {
            "epoch": epoch.number,
            "loss": sum(epoch.losses.get(name, 0.0) for name in self.method.objectives()),
            "images_per_second": epoch.images_per_second,
        }
        if epoch.number in self.job.rungs and rank() == 0:
            facts["rung_objective"] = quick_objective(self.job, self.encoder)
            patiently(mirror.stored, self.job.state)  # it goes on from here, perhaps on another machine, much later
        self.report(facts | self.notes())

    def _save(self, path: Path, history: History) -> None:
        """Keep the encoder and what goes with it; it comes last: where it is, everything is."""
        facts = {
            "epochs": [asdict(epoch) for epoch in history.epochs],
            "peak_memory_bytes": history.peak_memory_bytes,
            "parts": history.parts,
            "trial": self.job.trial.model_dump(mode="json"),
        }
        told, temporary = path.with_name("trial.json"), path.with_name(".trial.json")
        patiently(temporary.write_text, json.dumps(facts, indent=1), encoding="utf-8")
        patiently(mirror.publish, temporary, told)
        self._save_pictures(path.parent)
        checkpoint.save(path, checkpoint.module_tensors(self.encoder), facts)
        checkpoint.remove(self.job.state)

    @torch.no_grad()
    def _save_pictures(self, folder: Path) -> None:
        if type(self.method).pictures is Method.pictures:
            return
        from PIL import Image

        pack = open_job_pack(self.job, self.job.trial.data, self.device)
        rows = pack.rows("val")[:PICTURED]
        rows = rows if len(rows) else pack.pretraining_rows()[:PICTURED]
        self.method.eval()
        images = pack.batch(rows, self.device)
        for name, picture in self.method.pictures(images, self.job.trial.training.image_size).items():
            temporary = folder / f".{name}.png"
            pixels = picture.mul(255).round().to(torch.uint8).permute(1, 2, 0)
            Image.fromarray(pixels.cpu().contiguous().numpy()).save(temporary)
            patiently(mirror.publish, temporary, folder / f"{name}.png")


@contextmanager
def _alone(folder: Path, device: torch.device) -> Iterator[None]:
    """Wait until a run of the same training that was told to end has ended: several workers take some seconds to.

    The first worker waits for all. A storage without locks, or one that keeps those of a lost machine, holds nobody
    up for long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=ENDING)
    if rank() == 0:
        with suppress(Timeout, NotImplementedError, OSError):
            lock.acquire()
    average(torch.zeros((), device=device)).item()  # a message that ends when all have come here
    try:
        yield
    finally:
        lock.release()


def _facts(
    job: Job,
    encoder: Encoder,
    history: History,
    objective: float,
    device: torch.device,
    started: datetime,
    wall: float,
) -> TrialFacts:
    figures = history.epochs[-1].figures if history.epochs else {}
    return trial_facts(
        job,
        status="finished",
        objective=objective,
        epochs=len(history.epochs),
        pretext=figures | ({"batch parts": history.parts} if history.parts > 1 else {}),
        wall_seconds=wall,
        device_seconds=history.seconds * job.workers,
        images_per_second=history.images_per_second or None,
        peak_memory_bytes=history.peak_memory_bytes or peak_memory(device),
        encoder_parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        device=device_name(device),
        started_at=started,
        finished_at=started + timedelta(seconds=wall),  # by the monotonic clock: the other one may be set meanwhile
    )


def trial_facts(job: Job, **measured: Any) -> TrialFacts:
    """What every ledger row of a job says, with what was `measured`."""
    trial = job.trial
    source = job.sources.get(trial.data)
    facts: dict[str, Any] = {
        "trial_id": trial.id,
        "pretrain_id": trial.pretrain_id,
        "membership": membership(job),
        "configuration_id": trial.configuration_id,
        "method": trial.method,
        "encoder": trial.training.backbone,
        "seed": trial.seed,
        "config": trial.model_dump(mode="json"),
        "pretrain_dataset": source.name if source else None,
        "epochs_planned": trial.training.epochs,
        "workers": job.workers,
        "git_commit": job.provenance.git_commit,
        "git_dirty": job.provenance.git_dirty,
        "versions": job.provenance.versions,
        "host": socket.gethostname(),
        "finished_at": datetime.now(UTC),
    }
    return TrialFacts(**(facts | measured))


def membership(job: Job) -> Membership:
    """The place of a job's trial in its sweep."""
    return Membership(
        sweep=job.sweep,
        sweep_id=job.sweep_id,
        stage=job.stage,
        configuration=job.configuration,
        role=job.role,
        draw=job.draw,
        swept=job.swept,
    )


def device_name(device: torch.device) -> str:
    """The accelerator's name, or the processor's architecture and the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads)"
