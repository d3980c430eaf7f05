"""What goes wrong on clusters, injected: nothing is lost, nothing is counted twice. `docs/FAULTS.md` is the list.

The tests with a Ray of their own are slow; the others run the same jobs in this process (`Lab.drive`).
"""

import ast
import errno
import json
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from PIL import Image

import bench.training.pretrain
from bench import execution, patience
from bench.errors import BenchError, TrialFailed
from bench.execution import run_job
from bench.job import Job
from bench.plan import make_plan
from bench.results.ledger import Ledger
from bench.scheduling import claims
from bench.scheduling.agenda import DIED, Agenda
from bench.study import open_studies, study_path
from bench.sweepfile import load_sweep
from bench.training import checkpoint
from bench.training.pretrain import History, pretrain
from tests.test_methods import TRAINED, TRAINING, make, pictures

pytestmark = pytest.mark.timeout(280)
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
SLOW = """
        time.sleep(0.15)
        import ray
        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
        with (marker() / f"{node}-{os.getpid()}.steps").open("a") as file:
            file.write(f"{self.config.temperature} {progress}\\n")
"""


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pictures of three classes: stripes of three directions, in any colour."""
    folder = tmp_path_factory.mktemp("data") / "stripes"
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
            agenda.end(str(len(jobs) - 1), reports[-1], {})
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


@pytest.fixture
def lab(tmp_path: Path, stripes: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab(tmp_path, stripes)
    monkeypatch.setenv("BENCH_CACHE", made.environment["BENCH_CACHE"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name == "faulty" or name.startswith("faulty.")]:
        monkeypatch.delitem(sys.modules, name)
    return made


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "WAITS", (0.0,) * 4)


# Interruptions ------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run as abruptly as a signal, in this process."""


@pytest.mark.parametrize("name", TRAINED)
def test_killed_in_the_middle_of_every_epoch_a_run_ends_bit_for_bit_as_an_untouched_one(name, tmp_path, monkeypatch):
    pack = pictures()
    whole = make(name)
    history = pretrain(whole, pack, TRAINING, 7, state=tmp_path / "whole.safetensors")
    original = type(whole).after_step
    for epoch in range(1, TRAINING.epochs + 1):

        def after_step(self: Any, progress: float, at: float = (epoch - 0.6) / TRAINING.epochs) -> None:
            original(self, progress)
            if progress >= at:
                raise Killed

        monkeypatch.setattr(type(whole), "after_step", after_step)
        seed = 0 if epoch < 3 else 99  # what a checkpoint replaces is different from the third start on
        with pytest.raises(Killed):
            pretrain(make(name, seed=seed), pack, TRAINING, 7, state=tmp_path / "cut.safetensors")
    monkeypatch.setattr(type(whole), "after_step", original)
    resumed = make(name, seed=99)
    again = pretrain(resumed, pack, TRAINING, 7, state=tmp_path / "cut.safetensors")
    assert [epoch.losses for epoch in again.epochs] == [epoch.losses for epoch in history.epochs]
    for (key, value), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def _cut_on_two_workers(number: int, folder: str, names: list[str]) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    found = {}
    for name in names:
        whole = make(name)
        history = pretrain(whole, pictures(), TRAINING, 7, state=Path(folder) / f"{name}.safetensors")

        def stop(epoch: Any) -> None:
            if epoch.number == 2:
                raise Killed

        cut = Path(folder) / f"{name}-cut.safetensors"
        try:
            pretrain(make(name), pictures(), TRAINING, 7, state=cut, on_epoch=stop)
        except Killed:
            dist.barrier()
        resumed = make(name, seed=99)
        again = pretrain(resumed, pictures(), TRAINING, 7, state=cut)
        pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
        same = all(torch.equal(one, other) for one, other in pairs)
        found[name] = same and [e.losses for e in again.epochs] == [e.losses for e in history.epochs]
    Path(folder, f"{number}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_two_workers_that_are_interrupted_end_bit_for_bit_as_untouched_ones(tmp_path):
    names = ["simclr", "moco", "byol", "dino", "swav", "srgan"]  # queues, momentum, schedules, two objectives
    torch.multiprocessing.spawn(_cut_on_two_workers, args=(str(tmp_path), names), nprocs=2)
    for number in range(2):
        assert json.loads((tmp_path / f"{number}.json").read_text()) == dict.fromkeys(names, True)


# Checkpoints --------------------------------------------------------------------------------------------


def trained(folder: Path, epochs: int, **how: Any) -> tuple[Any, History]:
    method = make("simclr")

    def stop(epoch: Any) -> None:
        if epoch.number == epochs:
            raise Killed

    history = History()
    with suppress(Killed):
        history = pretrain(method, pictures(), TRAINING, 7, state=folder / "state.safetensors", on_epoch=stop, **how)
    return method, history


class Evil:
    """A pickle of it touches a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped bit", "facts changed", "pickle"])
def test_of_a_damaged_checkpoint_the_one_before_it_is_used_and_of_a_damaged_pair_none(damage, tmp_path):
    whole, history = trained(tmp_path / "whole", 99)
    state = tmp_path / "cut" / "state.safetensors"
    trained(state.parent, 2)
    assert [checkpoint.load(file)[1]["epochs"][-1]["number"] for file in checkpoint.versions(state)] == [2, 1]

    def spoil(file: Path) -> None:
        text = bytearray(file.read_bytes())
        place = text.index(b"peak_memory_bytes") + 25
        spoilt = {
            "cut": text[:-7],
            "empty": b"",
            "flipped bit": text[:-1000] + bytes([text[-1000] ^ 1]) + text[-999:],
            "facts changed": text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :],
            "pickle": pickle.dumps(Evil(tmp_path / "ran")),
        }[damage]
        file.write_bytes(spoilt)

    for spoilt, said in (
        ((state,), "goes on from the checkpoint before it"),
        (checkpoint.versions(state), "starts anew"),
    ):
        for file in spoilt:
            spoil(file)
        notes: list[str] = []
        resumed, again = trained(state.parent, 99, on_note=notes.append)
        assert [epoch.losses for epoch in again.epochs] == [epoch.losses for epoch in history.epochs]
        for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
            assert torch.equal(one, other)
        assert len(notes) == len(spoilt)
        assert all("not a readable checkpoint" in note and said in note for note in notes), notes
    assert not (tmp_path / "ran").exists()


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


def test_no_module_unpickles():
    root = Path(bench.__file__).parents[1]
    loaders = {"load", "loads", "Unpickler", "read_pickle"}
    for path in [*root.glob("bench/**/*.py"), *root.glob("methods/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
            assert not names & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}, path
            if isinstance(node, ast.Attribute) and node.attr in loaders and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("pd", "read_pickle")}, path


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_former_one(tmp_path):
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, {"a": torch.arange(4000)}, {"epoch": 1}, keep=True)
    with small_files(20_000), pytest.raises(OSError, match="File too large") as caught:
        checkpoint.save(path, {"a": torch.arange(8000)}, {"epoch": 2}, keep=True)
    assert caught.value.errno == errno.EFBIG
    assert checkpoint.load(path)[1]["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


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
            patch.setattr("bench.results.files.pq.write_table", no_room)
        agenda = lab.agenda(sweep)
        lab.drive(agenda)
    errors = [failure.error for failure in agenda.tally.failures]
    assert sum("OSError: [Errno 28] No space left on device" in error for error in errors) == 2
    if broken == "ledger":
        assert sum(error.startswith("its row could not be written") for error in errors) == 2
        assert lab.frame().empty
    else:
        assert lab.frame()["status"].tolist() == ["failed"] * 2
    assert not list(lab.folder.glob("out/**/.*"))  # nothing half-written is left
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


# Trials that fail ---------------------------------------------------------------------------------------


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


# Drivers, nodes and workers that die, on Ray --------------------------------------------------------------


def run_here(agenda: Agenda, address: str) -> None:
    """Run an agenda on a Ray of this process."""
    from bench.scheduling.cluster import connect
    from bench.scheduling.run import run_agenda

    with connect(address) as cluster:
        run_agenda(agenda, cluster)


def encoders(lab: Lab, out: str) -> list[dict[str, torch.Tensor]]:
    return [checkpoint.load(path)[0] for path in sorted(lab.folder.glob(f"{out}/trials/*/encoder.safetensors"))]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    # five trials of 18 steps; the killed driver's workers may have repeated an epoch or two before they noticed
    assert len(set(taken)) == 5 * 18
    assert len(taken) - len(set(taken)) < 18
    study = open_studies(lab.agenda(sweep).plan)["slow"]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4


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
        mine.end("0", {"failed": "on purpose"}, {})
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
