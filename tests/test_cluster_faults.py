"""Workers, nodes and drivers that die, on Ray: the trials go on, and each is counted once."""

import os
import subprocess
import threading
import time
from pathlib import Path

import optuna
import pytest
import torch

from bench.scheduling.agenda import DIED, Agenda
from bench.study import Journal
from bench.training import checkpoint
from tests.faults import GREEDY, MORTAL, NOT_FINITE, SLOW, WRONG, Lab, paint, prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("data") / "stripes")


@pytest.fixture
def lab(tmp_path: Path, stripes: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return prepare(tmp_path, stripes, monkeypatch)


def run_here(agenda: Agenda, address: str) -> None:
    """Run an agenda on a Ray of this process."""
    from bench.scheduling.cluster import connect
    from bench.scheduling.run import run_agenda

    with connect(address) as cluster:
        run_agenda(agenda, cluster)


def encoders(lab: Lab, out: str) -> list[dict[str, torch.Tensor]]:
    return [checkpoint.load(path)[0] for path in sorted(lab.folder.glob(f"{out}/trials/*/encoder.safetensors"))]


def test_two_workers_of_which_one_is_killed_and_one_that_is_always_killed(lab, monkeypatch):
    """kill -9 of the second of two workers: bit-equal. kill -9 of every start of one trial: a row, the others go on."""
    from bench.scheduling.cluster import connect
    from bench.scheduling.run import run_agenda

    monkeypatch.setenv("MARKER", str(lab.folder / "died"))
    monkeypatch.setenv("VICTIM", "1")
    two = {"resources": {"workers": 2}}
    sweep = lab.sweep(lab.method("mortal", MORTAL), epochs=4)
    lab.method("greedy", GREEDY)
    with connect(None, cpus=2) as cluster:
        for out in ("out", "calm"):
            agenda = lab.agenda(sweep, out=out, over=two)
            run_agenda(agenda, cluster)
            assert agenda.tally.ran == 1
            assert (lab.folder / "died").exists()
        greedy = lab.agenda(lab.sweep("faulty.greedy", trials=3, epochs=1), out="greedy")
        run_agenda(greedy, cluster)
    (struck,), (calm,) = encoders(lab, "out"), encoders(lab, "calm")
    assert all(torch.equal(value, calm[name]) for name, value in struck.items())
    assert lab.results() == lab.results("calm")
    rows = lab.frame("greedy").drop_duplicates("trial_id").set_index("status")
    assert sorted(rows.index) == ["failed", "finished", "finished"]
    assert rows.loc["failed", "error"] == DIED


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (NOT_FINITE, "TrialFailed: the loss 'loss' is not finite in epoch"),
        (WRONG, "KeyError: 'a mistake in the method'"),  # of the second worker alone, while the first waits for it
    ],
)
def test_two_workers_that_would_fail_again_are_not_started_again(lab, monkeypatch, body, error):
    from bench.scheduling.cluster import connect
    from bench.scheduling.run import run_agenda

    started = lab.folder / "started"
    started.mkdir()
    monkeypatch.setenv("MARKER", str(started))  # before Ray starts: its workers have what it had then
    agenda = lab.agenda(lab.sweep(lab.method("absurd", body)), over={"resources": {"workers": 2}})
    with connect(None, cpus=2) as cluster:
        run_agenda(agenda, cluster)
    (failure,) = agenda.tally.failures
    assert failure.error.startswith(error)
    assert len(list(started.iterdir())) == 2


def test_a_node_that_is_lost_takes_no_trial_with_it(lab, monkeypatch):
    """Its trial goes on on another node, from its checkpoint on the shared folder."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("MARKER", str(lab.folder))
    os.environ.setdefault("RAY_AUTH_TOKEN", "a" * 64)  # not undone: a process reads it once
    sweep = lab.sweep(lab.method("slow", SLOW), epochs=12)
    agenda = lab.agenda(sweep)
    small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
        lost: list[int] = []

        def lose() -> None:
            deadline = time.monotonic() + 200
            while not list(lab.folder.glob("out/trials/*/state.previous.safetensors")):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            (file,) = lab.folder.glob("*.steps")
            (node,) = (node for node in nodes if file.name.startswith(node.node_id))
            cluster.remove_node(node, allow_graceful=False)
            lost.append(len(list(lab.folder.glob("out/trials/*/encoder.safetensors"))))

        thread = threading.Thread(target=lose)
        thread.start()
        run_here(agenda, address=cluster.address)
        thread.join()
    finally:
        cluster.shutdown()
    assert lost == [0]  # it was in the middle of training
    assert agenda.tally.ran == 1
    steps = [path.read_text().splitlines() for path in lab.folder.glob("*.steps")]
    first, second = sorted(steps, key=lambda lines: float(lines[0].split()[1]))
    assert float(second[0].split()[1]) >= 1 / 12  # not from the beginning
    lab.drive(lab.agenda(sweep, out="calm"))
    (file,) = lab.folder.glob("here-*.steps")
    whole = file.read_text().splitlines()
    assert len(whole) == 3 * 12
    assert set(first + second) == set(whole)
    (struck,), (calm,) = encoders(lab, "out"), encoders(lab, "calm")
    assert all(torch.equal(value, calm[name]) for name, value in struck.items())
    assert lab.results() == lab.results("calm")


def await_file(lab: Lab, pattern: str, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 200
    while not list(lab.folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps_taken(folder: Path) -> list[str]:
    return [line for path in folder.iterdir() for line in path.read_text().splitlines()]


def test_a_killed_driver_is_followed_by_the_same_command_and_two_drivers_share_a_sweep(lab):
    marker = lab.folder / "steps"
    marker.mkdir()
    sweep = lab.sweep(lab.method("slow", SLOW), epochs=6, trials=4, seeds="[0]")
    first = lab.start("--sweep", str(sweep), MARKER=str(marker))
    await_file(lab, "out/ledger/*.parquet", first)  # one trial is finished,
    await_file(lab, "out/trials/*/state.safetensors", first)  # another one has a checkpoint
    first.kill()
    first.communicate()
    known = set(lab.frame()["trial_id"])
    assert known
    both = [lab.start("--sweep", str(sweep), MARKER=str(marker)) for _ in range(2)]
    said = [process.communicate(timeout=250) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    frame = lab.frame()
    assert known <= set(frame["trial_id"])
    search = frame.query("stage == 'search'")
    assert search["trial_id"].nunique() == 4
    assert search["param.temperature"].nunique() == 4  # no draw twice
    keys = ["trial_id", "stage", "configuration", "dataset", "protocol", "variant", "split", "metric"]
    assert not frame.duplicated(keys).any()
    assert frame.query("stage == 'confirm'")["trial_id"].nunique() == 1
    ran = [int(out.split(" trials ran")[0].splitlines()[-1].split()[-1]) for out, _ in said]
    assert sum(ran) == 5 - len(known)
    taken = steps_taken(marker)
    # Five trials of 18 steps, one of them with another seed only; what was not saved was taken again.
    assert len(set(taken)) == 4 * 18
    assert 5 * 18 <= len(taken) < 6 * 18
    (journal,) = lab.folder.glob("out/studies/*.log")
    study = optuna.load_study(study_name="faulty.slow", storage=optuna.storages.JournalStorage(Journal(journal)))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
