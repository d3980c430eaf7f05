"""The command line: quick help, clear mistakes, dry runs, lists, reports."""

import json
import os
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

from bench import cli
from bench.method import Method
from bench.registry import method_names
from bench.results.ledger import Ledger
from bench.results.schema import Measurement, Membership, TrialFacts, rows_table


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bench(monkeypatch, capsys):
    """Run a command in this process; returns its exit code, output and errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        monkeypatch.setattr(sys, "path", list(sys.path))
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


def draw_folder(folder: Path, classes: tuple[str, ...] = ("a", "b"), each: int = 12) -> Path:
    dice = np.random.default_rng(len(classes))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(dice.integers(0, 255, (20, 26, 3), dtype=np.uint8)).save(folder / name / f"{number}.png")
    return folder


def test_help_is_quick():
    """In seconds of processor time: on a busy machine a second of the clock says little."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", "bench", "--help"], capture_output=True, text=True, check=True)
        assert "run" in done.stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(5)) < 0.3  # 0.2 s by the clock on a free core


def test_help_imports_nothing_heavy():
    code = (
        "import sys, bench.cli; print([name for name in ('torch', 'ray', 'pandas', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_list_and_show(bench):
    code, out, _ = bench("list")
    assert code == 0
    for name in (*method_names(), "leaves", "wings", "shells", "simclr_gamma", "resnet50", "linear", "knn"):
        assert name in out
    assert "weight_decay" not in out
    code, out, _ = bench("list", "encoders")
    assert "resnet18" in out
    assert "simclr" not in out
    code, out, _ = bench("show", "simclr")
    assert code == 0
    for word in ("gamma.low", "temperature", "0.2", "> 0", "<= 2", "softmax", "pretrain", "weight_decay"):
        assert word in out
    for name in ("leaves", "simclr_gamma", "resnet18", "linear"):
        assert bench("show", name)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--sweep", "simclr_gama"], "did you mean 'simclr_gamma'"),
        (["run", "--sweep", "simclr_gamma", "--profile", "smal"], "did you mean 'small'"),
        (["run", "--sweep", "simclr_gamma", "--set", "method.temprature=0.2"], "did you mean 'method.temperature'"),
        (["run", "--sweep", "simclr_gamma", "--set", "method.temperature=-1"], "temperature: Input should be greater"),
        (["run", "--sweep", "simclr_gamma", "--set", "temperature"], "FIELD=VALUE"),
        (["run", "--sweep", "simclr_gamma", "--epochs", "-3"], "pretrain.epochs"),
        (["run", "--sweep", "simclr_gamma", "--method", "simclar"], "did you mean 'simclr'"),
        (["run", "--sweep", "simclr_gamma", "--pretrain-on", "leavs"], "did you mean 'leaves'"),
        (["run", "--sweep", "simclr_gamma", "--pretrain-on", "./nowhere"], "no such folder"),
        (["run", "--sweep", "simclr_gamma", "--workers", "3"], "not a multiple of resources.workers 3"),
        (["run", "--sweep", "simclr_gamma", "--profile", "full", "--dry-run"], "cassava"),
        (["show", "simclar"], "did you mean 'simclr'"),
        (["list", "method"], "did you mean 'methods'"),
        (["report", "--out", "nothing"], "no results yet"),
        (["report", "--out", "nothing", "--sweep", "x"], "no results of sweep 'x'"),
        (["run"], "Missing option"),
        (["rnu"], "No such command"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(bench, arguments, message):
    code, out, err = bench(*arguments)
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err + out


def test_unusable_data_is_refused_before_anything_starts(bench, tmp_path):
    one = draw_folder(tmp_path / "one", ("only",))
    code, _, err = bench("run", "--sweep", "simclr_gamma", "--evaluate-on", str(one), "--out", "out")
    assert code == 2
    assert "one class only" in err
    good = draw_folder(tmp_path / "good")
    (good / "splits.csv").write_text("file,class,split\na/0.png,a,train\nb/0.png,b,trian\n")
    code, _, err = bench("run", "--sweep", "simclr_gamma", "--pretrain-on", str(good), "--out", "out")
    assert code == 2
    assert "splits.csv" in err
    assert "line 3" in err
    assert "'train'" in err
    small = draw_folder(tmp_path / "small")
    code, _, err = bench("run", "--sweep", "simclr_gamma", "--pretrain-on", str(small), "--out", "out")
    assert code == 2
    assert "--set pretrain.batch_size=16" in err
    broken = tmp_path / "broken" / "a"
    broken.mkdir(parents=True)
    (broken / "x.jpg").write_bytes(b"this is no image")
    code, _, err = bench("run", "--sweep", "simclr_gamma", "--pretrain-on", str(broken.parent), "--out", "out")
    assert code == 2
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_the_plan_and_starts_nothing(bench, tmp_path):
    data = str(draw_folder(tmp_path / "photographs", each=60))
    arguments = ("run", "--sweep", "simclr_gamma", "--pretrain-on", data, "--evaluate-on", data)
    more = ("--trials", "3", "--set", "pretrain.batch_size=32", "--out", "out", "--dry-run")
    code, out, _ = bench(*arguments, *more)
    assert code == 0
    for word in (
        "photographs",
        "pretraining, evaluation",
        "draw 2",
        "gamma.low=",
        "simclr, seed 2",
        "device time: about",
    ):
        assert word in out
    assert "draw 3" not in out
    assert not (tmp_path / "out").exists()


def ledger(out: Path) -> None:
    for seed, value in enumerate((0.5, 0.6, 0.7)):
        for name, shift in (("best", 0.1), ("plain", 0.0)):
            place = Membership(sweep="mine", sweep_id="1" * 64, stage="confirm", configuration=name)
            facts = TrialFacts(
                trial_id=f"{name}{seed}", membership=place, configuration_id=name, method="simclr", encoder="small",
                seed=seed, status="finished", config={}, objective=0.5, finished_at=datetime.now(UTC),
            )  # fmt: skip
            row = Measurement(
                dataset="leaves", protocol="linear", split="test", metric="top1", headline=True,
                value=value + shift, low=value - 0.1, high=value + 0.2, samples=100,
            )  # fmt: skip
            Ledger(out).write(rows_table(facts, [row]))


def test_report_in_every_format(bench, tmp_path):
    ledger(tmp_path / "out")
    code, out, _ = bench("report", "--out", "out", "--sweep", "mine")
    assert code == 0
    assert "best" in out
    assert "70.0" in out
    for form in ("md", "csv", "json"):
        code, out, _ = bench("report", "--out", "out", "--format", form)
        assert code == 0
        assert "best" in out
        assert form != "json" or json.loads(out)
    code, _, _ = bench("report", "--out", "out", "--format", "parquet", "--to", "board.parquet")
    assert code == 0
    assert "best" in set(pandas.read_parquet(tmp_path / "board.parquet")["configuration"])
    code, _, err = bench("report", "--out", "out", "--format", "parquet")
    assert (code, "--to" in err) == (2, True)
    code, _, err = bench("report", "--out", "out", "--format", "mdd")
    assert (code, "did you mean 'md'" in err) == (2, True)
    code, _, err = bench("report", "--out", "out", "--sweep", "mien")
    assert (code, "did you mean 'mine'" in err) == (2, True)


def test_a_closed_pipe_is_no_traceback():
    environment = os.environ | {"COLUMNS": "160"}
    done = subprocess.run(
        f"{sys.executable} -m bench show simclr | head -1", shell=True, env=environment, capture_output=True, text=True
    )
    assert "simclr" in done.stdout
    assert done.stderr == ""


def test_the_contract_is_documented():
    for name in ("views", "losses", "objectives", "after_step"):
        assert getattr(Method, name).__doc__


def test_a_cluster_that_is_not_there_is_said_at_once(bench, tmp_path):
    data = str(draw_folder(tmp_path / "photographs", each=12))
    start = time.perf_counter()
    arguments = ("--pretrain-on", data, "--evaluate-on", data, "--set", "pretrain.batch_size=8", "--out", "out")
    code, _, err = bench("run", "--sweep", "simclr_gamma", *arguments, "--address", "127.0.0.1:9")
    assert code == 2
    assert "no Ray answers at '127.0.0.1:9'" in err
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_encoders_by_name(name):
    import torch

    from bench.encoders import build_encoder

    encoder = build_encoder(name, 0).eval()
    with torch.no_grad():
        assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, encoder.dim)
