"""What holds on a GPU only: no waiting inside a step, the precision of bf16, resuming, trials that share one GPU."""

import copy
from pathlib import Path

import pytest
import torch

from bench.draw import Draw
from bench.fused import fused
from bench.images import ImageBatch
from bench.training.pretrain import build_optimizers, pretrain, train_batch
from tests.changes import VIEWS, photographs
from tests.pretended import PRETENDED
from tests.speed import sweeps
from tests.test_methods import BATCH, TRAINED, TRAINING, batch, make, pictures

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("name", TRAINED)
def test_no_step_waits_for_the_device(name: str) -> None:
    method, pack = make(name).cuda().train(), pictures().on("cuda")
    optimizers = build_optimizers(method, TRAINING)

    def step(number: int) -> None:
        images = batch(pack)
        list(train_batch(method, optimizers, TRAINING, images, Draw(number, BATCH, device="cuda"), 0.5, 1e-4))

    step(0)  # what is looked up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", TRAINED)
def test_bf16_gives_the_losses_of_full_precision_within_its_rounding(name: str) -> None:
    method, pack = make(name).cuda().train(), pictures().on("cuda")
    found = {}
    for precision in ("fp32", "bf16"):
        training = TRAINING.model_copy(update={"precision": precision})
        twin = copy.deepcopy(method)
        torch.manual_seed(0)
        steps = train_batch(
            twin, build_optimizers(twin, training), training, batch(pack), Draw(1, BATCH, device="cuda"), 0.0, 0.0
        )
        found[precision] = {key: float(value) for losses in steps for key, value in losses.items()}
    assert found["bf16"] == pytest.approx(found["fp32"], rel=3e-2, abs=3e-2)


def test_views_are_made_by_the_fused_kernels() -> None:
    if torch.cuda.get_device_name() == PRETENDED:
        pytest.skip("a pretended GPU runs no kernels")
    assert fused(torch.device("cuda", 0)) is not None


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_those_of_the_cpu(name: str) -> None:
    pixels, aspect = photographs(24, 28, 37), torch.linspace(0.5, 2, 24)
    expected = VIEWS[name](ImageBatch(pixels, aspect), Draw(3, 24))
    for given in (pixels, pixels.contiguous(memory_format=torch.channels_last)):
        found = VIEWS[name](ImageBatch(given.cuda(), aspect.cuda()), Draw(3, 24, device="cuda"))
        torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=0)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    pack, whole, halved = pictures().on("cuda"), make("simclr").cuda(), make("simclr").cuda()
    expected = pretrain(whole, pack, TRAINING, 7, state=tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        pretrain(halved, pack, TRAINING, 7, state=tmp_path / "halved.safetensors", on_epoch=stop)
    again = make("simclr", seed=1).cuda()
    found = pretrain(again, pack, TRAINING, 7, state=tmp_path / "halved.safetensors")
    for one, other in zip(found.epochs, expected.epochs, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-5)


def test_four_trials_share_a_gpu(tmp_path: Path) -> None:
    if torch.cuda.get_device_name() == PRETENDED:
        pytest.skip("trials in processes of their own see no pretended GPU")
    sweep = sweeps.write(tmp_path, "leaves", trials=8)
    sweeps.run(sweep, tmp_path / "out", "--set", "resources.gpus_per_worker=0.25")
    trials = sweeps.trials(tmp_path / "out")
    assert len(trials) == 8
    assert set(trials["status"]) == {"finished"}
    assert trials["device"].str.contains("NVIDIA").all()
    overlapping = (trials["started_at"].iloc[1:].to_numpy() < trials["finished_at"].iloc[:-1].to_numpy()).sum()
    assert overlapping >= 4
