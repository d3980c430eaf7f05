import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from bench.errors import BadData, BadInput
from bench.evaluation.linear import PATH_TOLERANCE, STRENGTHS, Features, LinearProbe, choose_strength, fit, path


def draw(samples: int, dim: int, classes: int, seed: int = 0, spread: float = 0.6) -> Features:
    """Overlapping classes on features of very different variance and a mean far from 0, as encoders give them."""
    generator = torch.Generator().manual_seed(seed)
    centres = spread * torch.randn(classes, dim, generator=torch.Generator().manual_seed(7))
    y = torch.randint(classes, (samples,), generator=generator)
    scale = torch.logspace(0.3, -1, dim)
    return Features((centres[y] + torch.randn(samples, dim, generator=generator)) * scale + 0.5, y)


def sklearns(features: Features, strength: float) -> LogisticRegression:
    model = LogisticRegression(C=1 / strength, tol=1e-8, max_iter=20000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features.x.double().numpy(), features.y.numpy())


def objective(weight: np.ndarray, bias: np.ndarray, features: Features, strength: float) -> float:
    """The module's formula written out, for three classes or more."""
    logits = features.x.double() @ torch.as_tensor(weight).T + torch.as_tensor(bias)
    loss = torch.nn.functional.cross_entropy(logits, features.y, reduction="sum")
    return float(loss) + strength / 2 * float(np.square(weight).sum())


def centred(values: torch.Tensor | np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    return array - array.mean(0)


CASES = [(2, 120, 20), (2, 30, 60), (10, 300, 24), (10, 80, 120)]


@pytest.mark.parametrize(("classes", "samples", "dim"), CASES)
@pytest.mark.parametrize("strength", [1e5, 30.0, 1.0, 0.03])
def test_fit_is_sklearns(classes: int, samples: int, dim: int, strength: float) -> None:
    train, new = draw(samples, dim, classes), draw(50, dim, classes, seed=1)
    ours, theirs = fit(train, strength, classes), sklearns(train, strength)
    probabilities = theirs.predict_proba(new.x.double().numpy())
    np.testing.assert_allclose(ours.scores(new.x).softmax(1), probabilities, atol=1e-4)
    if classes == 2:
        difference = ours.weight[1:] - ours.weight[:1]
        np.testing.assert_allclose(difference, theirs.coef_, atol=1e-4)
    else:
        np.testing.assert_allclose(ours.weight, theirs.coef_, atol=1e-4)
        np.testing.assert_allclose(centred(ours.bias), centred(theirs.intercept_), atol=1e-4, rtol=1e-3)
        expected = objective(theirs.coef_, theirs.intercept_, train, strength)
        assert ours.objective == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("samples", "dim"), [(300, 24), (80, 120)])
def test_weakest_strength_is_solved_better_than_sklearn_does(samples: int, dim: int) -> None:
    train, new = draw(samples, dim, 10), draw(50, dim, 10, seed=1)
    ours, theirs = fit(train, 1e-6, 10), sklearns(train, 1e-6)
    expected = objective(theirs.coef_, theirs.intercept_, train, 1e-6)
    assert ours.objective == pytest.approx(objective(ours.weight.numpy(), ours.bias.numpy(), train, 1e-6), rel=1e-6)
    assert ours.objective <= expected * (1 + 1e-9)
    assert (ours.scores(new.x).argmax(1).numpy() == theirs.predict(new.x.double().numpy())).mean() >= 0.9


@pytest.mark.parametrize(("samples", "dim"), [(300, 24), (80, 120)])
def test_the_whole_path_is_as_near_the_minimum_as_it_says(samples: int, dim: int) -> None:
    train = draw(samples, dim, 10)
    probes = list(path(train, 10))
    assert [probe.strength for probe in probes] == sorted(STRENGTHS, reverse=True)
    for probe in probes[::5]:
        assert float(probe.weight.sum(0).abs().max()) <= 1e-9 * float(probe.weight.norm())
        least, scale = fit(train, probe.strength, 10).objective, min(1.0, probe.objective)
        value = objective(probe.weight.numpy(), probe.bias.numpy(), train, probe.strength)
        assert value - least <= PATH_TOLERANCE * scale
        assert probe.gap <= PATH_TOLERANCE * scale
        assert abs(probe.objective - value) <= PATH_TOLERANCE * scale


def hard_cases() -> dict[str, Features]:
    """Features and labels that make optimisers stumble."""
    generator = torch.Generator().manual_seed(3)
    mixed = draw(120, 12, 4)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64)).Q
    scales = torch.logspace(2, -4, 12, dtype=torch.float64)
    return {
        "well-conditioned": Features(torch.randn(120, 12, generator=generator), mixed.y),
        "ill-conditioned": Features((mixed.x.double() * scales) @ turn, mixed.y),
        "separable": draw(120, 12, 4, spread=9.0),
        "imbalanced": Features(mixed.x, torch.where(torch.arange(120) < 110, 0, torch.arange(120) % 4)),
        "fewer samples than features": draw(30, 60, 4),
        "one feature constant": Features(torch.cat([mixed.x, torch.full((120, 1), 3.0)], 1), mixed.y),
    }


@pytest.mark.parametrize("case", hard_cases())
def test_path_is_at_sklearns_optimum(case: str) -> None:
    train = hard_cases()[case]
    classes = int(train.y.max()) + 1
    for probe in path(train, classes, STRENGTHS[::7]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its last Newton step sees no further decrease
            model = LogisticRegression(C=1 / probe.strength, solver="newton-cholesky", tol=1e-12, max_iter=1000)
            model.fit(train.x.double().numpy(), train.y.numpy())
        least = objective(model.coef_, model.intercept_, train, probe.strength)
        ours = objective(probe.weight.numpy(), probe.bias.numpy(), train, probe.strength)
        assert -1e-6 * least <= ours - least <= PATH_TOLERANCE * min(1.0, least)


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_the_unit_of_features_does_not_matter(unit: float) -> None:
    train, classes = draw(120, 12, 4), 4
    scaled = path(Features(train.x.double() * unit, train.y), classes, [unit**2 * s for s in STRENGTHS[::11]])
    for probe, other in zip(path(train, classes, STRENGTHS[::11]), scaled, strict=True):
        assert probe.objective == pytest.approx(other.objective, rel=2 * PATH_TOLERANCE)
        torch.testing.assert_close(
            other.weight * unit, probe.weight, rtol=0, atol=0.01 * float(probe.weight.abs().max())
        )


def test_path_and_single_fits_meet() -> None:
    train = draw(150, 40, 5)
    for probe in list(path(train, 5))[::11]:
        alone = fit(train, probe.strength, 5)
        assert float((alone.weight - probe.weight).norm() / alone.weight.norm()) < 1e-2
        torch.testing.assert_close(
            alone.scores(train.x).softmax(1), probe.scores(train.x).softmax(1), atol=1e-3, rtol=0
        )


def test_strengths_are_the_fields() -> None:
    np.testing.assert_allclose(STRENGTHS, np.logspace(-6, 5, 45))


def test_choice_is_the_best_on_validation_and_ties_go_to_the_stronger() -> None:
    train, val = draw(100, 30, 4), draw(60, 30, 4, seed=1)
    choice = choose_strength(train, val, 4)
    assert len(choice.accuracies) == 45
    best = max(choice.accuracies.values())
    assert choice.strength == max(s for s, value in choice.accuracies.items() if value == best)
    assert choice.scores.values["top1"] == best
    tied = choose_strength(draw(100, 30, 4, spread=9.0), draw(60, 30, 4, seed=1, spread=9.0), 4, (1.0, 0.1, 10.0))
    assert set(tied.accuracies.values()) == {1.0}
    assert tied.strength == 10.0


def test_metric_changes_the_choice() -> None:
    train, val = draw(100, 30, 6), draw(60, 30, 6, seed=1)
    by = {m: choose_strength(train, val, 6, metric=m) for m in ("top1", "top5", "macro_f1")}
    for metric, choice in by.items():
        assert choice.scores.values[metric] == max(choice.accuracies.values())
    assert by["top5"].accuracies != by["top1"].accuracies


def test_a_class_without_samples_is_never_predicted() -> None:
    train = draw(100, 10, 4)
    sparse = Features(train.x, torch.tensor([0, 2, 3, 6])[train.y])
    scores, dense = fit(sparse, 0.1, 7).scores(train.x), fit(train, 0.1, 4).scores(train.x)
    torch.testing.assert_close(scores[:, [0, 2, 3, 6]], dense)
    assert (scores[:, [1, 4, 5]] == -torch.inf).all()


def test_one_class_alone_is_always_predicted() -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    probe = fit(Features(x, torch.full((8,), 2)), 1e-3, 4)
    assert (probe.scores(x).argmax(1) == 2).all()


def test_constant_and_repeated_features_are_harmless() -> None:
    train = draw(60, 5, 3)
    wide = torch.cat([train.x, train.x, torch.full((60, 2), 4.0)], 1)
    probe = fit(Features(wide, train.y), 1e-2, 3)
    torch.testing.assert_close(probe.weight[:, :5], probe.weight[:, 5:10], rtol=1e-4, atol=1e-6)
    assert float(probe.weight[:, 10:].abs().max()) < 1e-9
    flat = fit(Features(torch.ones(60, 4), train.y), 1.0, 3)
    shares = torch.bincount(train.y).double() / 60
    torch.testing.assert_close(flat.scores(torch.ones(1, 4)).softmax(1)[0], shares, rtol=1e-4, atol=0)


def test_same_input_same_probe() -> None:
    train = draw(80, 20, 5)
    first, again = (fit(train, 0.01, 5) for _ in range(2))
    assert isinstance(first, LinearProbe)
    assert torch.equal(first.weight, again.weight)


def test_wrong_input_is_a_clear_error() -> None:
    train = draw(20, 4, 3)
    with pytest.raises(BadInput, match="above 0"):
        fit(train, 0.0, 3)
    with pytest.raises(BadData, match=r"labels must be in 0\.\.1"):
        fit(train, 1.0, 2)
    with pytest.raises(BadData, match=r"\[N,D\]"):
        Features(train.x, train.y[:3])
    with pytest.raises(BadData, match="empty"):
        Features(train.x[:0], train.y[:0])
    with pytest.raises(BadInput, match="no strength"):
        choose_strength(train, train, 3, ())


@pytest.mark.parametrize("strength", [1e-6, 1e-3, 1.0])
def test_fit_is_within_the_bound_of_strong_convexity(strength: float) -> None:
    train = draw(150, 40, 5)
    probe = fit(train, strength, 5)
    p = probe.scores(train.x).softmax(1) - torch.nn.functional.one_hot(train.y, 5)
    gradient = p.T @ (train.x.double() - train.x.double().mean(0)) + strength * probe.weight
    # However small the curvature that the solver believes in, the objective's is at least the strength.
    assert float(gradient.square().sum()) / (2 * strength) < 1e-6 * probe.objective
    assert float(probe.weight.sum(0).abs().max()) < 1e-9 * float(probe.weight.norm())


@pytest.mark.gpu
def test_gpu_finds_the_same_optima() -> None:
    train = draw(1500, 256, 40)
    there = Features(train.x.cuda(), train.y.cuda())
    for ours, theirs in zip(path(train, 40), path(there, 40), strict=True):
        assert theirs.weight.is_cuda
        scale = min(1.0, ours.objective)
        value = objective(theirs.weight.cpu().numpy(), theirs.bias.cpu().numpy(), train, ours.strength)
        assert abs(value - ours.objective) <= 2 * PATH_TOLERANCE * scale
    here, gpu = fit(train, 0.1, 40), fit(there, 0.1, 40)
    torch.testing.assert_close(gpu.weight.cpu(), here.weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gpu.scores(there.x).cpu(), here.scores(train.x), atol=1e-5, rtol=1e-5)
