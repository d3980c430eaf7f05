"""The conformance suite: what every method in `methods/` must do. A new method is tested here as soon as it exists.

Methods outside the repository pass it too: `BENCH_METHODS=package.module python -m pytest tests/test_methods.py
tests/test_distributed.py -k package.module`, several names separated by blanks.
"""

import contextlib
import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.data.pack import Pack
from bench.data.source import Source
from bench.distributed import share_batch_norms
from bench.draw import Draw
from bench.encoders import build_encoder
from bench.errors import BadInput, UnknownName
from bench.images import ImageBatch
from bench.method import Method, Views
from bench.records import field_paths
from bench.registry import build, find_method, method_names
from bench.training.pretrain import pretrain
from bench.trial import Training
from bench.weights import imagenet_weights, weights_file
from tests.test_readme import block

SIZE, BATCH = 32, 8
TRAINING = Training(image_size=SIZE, epochs=3, batch_size=BATCH, precision="fp32")
NAMES = [*method_names(), *os.environ.get("BENCH_METHODS", "").split()]
TRAINED = [name for name in NAMES if find_method(name).trains]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _weights_at_hand(tmp_path_factory: pytest.TempPathFactory):
    """A hub folder that holds random weights of one ResNet: what a method loads is the same on every machine."""
    folder = tmp_path_factory.mktemp("hub") / "checkpoints"
    folder.mkdir()
    torch.save(
        build_encoder("resnet18", 0).trunk.state_dict(), folder / weights_file(imagenet_weights("resnet18")).name
    )
    before = torch.hub.get_dir()
    torch.hub.set_dir(folder.parent)
    yield
    torch.hub.set_dir(before)


CLASSES = ("one", "two", "three")


def pictures(count: int = 24, train: int = 12, val: int = 6) -> Pack:
    """Blobs of random colour and place: `count` unlabelled images, then labelled ones of train and of val."""
    generator = torch.Generator().manual_seed(3)
    whole = count + train + val
    coarse = torch.rand(whole, 3, 5, 6, generator=generator)
    labels = torch.arange(whole) % len(CLASSES)
    labels[:count] = -1
    images = nn.functional.interpolate(coarse, (48, 56), mode="bicubic").clamp(0, 1)
    return Pack(
        source=Source(name="blobs", reader="builtin", location="blobs", fingerprint="0" * 64),
        classes=CLASSES,
        images=(images * 255).to(torch.uint8),
        aspect=torch.linspace(0.6, 1.8, whole),
        labels=labels,
        splits=torch.cat([torch.full((n,), i) for i, n in enumerate((count, train, val))]),
        files=tuple(str(number) for number in range(whole)),
    )


def make(name: str, seed: int = 0) -> Method:
    """The method with its defaults on the first encoder that it can be built on."""
    kind = find_method(name)
    for encoder in (kind.backbone,) if kind.backbone else ("small", "vit_micro", "resnet18"):
        with contextlib.suppress(BadInput):
            kind.check(kind.Config(), encoder)
            torch.manual_seed(seed)
            return build(name, {}, build_encoder(encoder, seed), len(CLASSES))
    raise AssertionError(f"{name} can be built on none of the encoders tried")


def batch(pack: Pack, rows: slice = slice(0, BATCH)) -> ImageBatch:
    return pack.batch(pack.rows("train")[rows], pack.images.device, labelled=True)


def losses_of(method: Method, views: Views, progress: float = 0.0) -> dict[str, Tensor]:
    """The sum of each loss over the optimiser steps that a batch gives."""
    sums: dict[str, Tensor] = {}
    for part in method.steps(views):
        for name, value in method.losses(part, progress).items():
            sums[name] = sums[name] + value if name in sums else value
    return sums


@pytest.mark.parametrize("name", NAMES)
def test_every_method_says_what_it_is_and_describes_its_hyperparameters(name):
    method = find_method(name)
    assert 10 < len(method.summary) < 100
    undescribed = [path for path, field in field_paths(method.Config).items() if not field.description]
    assert undescribed == []
    assert method.Config().model_dump() == method.Config.model_validate(method.Config().model_dump()).model_dump()


@pytest.mark.parametrize("name", TRAINED)
def test_views_and_losses_are_finite_and_the_same_for_the_same_seed(name):
    pack, method = pictures(), make(name)
    method.train()

    def once(seed: int) -> tuple[tuple[Tensor, ...], dict[str, float]]:
        twin = copy.deepcopy(method)
        with torch.no_grad():
            views = twin.views(batch(pack), Draw(seed, BATCH), SIZE)
        torch.manual_seed(seed)
        return views, {key: value.detach().item() for key, value in losses_of(twin, views).items()}

    (views, losses), (again, same), (_, other) = once(1), once(1), once(2)
    assert all(torch.isfinite(view).all() for view in views)
    assert all(torch.equal(a, b) for a, b in zip(views, again, strict=True))
    assert losses == same != other
    assert all(torch.isfinite(torch.tensor(value)) for value in losses.values())


@pytest.mark.parametrize("name", TRAINED)
def test_the_views_of_a_sample_do_not_depend_on_its_neighbours(name):
    pack, method = pictures(), make(name)
    whole = method.views(batch(pack), Draw(5, BATCH), SIZE)
    half = slice(BATCH // 2, BATCH)
    part = method.views(batch(pack, half), Draw(5, BATCH, rows=half), SIZE)
    for one, other in zip(whole, part, strict=True):
        each = len(one) // BATCH  # a method may make several views of a sample, sample by sample
        torch.testing.assert_close(one[half.start * each :], other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_every_parameter_that_an_objective_names(name):
    pack, method = pictures(), make(name)
    method.train()
    views = method.views(batch(pack), Draw(1, BATCH), SIZE)
    stages = [losses_of(method, views, progress) for progress in (0.0, 0.99)]
    objectives = method.objectives()
    for key, parameters in objectives.items():
        losses = [losses[key] for losses in stages if key in losses]  # a method may train in stages
        assert losses, f"no loss is named {key}"
        gradients = torch.autograd.grad(sum(losses), parameters, allow_unused=True, retain_graph=True)
        dead = [index for index, gradient in enumerate(gradients) if gradient is None or not gradient.abs().sum() > 0]
        assert dead == [], f"parameters without gradient: {[tuple(parameters[i].shape) for i in dead]}"
    named = {id(parameter) for parameters in objectives.values() for parameter in parameters}
    assert len(named) == sum(map(len, objectives.values())), "two objectives update the same parameter"
    assert {id(parameter) for parameter in method.encoder.parameters()} & named


@pytest.mark.parametrize("name", TRAINED)
def test_training_lowers_the_loss_and_resumes_bit_for_bit(name, tmp_path: Path):
    pack = pictures()
    whole = make(name)
    history = pretrain(whole, pack, TRAINING, 7, state=tmp_path / "whole.safetensors")

    class Stop(Exception):
        pass

    def stop(_: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        pretrain(make(name), pack, TRAINING, 7, state=tmp_path / "cut.safetensors", on_epoch=stop)
    resumed = make(name, seed=99)  # its own weights are replaced by the checkpoint's
    again = pretrain(resumed, pack, TRAINING, 7, state=tmp_path / "cut.safetensors")
    assert [epoch.losses for epoch in again.epochs] == [epoch.losses for epoch in history.epochs]
    for (key, value), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    assert all(epoch.images_per_second > 0 for epoch in history.epochs)
    assert [epoch.validation for epoch in again.epochs] == [epoch.validation for epoch in history.epochs]


@pytest.mark.parametrize("name", TRAINED)
def test_own_figures_and_pictures_are_finite_and_change_nothing(name):
    pack, method = pictures(), make(name)
    images = pack.batch(pack.rows("val"))
    method.eval()
    before = copy.deepcopy(method.state_dict())
    with torch.no_grad():
        figures, drawn = method.validation(images, SIZE), method.pictures(images, SIZE)
    assert all(torch.isfinite(value) for value in figures.values())
    for picture in drawn.values():
        assert picture.ndim == 3
        assert picture.shape[0] == 3
        assert 0 <= picture.min() <= picture.max() <= 1
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_feeds_a_probe(name):
    encoder = make(name).encoder.eval()
    features = encoder(torch.rand(4, 3, SIZE, SIZE))
    assert features.shape == (4, encoder.dim)
    assert torch.isfinite(features).all()


def test_shared_batch_norm_is_batch_norm_in_one_process():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5), nn.BatchNorm1d(5))
    images = torch.rand(6, 3, 8, 8)
    expected = plain(images)
    twin = share_batch_norms(copy.deepcopy(plain))
    torch.testing.assert_close(twin(images), expected)
    assert list(twin.state_dict()) == list(plain.state_dict())


def test_shared_batch_norms_of_a_frozen_network_stay_frozen():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in share_batch_norms(module).parameters())


def test_shared_batch_norms_stay_where_their_module_is():
    module = make("simclr").to("meta").eval()
    share_batch_norms(module)
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    assert not any(child.training for child in module.modules())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", TRAINED)
def test_a_gpu_trains_as_the_cpu_does(name, tmp_path: Path):
    gentle = TRAINING.model_copy(update={"optimizer": "sgd", "lr": 0.002})
    losses = {}
    for device in ("cpu", "cuda"):
        method = make(name).to(device)
        history = pretrain(method, pictures().on(device), gentle, 7, state=tmp_path / f"{device}.safetensors")
        losses[device] = [epoch.losses for epoch in history.epochs]
        assert next(method.parameters()).device.type == device
    for one, other in zip(losses["cpu"], losses["cuda"], strict=True):
        assert one == pytest.approx(other, rel=1e-2)


def test_names_of_methods():
    with pytest.raises(UnknownName, match="did you mean 'simclr'"):
        find_method("simclar")
    for odd in (".", "..simclr", "a b.c"):
        with pytest.raises(UnknownName):
            find_method(odd)
    with pytest.raises(BadInput, match="no_such_package"):
        find_method("no_such_package.method")
    with pytest.raises(BadInput, match="must define one Method"):
        find_method("bench.records")


def test_a_method_outside_the_repository(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from methods.random_init import RandomInit, RandomInitConfig\n"
        "class Mine(RandomInit):\n"
        "    summary = 'my own pretext task'\n"
    )
    package = tmp_path / "mypackage"
    package.mkdir()
    (tmp_path / "mine.py").rename(package / "mine.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_method("mypackage.mine").summary == "my own pretext task"


@pytest.mark.slow
def test_the_suite_runs_over_a_method_outside_the_repository(tmp_path):
    """The README's example, as its author would test it; and a copy with a mistake, which is found."""
    root = Path(__file__).parents[1]
    text = block("python", "(Method)")
    package = tmp_path / "outside"
    package.mkdir()
    (package / "right.py").write_text(text)
    (package / "wrong.py").write_text(text.replace("self.encoder(views[0])", "self.encoder(views[0]).detach()"))

    def suite(name: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "tests/test_methods.py", "-k", f"{name} and not the_suite_runs"],
            cwd=root,
            env=os.environ | {"BENCH_METHODS": name, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        return done.stdout

    assert "7 passed" in suite("outside.right")
    assert "FAILED tests/test_methods.py::test_gradients_reach_every_parameter" in suite("outside.wrong")
