"""A folder in which sweeps meet with accidents: what the tests of faults share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.execution import run_job
from bench.job import Job
from bench.plan import make_plan
from bench.results.ledger import Ledger
from bench.scheduling.agenda import Agenda
from bench.sweepfile import load_sweep

CPU = torch.device("cpu")

SWEEP = """
title = "q?"
method = "{method}"
[pretrain]
dataset = "{data}"
image_size = 16
epochs = {epochs}
batch_size = 8
[space]
temperature = {{ log_uniform = [0.1, 1.0] }}
[search]
trials = {trials}
prune = {{ scheduler = "none" }}
[evaluate]
datasets = ["{data}"]
protocols = ["knn"]
objective = "knn"
[confirm]
seeds = {seeds}
controls = []
"""

# SimCLRs that meet with accidents. A marker file that exists disarms them.
METHODS = """
import os, signal, time
from pathlib import Path
from bench.distributed import rank
from methods.simclr import SimCLR

marker = lambda: Path(os.environ["MARKER"])

class {name}(SimCLR):
    summary = "has an accident in the middle of training"

    def after_step(self, progress):
{body}
"""
MORTAL = """
        if progress > 0.6 and rank() == int(os.environ.get("VICTIM", "0")) and not marker().exists():
            marker().touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""
GREEDY = """
        if self.config.temperature < 0.13:
            os.kill(os.getpid(), signal.SIGKILL)
"""
HUNGRY = """
        if self.config.temperature < 0.13:
            raise MemoryError("no room for 8 GiB")
"""
NOT_FINITE = """
        (marker() / f"{os.getpid()}.worker").touch()
        for parameter in self.parameters():
            parameter.data.fill_(float("nan"))
"""
WRONG = """
        (marker() / f"{os.getpid()}.worker").touch()
        if rank() == 1:
            raise KeyError("a mistake in the method")
"""
SLOW = """
        time.sleep(0.15)
        import ray
        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
        with (marker() / f"{node}-{os.getpid()}.steps").open("a") as file:
            file.write(f"{self.config.temperature} {progress}\\n")
"""


def paint(folder: Path) -> Path:
    """48 pictures of three classes: stripes of three directions, in any colour."""
    dice = np.random.default_rng(0)
    y, x = np.mgrid[0:24, 0:24]
    for name, field in (("across", y), ("down", x), ("slanting", x + y)):
        (folder / name).mkdir(parents=True)
        for number in range(16):
            wave = np.sin(field * dice.uniform(0.5, 0.9) + dice.uniform(0, 6))[..., None]
            picture = 128 + 60 * wave * dice.uniform(-1, 1, 3) + dice.normal(0, 12, (24, 24, 3))
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


class Lab:
    """A folder with a sweep and methods of its own, run by `bench` as people run it, or here without Ray."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self.environment = os.environ | {"BENCH_CACHE": str(folder / "cache"), "COLUMNS": "200"}
        self.environment.pop("RAY_ADDRESS", None)

    def method(self, name: str, body: str) -> str:
        package = self.folder / "faulty"
        package.mkdir(exist_ok=True)
        (package / f"{name}.py").write_text(METHODS.format(name=name.title(), body=body.strip("\n")))
        return f"faulty.{name}"

    def sweep(self, method: str = "simclr", epochs: int = 4, trials: int = 1, seeds: str = "[]") -> Path:
        path = self.folder / "mine.toml"
        text = SWEEP.format(method=method, data=self.data, epochs=epochs, trials=trials, seeds=seeds)
        path.write_text(text)
        return path

    def agenda(self, sweep: Path, out: str = "out", over: dict[str, Any] | None = None, **how: Any) -> Agenda:
        plan = make_plan(load_sweep(str(sweep), over=over or {}), out=self.folder / out, cache=self.folder / "cache")
        return Agenda(plan, **how)

    def drive(self, agenda: Agenda, run: Callable[[Job, Any], None] | None = None) -> list[Job]:
        """Run what an agenda hands out, one after the other, as a worker and Tune do."""
        jobs = []
        while not agenda.is_done():
            job = agenda.take(str(len(jobs)))
            assert job is not None
            jobs.append(job)
            reports: list[dict[str, Any]] = []
            try:
                (run or (lambda job, report: run_job(job, report, CPU)))(job, reports.append)
            except Exception as error:
                from bench.scheduling.trainable import failed

                reports.append(failed(job, error))
            for report in reports:
                for text in report.get("notes", ()):
                    agenda.note(str(len(jobs) - 1), text)
            agenda.end(str(len(jobs) - 1), reports[-1])
        return jobs

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "bench", "run", "--cpus", "1", "--out", "out", *arguments]
        pipe = subprocess.PIPE
        whole = self.environment | environment
        return subprocess.Popen(command, cwd=self.folder, env=whole, stdout=pipe, stderr=pipe, text=True)

    def frame(self, out: str = "out") -> Any:
        reading = Ledger(self.folder / out).read()
        assert reading.problems == []
        return reading.frame

    def results(self, out: str = "out") -> list[tuple[Any, ...]]:
        """What the rows measured, in order, whatever it took to measure it."""
        keys = ["trial_id", "stage", "protocol", "variant", "split", "metric", "value", "objective"]
        rows = self.frame(out)[keys].astype(object)
        return sorted(map(tuple, rows.where(rows.notna(), None).to_numpy()), key=str)


def prepare(tmp_path: Path, stripes: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab whose methods this process finds too."""
    made = Lab(tmp_path, stripes)
    monkeypatch.setenv("BENCH_CACHE", made.environment["BENCH_CACHE"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name == "faulty" or name.startswith("faulty.")]:
        monkeypatch.delitem(sys.modules, name)
    return made
