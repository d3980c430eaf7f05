"""Curves: TensorBoard always, W&B and MLflow where they are asked for; one that fails ends nothing."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray.tune.logger import LoggerCallback

from bench.errors import BadInput
from bench.scheduling import trackers
from bench.tracked import tracked

SWEEP = """
title = "q?"
method = "simclr"
[pretrain]
dataset = "{data}"
image_size = 16
epochs = 3
batch_size = 16
[space]
temperature = {{ log_uniform = [0.1, 1.0] }}
[search]
trials = 2
[evaluate]
datasets = ["{data}"]
protocols = ["knn"]
objective = "knn"
[confirm]
seeds = []
"""


def test_what_is_asked_for_is_checked_first(monkeypatch):
    monkeypatch.setattr("bench.tracked.find_spec", lambda name: object() if name == "mlflow" else None)
    assert tracked(None) == ()
    assert tracked("mlflow, mlflow") == ("mlflow",)
    with pytest.raises(BadInput, match="did you mean 'wandb'"):
        tracked("wandbb")
    with pytest.raises(BadInput, match=r"wandb is not installed: pip install 'bench\[wandb\]'"):
        tracked("mlflow,wandb")


def test_a_tracker_that_fails_is_dropped_once():
    class Down(LoggerCallback):
        calls = 0

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            Down.calls += 1
            raise ConnectionError("nobody there\nmore")

    trackers.dropped.clear()
    guarded = trackers.Guarded("--log-to down", Down())
    for epoch in range(3):
        guarded.log_trial_result(epoch, None, {})
    guarded.log_trial_end(None)
    assert Down.calls == 1
    assert trackers.dropped == ["--log-to down was dropped: ConnectionError: nobody there"]


def test_scalars_are_numbers_of_an_epoch_only():
    report = {"loss": 1, "rung_objective": 0.5, "epoch": 2, "time_total_s": 3.0, "failed": "no", "objective": None}
    assert trackers.scalars(report) == {"loss": 1.0, "rung_objective": 0.5}


@pytest.fixture
def run(tmp_path: Path) -> Any:
    dice = np.random.default_rng(0)
    for name, top in (("dark", 128), ("light", 256)):
        folder = tmp_path / "noise" / name
        folder.mkdir(parents=True)
        for number in range(16):
            pixels = dice.integers(top - 100, top, (24, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "q.toml").write_text(SWEEP.format(data=tmp_path / "noise"))

    def bench_run(*more: str, **environment: str) -> str:
        known = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "MLFLOW", "RAY"))}
        done = subprocess.run(
            [sys.executable, "-m", "bench", "run", "--sweep", "q.toml", "--out", "out", "--cpus", "2", *more],
            cwd=tmp_path,
            env=known | {"BENCH_CACHE": str(tmp_path / "cache")} | environment,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return bench_run


def read_events(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar by its name and step, as TensorBoard's own format has them."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = {}
    for path in folder.glob("events.out.tfevents.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
            at += 12 + size + 4
    return found


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_every_trial_leaves_a_small_tensorboard_file(run, tmp_path):
    run()
    folders = sorted((tmp_path / "out" / "tensorboard" / "q").iterdir())
    assert [folder.name.rpartition("-")[0] for folder in folders] == ["simclr_draw_0", "simclr_draw_1"]
    for folder in folders:
        curves = read_events(folder)
        assert set(curves["loss"]) == {1, 2, 3}
        assert 0 < curves["objective"][3] <= 1
        assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000
    assert not list((tmp_path / "out").glob(".tune-*"))


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.filterwarnings("ignore")  # mlflow's own
@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs bench[mlflow]")
def test_mlflow_holds_curves_and_configurations(run, tmp_path):
    run("--log-to", "mlflow")
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("q").experiment_id])
    assert {found.info.run_name for found in runs} == {"simclr, draw 0", "simclr, draw 1"}
    for found in runs:
        assert {"pretrain.epochs", "method.temperature", "trial_id"} <= set(found.data.params)
        assert len(client.get_metric_history(found.info.run_id, "loss")) == 3
        assert found.info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs bench[mlflow]")
def test_a_sweep_goes_on_without_a_tracker_that_is_down(run, tmp_path):
    shown = run("--log-to", "mlflow", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/q.toml/below/a/file.db")
    assert "2 trials ran" in shown
    assert "--log-to mlflow was dropped" in shown


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.skipif(find_spec("wandb") is None, reason="needs bench[wandb]")
def test_wandb_keeps_offline_runs_beside_the_results(run, tmp_path):
    run("--log-to", "wandb", WANDB_MODE="offline", WANDB_API_KEY="0" * 40, WANDB_SILENT="true")
    assert len(list((tmp_path / "out" / "wandb").glob("offline-run-*"))) == 2
