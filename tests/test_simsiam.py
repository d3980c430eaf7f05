"""SimSiam's loss against the paper's equations, its stopped gradient and its collapse watch."""

import math

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from torch import nn

from bench.draw import Draw
from bench.encoders import build_encoder
from bench.heads import spread
from bench.registry import build
from bench.training.pretrain import build_optimizers, train_batch
from methods.simsiam import negative_cosine
from tests.test_methods import BATCH, SIZE, TRAINING, batch, make, pictures


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_negative_cosine_is_equation_1():
    prediction, target = rows()
    total = 0.0
    for p, z in zip(prediction.tolist(), target.tolist(), strict=True):
        dot = sum(a * b for a, b in zip(p, z, strict=True))
        total -= dot / math.sqrt(sum(a * a for a in p)) / math.sqrt(sum(b * b for b in z))
    assert float(negative_cosine(prediction, target)) == pytest.approx(total / 9, abs=1e-12)
    assert float(negative_cosine(prediction, target)) == pytest.approx(float(NegativeCosineSimilarity()(*rows())))


def test_no_gradient_flows_into_the_target():
    prediction, target = rows().requires_grad_().unbind()
    gradients = torch.autograd.grad(negative_cosine(prediction, target), (prediction, target), allow_unused=True)
    assert gradients[0].abs().sum() > 0
    assert gradients[1] is None


def test_the_loss_is_equation_4_of_the_method():
    """Half of each direction; the target is the projector's output and the prediction the predictor's."""
    method = make("simsiam").train()
    views = method.views(batch(pictures()), Draw(0, BATCH), SIZE)
    first, second = (method.projector(method.encoder(view)) for view in views)
    directions = [(method.predictor(first), second), (method.predictor(second), first)]
    expected = sum(NegativeCosineSimilarity()(p, z.detach()) / 2 for p, z in directions)
    losses = method.losses(views, 0.0)
    torch.testing.assert_close(losses["loss"], expected)
    wanted = torch.autograd.grad(expected, method.encoder.parameters())
    for one, other in zip(torch.autograd.grad(losses["loss"], method.encoder.parameters()), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_spread_tells_collapse_from_health():
    generator = torch.Generator().manual_seed(0)
    healthy = torch.randn(512, 64, generator=generator)
    assert float(spread(healthy)) == pytest.approx(1, abs=0.03)
    assert float(spread(torch.ones(512, 1) * healthy[:1])) == pytest.approx(0, abs=1e-5)
    line = torch.randn(512, 1, generator=generator) * healthy[:1]  # one dimension is left: two opposite points
    assert float(spread(line + 1e-4 * healthy)) < 0.9
    losses = make("simsiam").train().losses([torch.full((BATCH, 3, SIZE, SIZE), 0.5)] * 2, 0.0)
    assert float(losses["spread"]) < 0.05  # the same image everywhere


def test_the_heads_are_those_of_the_baseline():
    method = build("simsiam", {}, build_encoder("small", 0))
    linear = [(m.in_features, m.out_features) for m in method.projector if isinstance(m, nn.Linear)]
    assert linear == [(192, 192)] * 3
    assert isinstance(method.projector[-1], nn.BatchNorm1d)
    assert not method.projector[-1].affine
    bottleneck = [(m.in_features, m.out_features) for m in method.predictor if isinstance(m, nn.Linear)]
    assert bottleneck == [(192, 48), (48, 192)]


def test_twenty_steps_lower_the_loss_without_collapse():
    method = make("simsiam").train()
    optimizers, images = build_optimizers(method, TRAINING), batch(pictures())
    found = [
        {name: float(value.detach()) for name, value in losses.items()}
        for _ in range(20)
        for losses in train_batch(method, optimizers, TRAINING, images, Draw(1, BATCH), 0.0, 1e-3)
    ]
    assert found[-1]["loss"] < found[0]["loss"] - 0.3
    assert found[-1]["spread"] > 0.5
