"""What a driver keeps beside the results while it runs, and which workers it starts again."""

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bench.errors import StoreAway, TrialFailed
from bench.scheduling.scratch import scratch


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_drivers_scratch_goes_with_it(place):
    with scratch() as one, scratch() as other:
        (one / "state").write_text("x")
        (other / "state").write_text("x")
        assert one != other
    assert list(place.iterdir()) == []


HOLD = """
import sys, time
from bench.scheduling.scratch import scratch
with scratch() as folder:
    (folder / "state").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_that_of_a_killed_driver_is_removed_by_the_next_one_and_that_of_a_living_one_is_not(place):
    hold = [sys.executable, "-c", HOLD]
    with subprocess.Popen(hold, env=os.environ | {"TMPDIR": str(place)}, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        with scratch():
            assert (left / "state").exists()
        other.kill()
    assert (left / "state").exists()
    with scratch():
        assert not left.exists()
    assert list(place.iterdir()) == []


@pytest.mark.usefixtures("place")
def test_where_locks_are_not_to_be_had_nothing_is_removed(monkeypatch):
    with scratch() as folder:
        kept = folder.with_name(f"{folder.name}x")
    kept.mkdir()
    Path(f"{kept}.lock").touch()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", _no_locks)
        with scratch():
            pass
    assert kept.is_dir()
    with scratch():
        assert not kept.exists()


def _no_locks(*_: object) -> None:
    raise OSError("no locks here")


def test_a_worker_that_failed_is_not_started_again_and_one_that_died_is():
    from ray.exceptions import RayActorError
    from ray.train import FailureConfig
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2.api.exceptions import WorkerGroupError

    from bench.scheduling.trainable import WorkersDied

    def decide(*errors: Exception) -> FailureDecision:
        policy = WorkersDied(FailureConfig(max_failures=2))
        return policy.make_decision(WorkerGroupError("?", dict(enumerate(errors))))

    died = WorkerHealthCheckFailedError("no answer", RayActorError())
    for error in (TrialFailed("not finite"), StoreAway("no answer"), KeyError("x"), MemoryError()):
        assert decide(error) == FailureDecision.RAISE
        assert decide(RuntimeError("peer left"), error) == FailureDecision.RAISE
    for error in (died, RuntimeError("connection closed by peer"), ConnectionResetError()):
        assert decide(error) == FailureDecision.RETRY
