"""Newton steps by conjugate gradients and by factors: the same step, and the same optimum where the first take long."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from bench.evaluation.logistic import Path
from bench.evaluation.newton import Conjugate, direct


def samples(heavy: float) -> tuple[Tensor, Tensor]:
    """120 samples of 4 classes on principal axes, with log-normal norms: few rule what a weak penalty finds."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(120, 60, generator=generator, dtype=torch.float64)
    z *= (heavy * torch.randn(120, 1, generator=generator, dtype=torch.float64)).exp()
    u, s, _ = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    z = u * s
    return z / z.square().mean().sqrt(), torch.randint(4, (120,), generator=generator)


def test_a_step_by_factors_is_the_one_that_conjugate_gradients_come_to():
    path = Path(*samples(heavy=0.3), classes=4)
    near = path.solve(1.0, 1e-8).w  # far from it conjugate gradients stop early
    here = path._evaluate(near + 1e-3 * torch.randn(near.shape, generator=torch.Generator().manual_seed(1)))
    exact, found = direct(path.problem, here, 1.0), Conjugate(path.problem, here, 1.0).solve(1e-12, 500)
    assert exact is not None
    for one, other in ((exact.step, found.step), (exact.change, found.change.double())):
        assert (one - other).norm() < 0.02 * one.norm()
    assert exact.left < 2 * found.left


def test_what_takes_conjugate_gradients_long_is_solved_by_factors_to_the_same_optimum(monkeypatch):
    z, y = samples(heavy=2.0)
    path = Path(z, y, classes=4)
    for l2 in (1.0, 1e-2, 1e-4):
        found = path.solve(l2, 1e-8)
        assert found.gap <= 1e-8 * min(1.0, found.value)
    assert path.hard
    peer = LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        peer.fit(z.numpy(), y.numpy())
    w = torch.from_numpy(np.column_stack([peer.coef_, peer.intercept_]))
    assert found.value <= path._evaluate(w).value * (1 + 1e-6)
    monkeypatch.setattr("bench.evaluation.logistic.FACTORED", 0)
    alone = Path(z, y, classes=4)
    assert alone.solve(1.0, 1e-8).value == pytest.approx(Path(z, y, classes=4).solve(1.0, 1e-8).value, rel=1e-7)
    assert not alone.hard


def test_a_hessian_that_float64_cannot_factor_leaves_conjugate_gradients():
    path = Path(*samples(heavy=0.3), classes=4)
    path.problem.penalty[:-1] = -1e6  # of no objective, but what rounding may come to
    assert direct(path.problem, path._evaluate(path.start), 1.0) is None
