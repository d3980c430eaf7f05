"""bench submit: what is shipped, what is refused before anything is sent, and jobs on a real local Ray."""

import contextlib
import io
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import bench.submit
from bench.cli import app
from bench.errors import BadInput
from bench.plan import find_provenance
from bench.request import requested_sweep
from bench.shipment import Shipment, pack_shipment
from bench.submit import JobServer, connect_jobs

SWEEP = """
title = "q?"
method = "simclr"
[pretrain]
dataset = "{data}"
image_size = 16
epochs = 1
batch_size = 16
[search]
trials = 1
[evaluate]
datasets = ["{data}"]
protocols = ["knn"]
objective = "knn"
[confirm]
seeds = []
"""

METHOD = """
from methods.simclr import SimCLR

class Mine(SimCLR):
    summary = "a method of the user's own"
"""


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "BENCH_CARDS", "BENCH_DATA", "BENCH_CACHE", "BENCH_OUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def shipped(*command: str, folder: Path | None = None, environment: tuple[str, ...] = ()) -> Shipment:
    """The shipment of `bench run --sweep X ...`; only --sweep, --method and --out are understood here."""
    given = dict(zip(command[::2], command[1::2], strict=True))
    sweep = requested_sweep(given["--sweep"], method=given.get("--method"), pretrain_on=given.get("--pretrain-on"))
    options = {"sweep": given["--sweep"], "out": given.get("--out", "/shared/out")}
    return pack_shipment(["run", *command], options, sweep, working_dir=folder, environment=environment)


def names(shipment: Shipment) -> set[str]:
    return set(zipfile.ZipFile(io.BytesIO(shipment.archive)).namelist())


def test_code_and_cards_travel_and_nothing_else():
    shipment = shipped("--sweep", "simclr_gamma")
    inside = names(shipment)
    assert {"bench/cli.py", "bench/data/pack.py", "methods/simclr.py"} <= inside
    assert {"datasets/leaves.toml", "sweeps/simclr_gamma.toml"} <= inside
    assert {name.split("/")[0] for name in inside} == {"bench", "methods", "datasets", "sweeps"}
    assert not [name for name in inside if "__pycache__" in name or name.endswith(".pyc")]
    assert shipment.files == len(inside)
    assert shipment.size < 2 * 2**20
    assert shipment.entrypoint == "python -m bench run --sweep simclr_gamma"
    assert json.loads(shipment.environment["BENCH_PROVENANCE"])["git_commit"] == find_provenance().git_commit


def test_the_same_content_is_the_same_archive():
    first = shipped("--sweep", "simclr_gamma")
    assert shipped("--sweep", "simclr_gamma").archive == first.archive


def test_users_cards_sweeps_and_methods_travel(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "idea.py").write_text(METHOD)
    (tmp_path / "cards" / "datasets").mkdir(parents=True)
    (tmp_path / "cards" / "datasets" / "own.toml").write_text(find_card_text())
    (tmp_path / "cards" / "notes.txt").write_text("stays")
    (tmp_path / "q.toml").write_text(SWEEP.format(data="own"))
    monkeypatch.setenv("BENCH_CARDS", str(tmp_path / "cards"))
    monkeypatch.syspath_prepend(tmp_path)
    shipment = shipped("--sweep", "q.toml", "--method", "mine.idea")
    assert {"mine/idea.py", ".bench/cards0/datasets/own.toml", ".bench/sweeps/q.toml"} <= names(shipment)
    assert not [name for name in names(shipment) if "notes" in name]
    assert shipment.environment["BENCH_CARDS"] == ".bench/cards0"
    assert "--sweep .bench/sweeps/q.toml" in shipment.entrypoint
    # What was shipped is enough: unpacked elsewhere, the command plans the sweep.
    away = tmp_path / "away"
    zipfile.ZipFile(io.BytesIO(shipment.archive)).extractall(away)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BENCH_", "PYTHON"))}
    code = "import bench, sys; from bench.request import requested_sweep as r; r(sys.argv[1], method='mine.idea')"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(bench.__file__)", ".bench/sweeps/q.toml"],
        cwd=away,
        env=environment | {"BENCH_CARDS": shipment.environment["BENCH_CARDS"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(away / "bench" / "__init__.py"), done.stderr


def find_card_text() -> str:
    from bench.cards import find_card

    return find_card("datasets", "leaves").read_text()


def test_a_folder_of_ones_own_travels_without_what_is_large_or_ignored(tmp_path):
    folder = tmp_path / "own"
    for name in ("helper.py", "deep/data/table.py", "results/x.parquet", ".venv/lib.py", "data/a.png", "old.log"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    everything = names(shipped("--sweep", "simclr_gamma", folder=folder))
    assert {"helper.py", "deep/data/table.py", "old.log"} <= everything
    assert not [name for name in everything if name.startswith(("results/", ".venv/", "data/"))]
    (folder / ".gitignore").write_text("*.log\n")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    versioned = names(shipped("--sweep", "simclr_gamma", folder=folder))
    assert everything - versioned == {"old.log"}
    assert not [name for name in versioned if name.startswith((".git/", "results/", ".venv/", "data/"))]


def test_too_much_is_refused_with_what_is_largest(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.shipment.LIMIT_BYTES", 3 * 2**20)
    (tmp_path / "weights.bin").write_bytes(bytes(4 * 2**20))
    with pytest.raises(BadInput, match=r"4 MB would be shipped, 3 MB may be; the largest: weights\.bin \(4 MB\)|5 MB"):
        shipped("--sweep", "simclr_gamma", folder=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--", "run", "--sweep", "simclr_gama", "--out", "/o"], "did you mean 'simclr_gamma'"),
        (["--", "run", "--sweep", "simclr_gamma"], "--out results: a job's own folder is deleted after it"),
        (
            ["--", "run", "--sweep", "simclr_gamma", "--out", "/o", "--set", "gamma.lo=1"],
            "no field is named 'gamma.lo'",
        ),
        (["--", "run", "--sweep", "simclr_gamma", "--out", "/o", "--address", "x"], "leave --address out"),
        (["--", "report"], "only `run` is sent"),
        (["--env", "WANDB_API_KEY=1", "--", "run", "--sweep", "simclr_gamma", "--out", "/o"], "WANDB_API_KEY: Ray"),
        (["--env", "BENCH_DATA", "--", "run", "--sweep", "simclr_gamma", "--out", "/o"], "NAME=VALUE"),
        (["--list", "--status", "x"], "give one of"),
        ([], "give one of"),
        (["--list"], "which cluster?"),
    ],
)
def test_what_is_wrong_is_one_error_before_anything_is_sent(arguments, words, monkeypatch):
    monkeypatch.setattr(JobServer, "start", lambda *_: pytest.fail("sent"))
    result = CliRunner().invoke(app, ["submit", *arguments])
    assert isinstance(result.exception, BadInput)
    assert words in str(result.exception)


def test_a_wrong_option_of_run_is_the_parsers_own_error():
    result = CliRunner().invoke(app, ["submit", "--", "run", "--sweep", "simclr_gamma", "--epoch", "x"])
    assert result.exit_code == 2
    assert "bench run" in result.output
    assert "No such option" in result.output


def test_data_that_is_only_here_is_refused_unless_it_travels(tmp_path):
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    (tmp_path / "pictures" / "a" / "1.png").write_bytes(b"x")
    with pytest.raises(BadInput, match="'pictures' is a path on this machine"):
        shipped("--sweep", "simclr_gamma", "--pretrain-on", "pictures")
    assert "pictures/a/1.png" in names(shipped("--sweep", "simclr_gamma", "--pretrain-on", "pictures", folder=tmp_path))


def test_variables_travel_where_they_are_given(monkeypatch):
    assert not {"BENCH_DATA", "BENCH_CACHE"} & set(shipped("--sweep", "simclr_gamma").environment)
    monkeypatch.setenv("BENCH_DATA", "/shared/data")
    environment = shipped("--sweep", "simclr_gamma", environment=("BENCH_CACHE=/local",)).environment
    assert (environment["BENCH_DATA"], environment["BENCH_CACHE"]) == ("/shared/data", "/local")


# The job seen from here ------------------------------------------------------------------------------


class FakeClient:
    """A job whose log breaks off twice before it ends."""

    def __init__(self, status: str, code: int | None) -> None:
        self.log, self.tails, self.status, self.code = "one\ntwo\nthree\n", 0, status, code

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        self.tails += 1
        for text in (self.log[:5], self.log[5:])[: self.tails]:
            yield text
        if self.tails < 3:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_info(self, name: str) -> Any:
        from ray.job_submission import JobStatus

        status = JobStatus(self.status if self.tails >= 3 else "RUNNING")
        return SimpleNamespace(status=status, driver_exit_code=self.code, message="it  ended")

    def list_jobs(self) -> list[Any]:
        return [SimpleNamespace(submission_id="q-12345678"), SimpleNamespace(submission_id=None)]


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("FAILED", -9, 1), ("STOPPED", None, 130)],
)
def test_a_log_that_breaks_off_is_shown_once_and_the_exit_code_is_the_jobs(status, code, expected, monkeypatch):
    monkeypatch.setattr(bench.submit, "POLL_SECONDS", 0.01)
    server = JobServer(FakeClient(status, code), "http://here")
    assert "".join(server.output("q")) == "one\ntwo\nthree\n"
    assert server.ended("q").code == expected
    with pytest.raises(BadInput, match="has no job 'q-1234'; did you mean 'q-12345678'"):
        server.known("q-1234")


@pytest.fixture
def refusing() -> Iterator[str]:
    """A jobs server that wants another token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.end_headers()
            self.wfile.write(b"Forbidden: Invalid authentication token")

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_refused_token_is_one_error_that_does_not_show_it(refusing):
    token = secrets.token_hex(16)
    environment = os.environ | {"RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token"}
    command = [sys.executable, "-m", "bench", "submit", "--address", refusing, "--list"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Invalid authentication token" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert token not in done.stdout + done.stderr


def test_nothing_that_answers_is_one_quick_error(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        started = time.monotonic()
        with pytest.raises(BadInput, match=re.escape(address)):
            connect_jobs(None)
        assert time.monotonic() - started < 20


# On a real Ray ---------------------------------------------------------------------------------------


class Ray:
    """A Ray head with a jobs server, in a folder and on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.token = secrets.token_hex(16)
        port = 20_000 + 40 * secrets.randbelow(300)
        self.address, self.gcs = f"http://127.0.0.1:{port}", f"127.0.0.1:{port + 1}"
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        options = {
            "dashboard-port": port,
            "port": port + 1,
            "ray-client-server-port": port + 2,
            "dashboard-agent-listen-port": port + 3,
            "min-worker-port": port + 4,
            "max-worker-port": port + 39,
            "num-cpus": 2,
            "object-store-memory": 100_000_000,
            "temp-dir": folder,
            "include-dashboard": "true",
        }
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        command += [f"--{name}={value}" for name, value in options.items()]
        self.log = (folder / "ray.log").open("w")
        self.process = subprocess.Popen(
            command, env=self.environment, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._wait()

    def _wait(self) -> None:
        import requests

        for _ in range(600):
            assert self.process.poll() is None
            try:
                headers = {"Authorization": f"Bearer {self.token}"}
                if requests.get(f"{self.address}/api/version", headers=headers, timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.2)
        raise AssertionError("no Ray after 120 s")

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.log.close()

    def bench(self, *arguments: str, folder: Path, code: int = 0, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "bench", *arguments],
            cwd=folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert self.token not in done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def ray_head() -> Iterator[Ray]:
    if not all(find_spec(name) for name in ("aiohttp_cors", "opencensus", "colorful")):
        pytest.skip("the jobs server needs ray[default]: pip install 'bench[cluster]'")
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:  # socket names are short
        head = Ray(Path(folder))
        yield head
        head.end()


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    dice = np.random.default_rng(0)
    for name in ("a", "b"):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(16):
            pixels = dice.integers(0, 128 if name == "a" else 256, (24, 24, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "q.toml").write_text(SWEEP.format(data=tmp_path / "pictures"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "idea.py").write_text(METHOD)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_sweep_runs_as_a_job_with_a_method_of_the_users_own(ray_head, workplace):
    out = workplace / "out"
    shown = ray_head.bench(
        *("submit", "--address", ray_head.address, "--env", f"BENCH_CACHE={workplace / 'cache'}", "--"),
        *("run", "--sweep", "q.toml", "--method", "mine.idea", "--out", str(out)),
        folder=workplace,
    )
    assert re.search(r"shipping \d+ files, 0\.\d MB", shown)
    assert "1 trials ran, 0 pruned, 0 known already, 0 failed" in shown
    name = re.search(r"job (q-\w+) is on its way", shown).group(1)
    ask = ("submit", "--address", ray_head.address)
    assert "succeeded" in ray_head.bench(*ask, "--status", name, folder=workplace)
    assert "1 trials ran" in ray_head.bench(*ask, "--logs", name, folder=workplace)
    assert name in ray_head.bench(*ask, "--list", folder=workplace)
    assert "has ended already" in ray_head.bench(*ask, "--stop", name, folder=workplace)
    from bench.results.ledger import Ledger

    frame = Ledger(out).read().frame
    assert set(frame["method"]) == {"mine.idea"}
    assert set(frame["git_commit"].str.len()) == {len(find_provenance().git_commit)}  # of the place it was sent from
    stored = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in stored if ray_head.token.encode() in path.read_bytes()]
    # Ray's own commands and an address work on the same cluster, and find everything done.
    known = "0 trials ran, 0 pruned, 1 known already"
    run = ("run", "--sweep", "q.toml", "--method", "mine.idea", "--out", str(out))
    assert known in ray_head.bench(*run, folder=workplace, RAY_ADDRESS=ray_head.gcs)
    code = Path(bench.submit.__file__).parents[1]
    entry = [sys.executable, "-m", "bench", *("run", "--sweep", str(workplace / "q.toml")), "--out", str(out)]
    job = ["job", "submit", "--address", ray_head.address, "--working-dir", str(workplace), "--runtime-env-json"]
    runtime = json.dumps({"env_vars": {"PYTHONPATH": str(code)}})
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *job, runtime, "--", *entry, "--method", "mine.idea"],
        env=ray_head.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert known in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_ctrl_c_leaves_the_job_running_and_stop_ends_it(ray_head, workplace):
    arguments = ("run", "--sweep", "q.toml", "--out", str(workplace / "out"), "--epochs", "5000", "--workers", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "submit", "--address", ray_head.address, "--", *arguments],
        env=ray_head.environment,
        cwd=workplace,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "sweep q, profile" in line:
            break
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    name = re.search(r"bench submit --address \S+ --stop (\S+)", rest).group(1)
    ask = ("submit", "--address", ray_head.address)
    assert f"{name}  running" in ray_head.bench(*ask, "--status", name, folder=workplace)
    assert "stopping" in ray_head.bench(*ask, "--stop", name, folder=workplace)
    ray_head.bench(*ask, "--logs", name, folder=workplace, code=130)
    assert f"{name}  stopped" in ray_head.bench(*ask, "--list", folder=workplace)


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_job_that_fails_gives_its_exit_code_and_another_token_is_refused(ray_head, workplace):
    command = ("submit", "--address", ray_head.address, "--", "run", "--sweep", "q.toml", "--out", "/o", "--dry-run")
    (workplace / "q.toml").write_text(SWEEP.format(data="/nowhere/at/all"))
    shown = ray_head.bench(*command, folder=workplace, code=2)
    assert "/nowhere/at/all" in shown
    ray_head.bench(*command, folder=workplace, code=2, RAY_AUTH_TOKEN=secrets.token_hex(16))
