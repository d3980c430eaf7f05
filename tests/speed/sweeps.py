"""Small sweeps as the speed measurements run them: through the command line, and the same jobs by hand."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from bench.cache import cache_folder
from bench.job import Job
from bench.plan import Plan, local_hardware, make_plan
from bench.study import preview
from bench.sweepfile import load_sweep

SWEEP = """
title = "speed"
method = "simclr"
[set]
"crop.low" = 0.3
[pretrain]
dataset = "{data}"
backbone = "{backbone}"
image_size = {size}
epochs = {epochs}
batch_size = {batch}
precision = "fp32"
[space]
temperature = {{ log_uniform = [0.05, 0.5] }}
"pretrain.lr" = {{ log_uniform = [1e-4, 1e-2] }}
[search]
sampler = "random"
trials = {trials}
prune = {{ scheduler = "{prune}", grace = {grace}, factor = 2 }}
[evaluate]
datasets = ["{data}"]
protocols = ["linear"]
[confirm]
seeds = []
controls = []
[resources]
workers = {workers}
cpus_per_worker = 1
"""


def write(
    folder: Path,
    data: str,
    *,
    trials: int,
    epochs: int = 1,
    prune: str = "none",
    grace: int = 1,
    workers: int = 1,
    size: int = 32,
    batch: int = 64,
    backbone: str = "small",
) -> Path:
    """Write a sweep of SimCLR on `data`, a folder or a card."""
    reference = str(Path(data).resolve()) if Path(data).is_dir() else data
    path = folder / f"speed-{workers}-{prune}-{epochs}-{trials}.toml"
    path.write_text(SWEEP.format(**{**locals(), "data": reference}), encoding="utf-8")
    return path


def run(sweep: Path, out: Path, *options: str, cache: Path | None = None) -> float:
    """`bench run` as a person starts it; returns its wall seconds."""
    start = time.perf_counter()
    environment = os.environ | {"BENCH_CACHE": str(cache or cache_folder())}
    command = [sys.executable, "-m", "bench", "run", "--sweep", str(sweep), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return time.perf_counter() - start


def trials(out: Path) -> pd.DataFrame:
    """One row per trial of a run, in the order in which they ended."""
    frame = pd.concat([pd.read_parquet(path) for path in sorted((out / "ledger").glob("*.parquet"))])
    return frame.drop_duplicates("trial_id").sort_values("finished_at").reset_index(drop=True)


def jobs(sweep: Path, out: Path) -> list[Job]:
    """The jobs of the same draws (a random sampler's do not depend on results), with their ledger under `out`."""
    plan = plan_of(sweep, out)
    count = plan.sweep.draws("simclr")
    return [plan.search_job("simclr", draw, values) for draw, values in enumerate(preview(plan, "simclr", count))]


def plan_of(sweep: Path, out: Path) -> Plan:
    """The plan that `bench run` would make."""
    return make_plan(load_sweep(str(sweep)), out=out, cache=cache_folder()).on(local_hardware())
