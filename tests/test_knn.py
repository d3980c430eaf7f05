import math

import pytest
import torch

from bench.errors import BadInput
from bench.evaluation import knn
from bench.evaluation.knn import knn_scores
from bench.evaluation.linear import Features


def draw(samples: int, dim: int, classes: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, dim, generator=generator)
    return Features(x, torch.randint(classes, (samples,), generator=generator))


def naive(train: Features, x: torch.Tensor, classes: int, k: int) -> torch.Tensor:
    rows = []
    for query in x.double().tolist():
        near = []
        for key, label in zip(train.x.double().tolist(), train.y.tolist(), strict=True):
            lengths = math.hypot(*query) * math.hypot(*key)
            near.append((sum(a * b for a, b in zip(query, key, strict=True)) / lengths if lengths else 0.0, label))
        row = [0.0] * classes
        for similarity, label in sorted(near, reverse=True)[:k]:
            row[label] += math.exp(similarity / 0.07) / math.exp(1 / 0.07)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 5, 20, 200])
def test_equals_a_naive_loop(k: int) -> None:
    train, query = draw(60, 8, 4, seed=0), draw(25, 8, 4, seed=1)
    ours = knn_scores(train, query.x, 4, k)
    expected = naive(train, query.x, 4, k)
    assert torch.equal(ours.argmax(1), expected.argmax(1))
    torch.testing.assert_close(ours, expected, rtol=2e-5, atol=0)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, query = draw(50, 8, 3, seed=0), draw(33, 8, 3, seed=1)
    whole = knn_scores(train, query.x, 3, 20)
    monkeypatch.setattr(knn, "CELLS", 120)
    torch.testing.assert_close(knn_scores(train, query.x, 3, 20), whole, rtol=1e-5, atol=0)


def test_zero_vectors_and_duplicates_give_numbers() -> None:
    x = torch.zeros(6, 4)
    x[3:] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    train = Features(x, torch.tensor([0, 0, 0, 1, 1, 1]))
    scores = knn_scores(train, torch.cat([torch.zeros(1, 4), x[3:4]]), 3, 3)
    assert torch.isfinite(scores).all()
    assert scores[1].tolist() == pytest.approx([0.0, 3.0, 0.0], rel=1e-5)
    assert scores[0].sum() == pytest.approx(3 * math.exp(-1 / 0.07))


@pytest.mark.parametrize("scale", [1e-15, 1e30])
def test_length_of_features_does_not_matter(scale: float) -> None:
    train, query = draw(40, 8, 3, seed=0), draw(10, 8, 3, seed=1)
    if scale < 1:  # float32 still holds it, but its squares vanish
        train = Features(train.x * 1e4, train.y)
    scaled = knn_scores(Features(train.x * scale, train.y), query.x * scale * 1e4, 3, 20)
    torch.testing.assert_close(scaled, knn_scores(train, query.x, 3, 20), rtol=1e-4, atol=0)


def test_k_below_one_is_an_error() -> None:
    train = draw(5, 2, 2, seed=0)
    with pytest.raises(BadInput, match="k must be at least 1"):
        knn_scores(train, train.x, 2, 0)
