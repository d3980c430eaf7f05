"""What goes wrong in trials, on disks and between drivers, injected: nothing is lost, nothing is counted twice.

Jobs run in this process, without Ray (`Lab.drive`); `docs/FAULTS.md` is the list of faults.
"""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from filelock import FileLock

import bench.training.pretrain
from bench import execution, patience
from bench.errors import BenchError, TrialFailed
from bench.execution import run_job
from bench.results.ledger import Ledger
from bench.scheduling import claims
from bench.study import study_path
from bench.training import checkpoint
from bench.training.pretrain import pretrain
from tests.faults import CPU, HUNGRY, Lab, paint, prepare
from tests.test_methods import TRAINED, TRAINING, make, pictures

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("data") / "stripes")


@pytest.fixture
def lab(tmp_path: Path, stripes: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return prepare(tmp_path, stripes, monkeypatch)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "WAITS", (0.0,) * 4)


@pytest.mark.parametrize("patient", [True, False])
def test_a_run_waits_for_one_of_the_same_training_that_was_told_to_end_but_not_for_ever(lab, monkeypatch, patient):
    monkeypatch.setattr(execution, "ENDING", 60.0 if patient else 0.2)
    job = lab.agenda(lab.sweep(epochs=2)).take("0")
    job.folder.mkdir(parents=True, exist_ok=True)
    other = FileLock(job.folder / execution.LOCK, thread_local=False)
    other.acquire()
    timer = threading.Timer(1.0, other.release)
    timer.start()
    held: list[bool] = []
    try:
        run_job(job, lambda _: held.append(other.is_locked), CPU)
    finally:
        timer.cancel()
        other.release()
    assert held[0] is not patient
    assert len(held) == 3  # two epochs and the end


def test_a_damaged_encoder_is_trained_anew_and_said(lab):
    agenda = lab.agenda(lab.sweep(epochs=2))
    (job,) = lab.drive(agenda)
    before = lab.results()
    job.encoder.write_bytes(job.encoder.read_bytes()[:1000])
    Ledger(lab.folder / "out").remove(job.trial.id)
    again = lab.agenda(lab.sweep(epochs=2))
    lab.drive(again)
    assert lab.results() == before
    (note,) = again.tally.notes
    assert "encoder.safetensors: not a readable checkpoint" in note
    assert note.endswith("it is trained anew")
    assert "trained anew" in (job.folder / "notes.txt").read_text()


@pytest.mark.parametrize("broken", ["checkpoint", "ledger"])
def test_a_full_disk_fails_the_trial_with_its_reason_and_the_next_command_goes_on(broken, lab, monkeypatch):
    sweep = lab.sweep(trials=2, epochs=2)
    calm = lab.agenda(sweep, out="calm")
    lab.drive(calm)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_room(*_: Any, **__: Any) -> None:
        raise full

    with monkeypatch.context() as patch:
        if broken == "checkpoint":
            patch.setattr(checkpoint, "save_file", no_room)
        else:
            patch.setattr("bench.results.files.pq.ParquetWriter", no_room)
        agenda = lab.agenda(sweep)
        lab.drive(agenda)
    errors = [failure.error for failure in agenda.tally.failures]
    assert sum("OSError: [Errno 28] No space left on device" in error for error in errors) == 2
    if broken == "ledger":
        assert sum(error.startswith("its row could not be written") for error in errors) == 2
        assert lab.frame().empty
    else:
        assert lab.frame()["status"].tolist() == ["failed"] * 2
    hidden = {path.name for path in lab.folder.glob("out/**/.*")}
    assert hidden <= {claims.NAME, execution.LOCK}  # nothing half-written is left
    again = lab.agenda(sweep, retry_failed=True)
    lab.drive(again)
    assert (again.tally.ran, again.tally.failures) == (2, [])
    assert lab.results() == lab.results("calm")


@pytest.mark.usefixtures("no_waiting")
def test_storage_that_is_away_for_a_while_is_waited_for(lab, monkeypatch):
    sweep = lab.sweep(epochs=2)
    lab.drive(lab.agenda(sweep, out="calm"))
    replace, calls = Path.replace, {"count": 0}

    def flaky(self: Path, target: Path) -> Path:
        calls["count"] += 1
        if "/out/" in str(self) and calls["count"] % 3:
            raise OSError((errno.EIO, errno.ETIMEDOUT)[calls["count"] % 2], "away")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", flaky)
    agenda = lab.agenda(sweep)
    lab.drive(agenda)
    assert agenda.tally.failures == []
    assert calls["count"] > 8
    assert lab.results() == lab.results("calm")


@pytest.mark.usefixtures("no_waiting")
def test_storage_that_stays_away_is_given_up_in_bounds_and_at_once_where_waiting_is_no_use():
    calls = []

    def gone(number: int) -> None:
        calls.append(number)
        raise OSError(number, "gone")

    for number, tries in ((errno.ETIMEDOUT, 5), (errno.ENOSPC, 1), (errno.ENOENT, 1)):
        calls.clear()
        with pytest.raises(OSError, match="gone"):
            patience.patiently(gone, number)
        assert len(calls) == tries
    assert 30 < sum((0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)) < 90


def test_a_journal_line_that_was_cut_short_is_dropped_and_the_study_goes_on(lab, monkeypatch):
    agenda = lab.agenda(lab.sweep(trials=4))
    first = [agenda.take(str(number)) for number in range(2)]
    path = study_path(agenda.plan)
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[-1][:20])  # as a killed driver or a full disk leaves it
    again = lab.agenda(lab.sweep(trials=4))
    assert [again.take(str(number)).trial for number in range(2)] == [job.trial for job in first if job]
    third = again.take("2")
    assert third is not None
    assert all(json.loads(line) for line in path.read_text().splitlines())

    def half(*_: Any) -> None:
        with path.open("ab") as file:
            file.write(b'{"op_code": 4, "tri')
        raise OSError(errno.ENOSPC, "No space left on device")

    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(optuna.storages.journal.JournalFileBackend, "append_logs", half)
        with pytest.raises(BenchError, match="No space left on device; the same command goes on"):
            again.take("3")
    assert path.read_bytes() == before
    assert again.take("3") is not None


def test_a_trial_that_runs_out_of_memory_is_a_row_and_the_others_go_on(lab):
    sweep = lab.sweep(lab.method("hungry", HUNGRY), trials=3, epochs=1)
    agenda = lab.agenda(sweep)
    lab.drive(agenda)
    rows = lab.frame().drop_duplicates("trial_id").set_index("status")
    assert sorted(rows.index) == ["failed", "finished", "finished"]
    assert rows.loc["failed", "error"] == "MemoryError: no room for 8 GiB"
    assert "hungry.py" in (lab.folder / "out" / rows.loc["failed", "error_file"]).read_text()


def test_a_loss_that_is_no_number_ends_the_trial_within_some_steps(tmp_path, monkeypatch):
    steps = []
    method = make("simclr")
    original = type(method).losses

    def losses(self: Any, views: Any, progress: float) -> Any:
        steps.append(progress)
        loss = original(self, views, progress)["loss"]
        return {"loss": loss * float("inf") if len(steps) == 3 else loss}

    monkeypatch.setattr(type(method), "losses", losses)
    monkeypatch.setattr(bench.training.pretrain, "CHECKED", 4)
    long = TRAINING.model_copy(update={"batch_size": 2})  # 12 steps to an epoch
    with pytest.raises(TrialFailed, match=r"the loss 'loss' is not finite in epoch 1, by step 4 of 12"):
        pretrain(method, pictures(), long, 7, state=tmp_path / "state.safetensors")
    assert len(steps) == 4
    assert not (tmp_path / "state.safetensors").exists()


def limit(monkeypatch: pytest.MonkeyPatch, method: Any, most: int) -> None:
    """Let the encoder run out of memory with more than `most` images."""
    forward = method.encoder.forward

    def limited(images: Any) -> Any:
        if method.training and len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")
        return forward(images)

    monkeypatch.setattr(method.encoder, "forward", limited)


@pytest.mark.parametrize("name", ["rotation", "supervised"])
def test_a_batch_that_does_not_fit_is_taken_in_parts_where_that_changes_nothing(name, tmp_path, monkeypatch):
    from bench.encoders import build_encoder
    from bench.registry import build

    gentle = TRAINING.model_copy(update={"optimizer": "sgd", "lr": 1e-3})

    def fresh() -> Any:
        torch.manual_seed(0)
        return build(name, {}, build_encoder("vit_micro", 0), 3)

    whole, cut, notes = fresh(), fresh(), []
    history = pretrain(whole, pictures(), gentle, 7, state=tmp_path / "whole.safetensors")
    limit(monkeypatch, cut, {"rotation": 8, "supervised": 2}[name])
    state = tmp_path / "cut.safetensors"
    again = pretrain(cut, pictures(), gentle, 7, state=state, on_note=notes.append)
    assert notes == [
        "out of memory in epoch 1: gradients are summed over 2 parts of 4 images",
        "out of memory in epoch 1: gradients are summed over 4 parts of 2 images",
    ]
    assert again.parts == 4
    assert checkpoint.load(state)[1]["parts"] == 4
    for one, other in zip(history.epochs, again.epochs, strict=True):
        assert other.losses == pytest.approx(one.losses, rel=1e-4)
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[key], value, atol=1e-5, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", TRAINED)
def test_no_other_batch_is_taken_in_parts_and_the_error_says_what_helps(name, tmp_path, monkeypatch):
    method = make(name)
    separable = bench.training.pretrain.is_separable(method)
    assert separable == (name == "mae")  # on the encoders of this suite; others have batch norms, or compare samples
    if not separable and name in ("simclr", "pmg"):

        def full(*_: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(type(method), "losses", full)
        with pytest.raises(TrialFailed, match=r"a batch of 8 images of 32 px does not fit.*--workers 2"):
            pretrain(method, pictures(), TRAINING, 7, state=tmp_path / "state.safetensors")


def test_what_was_taken_in_parts_says_so_in_its_row(lab, monkeypatch):
    from bench.encoders import VisionTransformer

    forward = VisionTransformer.forward

    def limited(self: Any, images: Any) -> Any:
        if self.training and len(images) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, images)

    monkeypatch.setattr(VisionTransformer, "forward", limited)
    path = lab.sweep(epochs=1)
    text = path.read_text().replace('"simclr"', '"rotation"').replace("temperature =", "grayscale =")
    path.write_text(text.replace("log_uniform = [0.1, 1.0]", "uniform = [0.1, 1.0]"))
    agenda = lab.agenda(path, over={"pretrain": {"backbone": "vit_micro"}})
    lab.drive(agenda)
    assert agenda.tally.failures == []
    assert json.loads(lab.frame()["pretext"].iloc[0])["batch parts"] == 2
    (note,) = agenda.tally.notes
    assert note.endswith("gradients are summed over 2 parts of 4 images")


def test_where_the_data_is_not_there_each_trial_fails_with_one_clear_line(lab, stripes):
    data = lab.folder / "stripes"
    data.symlink_to(stripes)
    lab.data = data
    agenda = lab.agenda(lab.sweep(trials=2, epochs=1))
    data.unlink()  # as on a node that does not mount it; nothing is packed yet
    lab.drive(agenda)
    ((error, failures),) = agenda.tally.reasons()
    assert len(failures) == 2
    assert f"its folder {data} is not there on this machine" in error
    assert lab.frame()["status"].tolist() == ["failed"] * 2


def test_a_clock_that_jumps_back_changes_no_result_and_no_duration(lab, monkeypatch):
    sweep = lab.sweep(trials=2, epochs=2)
    lab.drive(lab.agenda(sweep, out="calm"))

    class Clock(datetime):
        """One hour earlier with each look at it."""

        looks = 0

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            cls.looks += 1
            return datetime.now(tz) - timedelta(hours=cls.looks)

    for module in (execution, sys.modules["bench.results.schema"], sys.modules["bench.results.ledger"]):
        monkeypatch.setattr(module, "datetime", Clock)
    agenda = lab.agenda(sweep)
    lab.drive(agenda)
    monkeypatch.undo()
    frame = lab.frame()
    assert Clock.looks > 3
    assert (frame["finished_at"] > frame["started_at"]).all()
    lasted = (frame["finished_at"] - frame["started_at"]).dt.total_seconds()
    assert (abs(lasted - frame["wall_seconds"]) < 1e-3).all()
    assert (frame["wall_seconds"] < 100).all()
    assert lab.results() == lab.results("calm")
    assert lab.agenda(sweep).is_done()


def test_a_trial_that_another_process_has_claimed_is_waited_for_and_then_known(lab, monkeypatch):
    monkeypatch.setattr("bench.scheduling.agenda.POLL", 0.05)
    sweep = lab.sweep(epochs=1, trials=2)
    agenda = lab.agenda(sweep)
    job = agenda.take("0")
    assert job is not None
    hold = "import sys, time; from pathlib import Path; from bench.scheduling.claims import claim\n"
    hold += "print(claim(Path(sys.argv[1])), flush=True); time.sleep(100)"
    claims.release(job.folder)
    other = subprocess.Popen([sys.executable, "-c", hold, str(job.folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        mine = lab.agenda(sweep)
        second = mine.take("0")
        assert second is not None
        assert second.trial != job.trial
        mine.end("0", {"failed": "on purpose"})
        assert mine.take("1") is None
        assert not mine.is_done()  # the other driver's trial is to come
        run_job(job, lambda _: None, CPU)  # it ends there,
        other.kill()  # and the driver dies before it has told anyone
        other.wait()
        time.sleep(0.06)
        assert mine.is_done()
        assert (mine.tally.ran, mine.tally.reused) == (0, 1)
    finally:
        other.kill()
        other.communicate()


def test_two_processes_that_write_one_trial_leave_one_set_of_rows(lab):
    agenda = lab.agenda(lab.sweep(epochs=1))
    (job,) = lab.drive(agenda)
    before = lab.results()
    code = (
        "import sys; from bench.results.ledger import Ledger; from pathlib import Path; import pyarrow.parquet as pq\n"
    )
    code += "table = pq.read_table(sys.argv[1]); ledger = Ledger(Path(sys.argv[2]))\n"
    code += "for _ in range(20): ledger.write(table)"
    (file,) = lab.folder.glob("out/ledger/*.parquet")
    copy = lab.folder / "rows.parquet"
    copy.write_bytes(file.read_bytes())
    both = [subprocess.Popen([sys.executable, "-c", code, str(copy), str(lab.folder / "out")]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert lab.results() == before
    assert job.trial.id in lab.frame()["trial_id"].tolist()


def test_poisoned_test_labels_change_no_choice(lab):
    """The same pictures, with and without shuffled test labels: the same draws, objectives and best configuration."""
    files = sorted(path.relative_to(lab.data) for path in lab.data.glob("*/*.png"))
    classes = sorted({file.parent.name for file in files})
    poisoned = dict(zip(classes, [*classes[1:], classes[0]], strict=True))
    best = {}
    for kind in ("honest", "poisoned"):
        data = lab.folder / kind / "stripes"
        data.mkdir(parents=True)
        rows = ["file,class,split"]
        for number, file in enumerate(files):
            split, name = ("train", "train", "val", "test")[number % 4], file.parent.name
            (data / f"{number}.png").write_bytes((lab.data / file).read_bytes())
            shown = poisoned[name] if (kind, split) == ("poisoned", "test") else name
            rows.append(f"{number}.png,{shown},{split}")
        (data / "splits.csv").write_text("\n".join(rows) + "\n")
        judged = {"datasets": [str(data)], "protocols": ["linear"], "objective": "linear"}
        over = {"pretrain": {"dataset": str(data)}, "evaluate": judged}
        agenda = lab.agenda(lab.sweep(trials=3, epochs=2, seeds="[0]"), out=f"out-{kind}", over=over)
        lab.drive(agenda)
        frame = lab.frame(f"out-{kind}")
        search = frame.query("stage == 'search' and status == 'finished'").drop_duplicates("trial_id")
        chosen = frame.query("role == 'best'")["param.temperature"].iloc[0]
        scores = frame.query("split == 'test' and metric == 'top1' and protocol == 'linear'")["value"].tolist()
        best[kind] = (search.set_index("draw")["objective"].sort_index().tolist(), chosen, scores)
    assert len(best["honest"][0]) == 3
    assert best["honest"][:2] == best["poisoned"][:2]
    assert best["honest"][2] != best["poisoned"][2]  # the poison reached the test scores, and only them
