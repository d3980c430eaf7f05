"""SwAV's codes and loss against the authors' algorithm and lightly's, its frozen prototypes, and its views."""

import math
from pathlib import Path

import pytest
import torch
from lightly.loss import SwaVLoss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from torch import Tensor
from torch.nn import functional as F

from bench.draw import Draw
from bench.encoders import build_encoder
from bench.errors import BadInput
from bench.method import Method
from bench.multicrop import encode
from bench.registry import build, configure
from bench.training.pretrain import build_optimizers, pretrain, train_batch
from methods.swav import codes, sinkhorn, swapped_prediction
from tests.test_methods import BATCH, SIZE, TRAINING, batch, pictures


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def learn(method: Method, lr: float, steps: int = 20) -> list[dict[str, float]]:
    """The losses of some steps on the same views of the same images."""
    images, optimizers = batch(pictures(), slice(0, 24)), build_optimizers(method.train(), TRAINING)
    found = []
    for step in range(steps):
        draw = Draw(1, len(images))
        for losses in train_batch(method, optimizers, TRAINING, images, draw, step / steps, lr):
            found.append({name: value.item() for name, value in losses.items()})
    return found


def make(**config: object) -> Method:
    torch.manual_seed(0)
    return build("swav", config, build_encoder("small", 0))


def similarities(views: int, samples: int, prototypes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Cosines `[V,B,K]` of random directions with random prototypes."""
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(views, samples, 6, dtype=dtype, generator=generator), dim=2)
    return rows @ F.normalize(torch.randn(prototypes, 6, dtype=dtype, generator=generator), dim=1).T


def algorithm(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The pseudo-code of appendix A.1 of arXiv 2006.09882, sum by sum: codes `[B,K]`."""
    samples, prototypes = scores.shape
    q = [[math.exp(float(scores[b, k]) / epsilon) for b in range(samples)] for k in range(prototypes)]
    total = sum(map(sum, q))
    q = [[value / total for value in row] for row in q]
    for _ in range(iterations):
        q = [[value / sum(row) / prototypes for value in row] for row in q]
        columns = [sum(row[b] for row in q) for b in range(samples)]
        q = [[value / columns[b] / samples for b, value in enumerate(row)] for row in q]
    return torch.tensor([[row[b] * samples for row in q] for b in range(samples)], dtype=torch.float64)


def formula(scores: Tensor, temperature: float, epsilon: float) -> float:
    """Equation 2 with multi-crop (equation 6) in plain loops."""
    views, samples, _ = scores.shape
    total = 0.0
    for assigned in range(2):
        q = algorithm(scores[assigned], epsilon, 3)
        for predicting in set(range(views)) - {assigned}:
            for row in range(samples):
                z = (scores[predicting, row] / temperature).tolist()
                normaliser = math.log(sum(map(math.exp, z)))
                total -= sum(float(q[row, k]) * (value - normaliser) for k, value in enumerate(z))
    return total / (2 * (views - 1) * samples)


@pytest.mark.parametrize("epsilon", [0.03, 0.05, 1.0])
def test_codes_are_the_algorithm_of_the_paper_and_lightlys(epsilon):
    scores = similarities(1, 7, 5)[0]
    torch.testing.assert_close(sinkhorn(scores, epsilon, 3), algorithm(scores, epsilon, 3))
    # lightly leaves out the rows' constant 1 / K, which the next step cancels
    torch.testing.assert_close(sinkhorn(scores, epsilon, 3), lightly_sinkhorn(scores, iterations=3, epsilon=epsilon))


def test_codes_sum_to_one_and_use_every_prototype_alike():
    found = sinkhorn(similarities(1, 12, 4)[0], 0.05, 200)
    torch.testing.assert_close(found.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(found.sum(0), torch.full((4,), 3.0, dtype=torch.float64), atol=1e-3, rtol=0)


def test_codes_stay_finite_where_exponentials_overflow():
    scores = similarities(1, 12, 40, torch.float32)[0]
    assert not lightly_sinkhorn(scores, epsilon=1e-3).isfinite().all()
    found = sinkhorn(scores, 1e-3, 3)
    torch.testing.assert_close(found.sum(1), torch.ones(12))


@pytest.mark.parametrize("views", [2, 5])
def test_the_loss_is_equation_2_and_lightlys(views):
    scores = similarities(views, 6, 4).requires_grad_()
    found = swapped_prediction(scores.unbind(), 0.1, 0.05, 3)
    assert float(found.detach()) == pytest.approx(formula(scores.detach(), 0.1, 0.05), abs=1e-10)
    other = SwaVLoss(temperature=0.1)(list(scores[:2]), list(scores[2:]))
    torch.testing.assert_close(found, other.squeeze())
    ours, theirs = (torch.autograd.grad(loss.sum(), scores)[0] for loss in (found, other))
    torch.testing.assert_close(ours, theirs)


def test_no_gradient_flows_through_the_codes():
    scores = similarities(1, 6, 4)[0].requires_grad_()
    assert not codes(scores, 0.05, 3).requires_grad


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_frozen_prototypes_do_not_move_and_free_ones_stay_on_the_sphere(optimizer, tmp_path: Path):
    training = TRAINING.model_copy(update={"optimizer": optimizer, "weight_decay": 0.1, "lr": 0.01, "epochs": 2})
    for freeze, moves in ((1.0, False), (0.5, True)):
        method = make(freeze=freeze)
        before = method.prototypes.detach().clone()
        pretrain(method, pictures(), training, 7, state=tmp_path / f"{freeze}.safetensors")
        assert torch.equal(method.prototypes, before) != moves
        torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(len(before)))


def test_prototypes_are_given_the_gradient_of_the_loss():
    method = make().train()
    found = method.losses(method.views(batch(pictures()), Draw(1, BATCH), SIZE), 0.5)
    assert found["prototypes"].item() == 0
    ours, whole = (
        torch.autograd.grad(found[key], method.prototypes, retain_graph=True) for key in ("prototypes", "loss")
    )
    assert torch.equal(*ours, *whole)
    assert "prototypes" not in method.losses(method.views(batch(pictures()), Draw(1, BATCH), SIZE), 0.0)


def test_two_global_views_come_before_the_smaller_local_ones():
    images = batch(pictures())
    shapes = [tuple(view.shape) for view in make(local={"views": 3, "size": 0.4}).views(images, Draw(1, BATCH), 40)]
    assert shapes == [(BATCH, 3, 40, 40)] * 2 + [(BATCH, 3, 16, 16)] * 3
    assert len(make(local={"views": 0}).views(images, Draw(1, BATCH), 40)) == 2
    torch.manual_seed(0)
    vit = build("swav", {"local": {"size": 0.4}}, build_encoder("vit_micro", 0))
    assert vit.views(images, Draw(1, BATCH), 64)[-1].shape[2] == 24  # whole patches of 8 px, near 25.6


def test_no_local_views_are_one_configuration():
    off = configure("swav", {"local": {"views": 0}}, "test")
    assert configure("swav", {"local": {"views": 0, "size": 0.3, "high": 0.5}}, "test") == off
    assert configure("swav", off.model_dump(), "test") == off
    with pytest.raises(BadInput, match=r"local.*low \(0.7\) must not exceed high"):
        configure("swav", {"local": {"low": 0.7}}, "test")


def test_views_of_each_size_pass_the_encoder_together_and_come_back_in_order():
    passes = []

    def encoder(images: Tensor) -> Tensor:
        passes.append(tuple(images.shape))
        return images.mean((1, 2, 3))[:, None]

    views = [torch.full((2, 3, side, side), float(number)) for number, side in enumerate((8, 8, 4, 4, 4))]
    found = encode(encoder, views)  # type: ignore[arg-type]
    assert found.flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert passes == [(4, 3, 8, 8), (6, 3, 4, 4)]


def test_it_learns():
    losses = learn(make(prototypes=8), 0.003)
    assert losses[0]["loss"] == pytest.approx(math.log(8), abs=0.6)
    assert losses[-1]["loss"] < 0.6 * losses[0]["loss"]
    assert losses[-1]["spread"] > 0.5
