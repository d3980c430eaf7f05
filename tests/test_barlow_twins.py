"""Barlow Twins' loss against the paper's equations and algorithm."""

import numpy as np
import pytest
import torch
from lightly.loss import BarlowTwinsLoss

from bench.draw import Draw
from bench.encoders import build_encoder
from bench.registry import build, configure
from bench.training.pretrain import build_optimizers, train_batch
from methods.barlow_twins import barlow_twins, standardised
from tests.test_methods import BATCH, SIZE, TRAINING, batch, make, pictures


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(count: int = 9, width: int = 6) -> torch.Tensor:
    first, noise = torch.randn(2, count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.stack((3 * first + 1, first + noise))


def formula(first: np.ndarray, second: np.ndarray, redundancy: float) -> float:
    """Equations 1 and 2 in plain loops, deviations as the authors' batch norm takes them (biased, epsilon 1e-5)."""
    centred = [rows - rows.mean(axis=0) for rows in (first, second)]
    a, b = (rows / np.sqrt((rows**2).mean(axis=0) + 1e-5) for rows in centred)
    total = 0.0
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            correlation = sum(a[n, i] * b[n, j] for n in range(len(a))) / len(a)
            total += (1 - correlation) ** 2 if i == j else redundancy * correlation**2
    return total


@pytest.mark.parametrize("redundancy", [0.005, 0.1])
def test_the_loss_is_the_paper_s_and_the_authors(redundancy):
    first, second = rows()
    found = float(barlow_twins(first, second, redundancy))
    assert found == pytest.approx(formula(first.numpy(), second.numpy(), redundancy), abs=1e-12)
    assert found == pytest.approx(float(BarlowTwinsLoss(redundancy)(first, second)), abs=1e-12)


def test_the_loss_of_known_correlations():
    columns = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], dtype=torch.float64).T  # uncorrelated
    assert float(barlow_twins(columns, 5 * columns + 2, 1.0)) == pytest.approx(0, abs=1e-4)
    assert float(barlow_twins(columns, -columns, 1.0)) == pytest.approx(3 * 4, abs=1e-3)  # (1 + 1)^2 on the diagonal
    same = columns[:, :1].expand(-1, 3)
    assert float(barlow_twins(same, same, 0.5)) == pytest.approx(0.5 * 6, abs=1e-3)  # six ones off it
    collapsed = torch.ones(4, 3, dtype=torch.float64)
    assert float(barlow_twins(collapsed, collapsed, 0.5)) == pytest.approx(3)  # no correlation at all: D


def test_standardised_columns_have_biased_variance_one():
    columns = standardised(rows()[0])
    torch.testing.assert_close(columns.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(columns.square().mean(0), torch.ones(6, dtype=torch.float64), atol=1e-4, rtol=0)


def test_both_views_are_trained_through():
    first, second = rows().requires_grad_().unbind()
    gradients = torch.autograd.grad(barlow_twins(first, second, 0.1), (first, second))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_widths_follow_the_encoder():
    encoder = build_encoder("small", 0)
    for config, widths in (({}, (768, 768)), ({"projection": 64}, (64, 64)), ({"hidden": 32}, (32, 768))):
        projector = build("barlow_twins", config, encoder).projector
        assert (projector[3].in_features, projector[-1].out_features) == widths
        assert projector[-1].bias is None
    assert configure("barlow_twins", {"redundancy": 0.1}, "test").redundancy == 0.1


def test_the_method_s_loss_and_its_collapse_watch():
    method = make("barlow_twins").train()
    views = method.views(batch(pictures()), Draw(0, BATCH), SIZE)
    losses = method.losses(views, 0.0)
    first, second = (method.projector(method.encoder(view)) for view in views)
    expected = method.config.scale * BarlowTwinsLoss(method.config.redundancy)(first, second)
    torch.testing.assert_close(losses["loss"], expected)
    flat = method.losses([torch.full((BATCH, 3, SIZE, SIZE), 0.5)] * 2, 0.0)
    assert float(flat["spread"]) < 0.05 < 0.5 < float(losses["spread"])


def test_twenty_steps_lower_the_loss():
    method = make("barlow_twins").train()
    optimizers, images = build_optimizers(method, TRAINING), batch(pictures())
    found = [
        float(losses["loss"].detach())
        for _ in range(20)
        for losses in train_batch(method, optimizers, TRAINING, images, Draw(1, BATCH), 0.0, 1e-3)
    ]
    assert found[-1] < found[0] / 2
