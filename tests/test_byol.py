"""BYOL's loss against the paper's equation, its target, its momentum and its asymmetric views."""

import math

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from torch import nn

from bench.draw import Draw
from bench.encoders import build_encoder
from bench.heads import cosine_momentum
from bench.images import ImageBatch
from bench.registry import build
from bench.training.pretrain import build_optimizers, train_batch
from methods.byol import squared_distance
from tests.test_methods import BATCH, SIZE, TRAINING, batch, make, pictures


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows() -> torch.Tensor:
    return torch.randn(2, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_squared_distance_is_equation_2():
    total = 0.0
    for q, z in zip(*rows().tolist(), strict=True):
        lengths = [math.sqrt(sum(value * value for value in row)) for row in (q, z)]
        total += sum((a / lengths[0] - b / lengths[1]) ** 2 for a, b in zip(q, z, strict=True))
    assert float(squared_distance(*rows())) == pytest.approx(total / 9, abs=1e-12)
    # lightly's loss is -cos: half of this one, less 1
    assert float(squared_distance(*rows())) == pytest.approx(2 + 2 * float(NegativeCosineSimilarity()(*rows())))


def test_the_loss_takes_both_directions_and_no_gradient_reaches_the_target():
    method = make("byol").train()
    views = method.views(batch(pictures()), Draw(0, BATCH), SIZE)
    online = [method.predictor(method.projector(method.encoder(view))) for view in views]
    targets = [method.target(view) for view in views]
    expected = squared_distance(online[0], targets[1]) + squared_distance(online[1], targets[0])
    losses = method.losses(views, 0.0)
    torch.testing.assert_close(losses["loss"], expected)
    losses["loss"].backward()
    assert all(parameter.grad is None for parameter in method.target.parameters())
    assert all(parameter.grad is not None for parameter in method.predictor.parameters())
    updated = {id(parameter) for parameter in method.objectives()["loss"]}
    assert not updated & {id(parameter) for parameter in method.target.parameters()}
    query, target = rows().requires_grad_().unbind()
    assert torch.autograd.grad(squared_distance(query, target), (query, target), allow_unused=True)[1] is None


@pytest.mark.parametrize("base", [0.9, 0.996])
def test_momentum_rises_from_its_base_to_one_along_a_cosine(base):
    assert cosine_momentum(base, 0) == pytest.approx(base)
    assert cosine_momentum(base, 1) == pytest.approx(1)
    for k, steps in ((1, 10), (5, 10), (9, 10)):  # section 3.3: 1 - (1 - base) (cos(pi k / K) + 1) / 2
        assert cosine_momentum(base, k / steps) == 1 - (1 - base) * (math.cos(math.pi * k / steps) + 1) / 2


def test_the_target_follows_the_online_network_by_that_momentum():
    method = build("byol", {"momentum": 0.9}, build_encoder("small", 0)).train()
    before = [parameter.clone() for parameter in method.target.parameters()]
    online = [*method.encoder.parameters(), *method.projector.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, online, strict=True))
    with torch.no_grad():
        for parameter in online:
            parameter += 1
    method.after_step(0.5)
    share = 1 - cosine_momentum(0.9, 0.5)
    assert share == pytest.approx(0.05)
    for one, other in zip(method.target.parameters(), before, strict=True):
        torch.testing.assert_close(one.detach(), other + share)


def test_only_the_second_view_is_solarised_and_each_has_its_own_blur():
    generator = torch.Generator().manual_seed(0)
    images = ImageBatch((torch.rand(16, 3, 40, 40, generator=generator) * 255).byte(), torch.ones(16))
    plain = {"jitter": {"probability": 0}, "grayscale": 0, "crop": {"low": 1.0, "flip": 0}}

    def views(**settings: object) -> tuple[torch.Tensor, ...]:
        config = plain | {"solarize": 0} | settings
        return build("byol", config, build_encoder("small", 0)).views(images, Draw(0, 16), 32)

    first, second = views()
    dark = views(solarize=1)
    assert torch.equal(dark[0], first)
    torch.testing.assert_close(dark[1], torch.where(second >= 0.5, 1 - second, second))
    blurred = views(blur={"probability": 1}), views(second_blur=1)
    for number, (one, other) in enumerate(blurred):
        assert torch.equal(one, first) == (number == 1)
        assert torch.equal(other, second) == (number == 0)


def test_the_heads_are_the_paper_s():
    method = build("byol", {"projection": 64}, build_encoder("small", 0))
    for head, width in ((method.projector, 192), (method.predictor, 64)):
        assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert (head[0].in_features, head[0].out_features, head[3].out_features) == (width, 384, 64)


def test_twenty_steps_lower_the_loss_without_collapse():
    method = make("byol").train()
    optimizers, images = build_optimizers(method, TRAINING), batch(pictures())
    found = [
        {name: float(value.detach()) for name, value in losses.items()}
        for _ in range(20)
        for losses in train_batch(method, optimizers, TRAINING, images, Draw(1, BATCH), 0.0, 1e-3)
    ]
    assert found[-1]["loss"] < found[0]["loss"] / 2
    assert found[-1]["spread"] > 0.3
