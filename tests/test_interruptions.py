"""Interrupted runs end as untouched ones, bit for bit; damaged checkpoints are known; loading one runs no code."""

import ast
import errno
import json
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.training.pretrain
from bench.training import checkpoint
from bench.training.pretrain import History, pretrain
from tests.test_methods import TRAINED, TRAINING, make, pictures

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.mark.slow
def test_two_workers_that_are_interrupted_end_bit_for_bit_as_untouched_ones(tmp_path):
    names = ["simclr", "moco", "byol", "dino", "swav", "srgan"]  # queues, momentum, schedules, two objectives
    torch.multiprocessing.spawn(_cut_on_two_workers, args=(str(tmp_path), names), nprocs=2)
    for number in range(2):
        assert json.loads((tmp_path / f"{number}.json").read_text()) == dict.fromkeys(names, True)


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
