"""The way of a trial on a GPU, walked without one: all lies where it should, and no step waits for the device."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import evaluate
from bench.data.pack import pack_size
from bench.draw import Draw
from bench.execution import run_job
from bench.images import ImageBatch
from bench.job import Job
from bench.training.pretrain import build_optimizers, pretrain, train_batch
from tests.faults import paint, prepare
from tests.pretended import PRETENDED, There, pretended
from tests.test_methods import BATCH, TRAINED, TRAINING, batch, make, pictures

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one: pytest -m gpu")
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def device(monkeypatch):
    with pretended(monkeypatch) as found:
        yield found


def test_a_device_of_its_own_is_kept_apart_and_what_waits_for_it_is_counted(device):
    here, there = torch.arange(6.0), torch.arange(6.0, device="cuda")
    assert there.device == GPU
    for wrong in (lambda: here + there, lambda: torch.cat((there, here)), lambda: here[there.long()]):
        with pytest.raises(RuntimeError, match="same device"):
            wrong()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    torch.testing.assert_close((there * 2 + here[1]).to("cpu", non_blocking=True), 2 * here + 1)
    assert not device.waits
    for waits in (
        lambda: there.sum().item(),
        lambda: bool((there > 2).any()),
        lambda: there[there > 2],
        lambda: there.nonzero(),
        lambda: there.cpu(),
        lambda: there.tolist(),
        lambda: torch.tensor([1.0], device="cuda"),
        lambda: here.to("cuda"),
        lambda: there[torch.tensor([1])],
        lambda: torch.cuda.synchronize(),
        lambda: torch.linalg.inv(there.diag() + 1),
    ):
        device.waits.clear()
        waits()
        assert sum(device.waits.values()) == 1, device.waits


@pytest.mark.parametrize("name", TRAINED)
def test_no_step_waits_for_the_device(name, device):
    training = TRAINING.model_copy(update={"precision": "bf16"})
    method, pack = make(name).to("cuda").train(), pictures().on("cuda")
    optimizers = build_optimizers(method, training)
    for number in range(2):
        device.waits.clear()
        images = batch(pack)
        draw = Draw(number, BATCH, device="cuda")
        for losses in train_batch(method, optimizers, training, images, draw, 0.5, 1e-4):
            assert all(isinstance(value, There) for value in losses.values())
    assert not device.waits


def test_a_pack_larger_than_the_device_streams_to_it(device):
    pack = pictures()
    rows = pack.rows("train")[[3, 1, 8]]
    there, here = pack.batch(rows, GPU, labelled=True), pack.batch(rows, labelled=True)
    assert not device.waits
    assert there.labels is not None
    for one, other in ((there.pixels, here.pixels), (there.aspect, here.aspect), (there.labels, here.labels)):
        assert isinstance(one, There)
        assert torch.equal(one.here, other)


class Hollow:
    """Kernels that only say what they return: their values are looked at elsewhere."""

    def band(self, x: Tensor, index: Tensor, weight: Tensor, axis: int, **_: Any) -> Tensor:
        return torch.zeros([index.shape[1] if number == axis else side for number, side in enumerate(x.shape)])

    def jitter(self, x: Tensor, *_: Tensor) -> Tensor:
        return x

    def change(self, x: Tensor, *_: Any) -> Tensor:
        return x


# What docs/PERFORMANCE.md says: operations, and bytes moved over the bytes of both views.
@pytest.mark.parametrize(("kernels", "operations", "moved"), [(None, 547, 140), (Hollow(), 323, 11)])
def test_views_move_the_pixels_few_times(kernels, operations, moved, monkeypatch):
    size, count = 224, 16
    side, method = pack_size(size), make("simclr")
    pixels = torch.zeros((count, 3, side, side), dtype=torch.uint8)
    with pretended(monkeypatch, kernels) as device:
        there = ImageBatch(pixels.to("cuda"), torch.ones(count).to("cuda"))
        device.operations = device.moved = 0
        views = method.views(there, Draw(0, count, device="cuda"), size)
    whole = sum(view.nbytes for view in views)
    assert device.operations <= operations
    assert device.moved <= moved * whole


def test_a_run_waits_at_the_end_of_an_epoch_only_however_many_steps_it_has(tmp_path, device):
    waits, training = {}, TRAINING.model_copy(update={"epochs": 1})
    for count in (2, 8):
        pack, method = pictures(8 * count).on("cuda"), make("simclr").to("cuda")
        device.waits.clear()
        pretrain(method, pack, training, 7, state=tmp_path / f"{count}.safetensors")
        waits[count] = sum(device.waits.values())
    assert waits[2] == waits[8] > 0


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("data") / "stripes")


SWEEP = """
title = "q?"
method = "{method}"
[pretrain]
dataset = "{data}"
image_size = {size}
backbone = "{backbone}"
epochs = 2
batch_size = 8
precision = "bf16"
[evaluate]
datasets = ["{data}"]
protocols = ["linear", "knn", "finetune"]
objective = "linear"
[confirm]
seeds = []
controls = []
[finetune]
epochs = 1
"""


# The one with networks of its own, a validation and pictures; the others take long.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "srgan" else pytest.mark.slow) for name in TRAINED]
)
def test_a_trial_is_walked_from_images_to_rows(name, tmp_path, stripes, monkeypatch):
    lab = prepare(tmp_path, stripes, monkeypatch)
    path = tmp_path / "mine.toml"
    backbone = "vit_micro" if name == "mae" else "small"
    path.write_text(SWEEP.format(method=name, data=stripes, size=36 if name == "jigsaw" else 32, backbone=backbone))

    def run(job: Job, report: Any) -> None:
        with pretended(monkeypatch):
            run_job(job, report, torch.device("cuda"))  # as Tune's actor says it

    evaluate._open.cache_clear()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    agenda = lab.agenda(path)
    lab.drive(agenda, run)
    agenda.close()
    rows = lab.frame()
    assert [(tmp_path / "out" / str(failure.file)).read_text() for failure in agenda.tally.failures] == []
    assert set(rows["status"]) == {"finished"}
    assert set(rows["device"]) == {PRETENDED}
    assert set(rows["protocol"]) == {"linear", "knn", "finetune"}
    assert not torch.backends.cudnn.allow_tf32
    assert evaluate._open.cache_info().misses == 1  # one dataset, held once by the device
    evaluate._open.cache_clear()


@pytest.mark.slow
def test_what_the_gpu_tests_ask_can_be_asked():
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--pretend-gpu", "tests"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed, 2 skipped", done.stdout)  # kernels, and trials in processes of their own
