"""VICReg's terms against the paper's equations."""

import numpy as np
import pytest
import torch
from lightly.loss import VICRegLoss

from bench.draw import Draw
from bench.encoders import build_encoder
from bench.registry import build
from bench.training.pretrain import build_optimizers, train_batch
from methods.vicreg import covariance_term, terms, variance_term
from tests.test_methods import BATCH, SIZE, TRAINING, batch, make, pictures


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows() -> torch.Tensor:
    first, noise = torch.randn(2, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.2, 2, 6)  # some deviations below 1, some above
    return torch.stack((scale * first + 1, scale * (first + noise)))


def formula(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Equations 1 to 5 in plain loops, the means of the authors' code: distance over B x D, variance over views."""
    count, width = first.shape
    distance = sum((first[n, j] - second[n, j]) ** 2 for n in range(count) for j in range(width)) / (count * width)
    hinge = covariance = 0.0
    for z in (first, second):
        mean = sum(z[n] for n in range(count)) / count
        for i in range(width):
            for j in range(width):
                c = sum((z[n, i] - mean[i]) * (z[n, j] - mean[j]) for n in range(count)) / (count - 1)
                if i == j:
                    hinge += max(0.0, 1 - (c + 1e-4) ** 0.5) / width / 2
                else:
                    covariance += c**2 / width
    return float(distance), hinge, covariance


def test_the_terms_are_the_paper_s():
    first, second = rows()
    found = [float(term) for term in terms(first, second)]
    assert found == pytest.approx(formula(first.numpy(), second.numpy()), abs=1e-12)


@pytest.mark.parametrize("weights", [(25, 25, 1), (10, 5, 2)])
def test_the_weighted_sum_is_the_authors(weights):
    # lightly's factors are those of the authors' code too
    found = sum(weight * term for weight, term in zip(weights, terms(*rows()), strict=True))
    assert float(found) == pytest.approx(float(VICRegLoss(*weights)(*rows())), abs=1e-12)


def test_the_terms_of_known_embeddings():
    collapsed = torch.ones(8, 4, dtype=torch.float64)
    assert [float(term) for term in terms(collapsed, collapsed)] == pytest.approx([0, 1 - 1e-2, 0])
    columns = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1]], dtype=torch.float64).T  # variance 4/3, uncorrelated
    assert float(variance_term(columns)) == 0
    assert float(variance_term(0.3 * columns)) == pytest.approx(1 - (0.09 * 4 / 3 + 1e-4) ** 0.5)
    assert float(covariance_term(columns)) == 0
    assert float(covariance_term(columns[:, :1].expand(-1, 3))) == pytest.approx(6 * (4 / 3) ** 2 / 3)
    assert float(terms(columns, columns + 2)[0]) == pytest.approx(4)


def test_a_collapsed_embedding_still_has_a_gradient():
    """Epsilon keeps the root's slope finite where a column is constant."""
    points = torch.ones(8, 4, requires_grad=True)
    variance_term(points).backward()
    assert torch.isfinite(points.grad).all()
    nearly = (1 + 1e-3 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    variance_term(nearly).backward()
    assert nearly.grad.abs().sum() > 0.01


def test_the_method_weighs_and_logs_its_terms():
    weights = {"invariance": 3.0, "variance": 2.0, "covariance": 0.5}
    torch.manual_seed(0)
    method = build("vicreg", weights, build_encoder("small", 0)).train()
    losses = method.losses(method.views(batch(pictures()), Draw(0, BATCH), SIZE), 0.0)
    assert list(losses) == ["loss", "invariance", "variance", "covariance", "spread"]
    assert float(losses["loss"].detach()) == pytest.approx(
        sum(float(losses[name]) * value for name, value in weights.items())
    )
    assert [value.requires_grad for value in losses.values()] == [True] + [False] * 4
    flat = method.losses([torch.full((BATCH, 3, SIZE, SIZE), 0.5)] * 2, 0.0)
    assert float(flat["variance"]) > 0.9
    assert float(flat["spread"]) < 0.05 < 0.5 < float(losses["spread"])


def test_widths_follow_the_encoder():
    encoder = build_encoder("small", 0)
    for config, widths in (({}, (768, 768)), ({"projection": 64}, (64, 64)), ({"hidden": 32}, (32, 768))):
        projector = build("vicreg", config, encoder).projector
        assert (projector[3].in_features, projector[-1].out_features) == widths


def test_twenty_steps_lower_the_loss():
    method = make("vicreg").train()
    optimizers, images = build_optimizers(method, TRAINING), batch(pictures())
    found = [
        float(losses["loss"].detach())
        for _ in range(20)
        for losses in train_batch(method, optimizers, TRAINING, images, Draw(1, BATCH), 0.0, 1e-3)
    ]
    assert found[-1] < 0.8 * found[0]  # 8 samples span 7 dimensions: neither variance nor covariance can reach 0
