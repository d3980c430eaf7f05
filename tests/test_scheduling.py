"""Sweeps on a real local Ray: one worker and several, pruning, a killed worker, Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.live import Snapshot
from bench.results.ledger import Ledger

pytestmark = pytest.mark.timeout(280)

SWEEP = """
title = "q?"
method = "simclr"
[pretrain]
dataset = "{data}"
image_size = 16
epochs = {epochs}
batch_size = 16
[space]
temperature = {{ log_uniform = [0.1, 1.0] }}
[search]
trials = {trials}
prune = {{ scheduler = "{prune}", grace = 1, factor = 2 }}
[evaluate]
datasets = ["{data}"]
[confirm]
seeds = {seeds}
"""

# A SimCLR that dies by kill -9 in mid-epoch, once per marker folder.
MORTAL = """
import os, signal
from pathlib import Path
from methods.simclr import SimCLR, SimCLRConfig

class Mortal(SimCLR):
    summary = "dies once in the middle of training"

    def after_step(self, progress):
        marker = Path(os.environ["MORTAL_MARKER"])
        if progress > 0.6 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""

# A SimCLR whose loss is not a number where the temperature is low.
BROKEN = """
from methods.simclr import SimCLR

class Broken(SimCLR):
    summary = "has no finite loss at low temperatures"

    def losses(self, views, progress):
        loss = super().losses(views, progress)["loss"]
        return {"loss": loss if self.config.temperature > 0.13 else loss * float("nan")}
"""

# A SimCLR that is worth nothing at high temperatures, so that the pruner has something to decide.
FADING = """
import torch
from methods.simclr import SimCLR

class Fading(SimCLR):
    summary = "forgets everything at high temperatures"

    def after_step(self, progress):
        if self.config.temperature > 0.3:
            with torch.no_grad():
                for parameter in self.encoder.parameters():
                    parameter.zero_()
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 pictures of three classes: stripes of three directions, in any colour."""
    folder = tmp_path_factory.mktemp("data") / "stripes"
    dice = np.random.default_rng(0)
    y, x = np.mgrid[0:32, 0:32]
    for name, field in (("across", y), ("down", x), ("slanting", x + y)):
        (folder / name).mkdir(parents=True)
        for number in range(24):
            wave = np.sin(field * dice.uniform(0.5, 0.9) + dice.uniform(0, 6))[..., None]
            picture = 128 + 60 * wave * dice.uniform(-1, 1, 3) + dice.normal(0, 12, (32, 32, 3))
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def workshop(tmp_path: Path, photographs: Path) -> "Workshop":
    return Workshop(tmp_path, photographs)


class Workshop:
    """A folder with a sweep, in which `bench` is run as people run it."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self.environment = os.environ | {"BENCH_CACHE": str(folder / "cache"), "COLUMNS": "200"}
        self.environment.pop("RAY_ADDRESS", None)

    def write(
        self, name: str = "mine", epochs: int = 4, trials: int = 3, prune: str = "none", seeds: str = "[]"
    ) -> Path:
        path = self.folder / f"{name}.toml"
        path.write_text(SWEEP.format(data=self.data, epochs=epochs, trials=trials, prune=prune, seeds=seeds))
        return path

    def method(self, name: str, text: str) -> str:
        """Write a method of the user's own; returns what --method takes."""
        package = self.folder / "mine"
        package.mkdir(exist_ok=True)
        (package / f"{name}.py").write_text(text)
        return f"mine.{name}"

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "bench", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment | environment, stdout=pipe, stderr=pipe, text=True
        )

    def bench(self, *arguments: str, code: int = 0, **environment: str) -> str:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=270)
        assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
        assert err == "" or code, err
        return out

    def run(self, sweep: Path, *more: str, out: str = "out", code: int = 0, **environment: str) -> str:
        return self.bench("run", "--sweep", str(sweep), "--out", out, "--cpus", "2", *more, code=code, **environment)

    def frame(self, out: str = "out") -> Any:
        reading = Ledger(self.folder / out).read()
        assert reading.problems == []
        return reading.frame


def test_a_sweep_runs_once_and_is_read_by_everyone(workshop):
    sweep = workshop.write(trials=4, epochs=5, prune="asha", seeds="[0, 1]")
    shown = workshop.run(sweep)
    lines = shown.splitlines()
    assert lines[0].startswith("packing stripes: 72 images")
    assert any("simclr, seed 1 finished" in line for line in lines)
    assert any(re.match(r"simclr, draw \d waits at epoch 1, validation [0-9.]+%", line) for line in lines)
    assert not [line for line in lines if "ray" in line.lower().split() or "[I " in line or "Trial status" in line]
    frame = workshop.frame()
    assert set(frame["status"]) <= {"finished", "pruned"}
    assert frame.query("stage == 'search'")["trial_id"].nunique() == 4
    assert sorted(frame.query("stage == 'confirm'")["configuration"].unique()) == ["random_init", "simclr"]
    finished = frame.query("status == 'finished'")
    assert set(finished["protocol"]) == {"linear", "knn"}
    assert set(finished["split"]) == {"val", "test"}
    assert finished["value"].dropna().between(0, 1).all()
    trained = finished.query("method == 'simclr'")
    assert (trained["images_per_second"] > 0).all()
    assert (trained["peak_memory_bytes"] > 2**20).all()

    import duckdb
    import pandas

    ledger = workshop.folder / "out" / "ledger"
    assert len(pandas.read_parquet(ledger)) == len(frame)
    count = duckdb.sql(f"select count(distinct trial_id) from '{ledger}/*.parquet' where stage = 'confirm'").fetchall()
    assert count == [(4,)]
    started = time.monotonic()
    assert "0 trials ran" in workshop.run(sweep)
    assert time.monotonic() - started < 60
    assert len(workshop.frame()) == len(frame)
    assert "simclr" in workshop.bench("report", "--out", "out")


def test_a_killed_worker_goes_on_from_its_checkpoint_and_changes_nothing(workshop):
    method = workshop.method("mortal", MORTAL)
    sweep = workshop.write(trials=1, epochs=4)
    marker = workshop.folder / "died"
    shown = workshop.run(sweep, "--method", method, MORTAL_MARKER=str(marker))
    assert marker.exists()
    assert "raylet" not in shown
    workshop.run(sweep, "--method", method, out="calm", MORTAL_MARKER=str(marker))
    keys = ["trial_id", "dataset", "protocol", "variant", "split", "metric", "value", "objective"]
    left, right = (workshop.frame(out)[keys].sort_values(keys[:6]).reset_index(drop=True) for out in ("out", "calm"))
    assert left.equals(right)
    assert len(left) > 10


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_keeps_what_is_finished_and_resumes_the_rest(workshop, how):
    sweep = workshop.write(trials=2, epochs=60)
    process = workshop.start("run", "--sweep", str(sweep), "--out", "out", "--cpus", "1")
    ledger, trials = workshop.folder / "out" / "ledger", workshop.folder / "out" / "trials"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:  # the first trial is finished, the second has a checkpoint
        if ledger.exists() and list(ledger.glob("*.parquet")) and list(trials.glob("*/state.safetensors")):
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, f"{out}\n{err}"
    assert "interrupted: the same command goes on from here" in out
    (word,) = (workshop.folder / "out" / "live").glob("*.json")
    assert Snapshot.model_validate_json(word.read_text()).state == "interrupted"
    (state,) = trials.glob("*/state.safetensors")
    before = len(workshop.frame()["trial_id"].unique())
    assert before == 1
    shown = workshop.run(sweep)
    assert "1 trials ran, 0 pruned, 1 known already" in shown
    assert not state.exists()
    assert workshop.frame()["trial_id"].nunique() == 2
    assert set(workshop.frame()["epochs"]) == {60}


def test_a_trial_that_fails_is_a_row_with_a_traceback(workshop):
    method = workshop.method("broken", BROKEN)
    sweep = workshop.write(trials=3, epochs=2)
    shown = workshop.run(sweep, "--method", method, code=1)
    assert "TrialFailed: the loss 'loss' is not finite in epoch 1" in shown
    frame = workshop.frame().drop_duplicates("trial_id").set_index("status")
    assert sorted(frame.index) == ["failed", "finished", "finished"]
    traceback = workshop.folder / "out" / frame.loc["failed", "error_file"]
    assert "TrialFailed" in traceback.read_text()


@pytest.mark.slow  # two minutes
def test_six_two_worker_trials_under_asha_end_and_give_all_cpus_back(workshop, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", workshop.environment["BENCH_CACHE"])
    monkeypatch.chdir(workshop.folder)
    from bench.cache import cache_folder
    from bench.plan import make_plan
    from bench.scheduling.agenda import Agenda
    from bench.scheduling.cluster import connect
    from bench.scheduling.run import run_agenda
    from bench.sweepfile import load_sweep

    method = workshop.method("fading", FADING)
    monkeypatch.syspath_prepend(workshop.folder)
    path = workshop.write(trials=6, epochs=5, prune="asha")
    sweep = load_sweep(str(path), over={"method": method, "resources": {"workers": 2}})
    plan = make_plan(sweep, out=workshop.folder / "out", cache=cache_folder())
    agenda = Agenda(plan)
    with connect(None, cpus=2) as cluster:
        import ray
        from ray.util import placement_group_table

        run_agenda(agenda, cluster)
        assert agenda.is_done()
        deadline = time.monotonic() + 20
        while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert ray.available_resources().get("CPU") == 2
        assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}
    assert agenda.tally.failures == []
    # Ray Train does not wait for an answer at a rung: a short trial may have ended before it hears that it waits.
    assert agenda.tally.ran + agenda.tally.pruned + agenda.tally.reused == 6
    assert agenda.tally.pruned >= 1
    frame = workshop.frame()
    assert set(frame["workers"]) == {2}
