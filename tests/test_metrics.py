import numpy as np
import pytest
import torch
from sklearn.metrics import (
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
    top_k_accuracy_score,
)

from bench.errors import BadData, UnknownName
from bench.evaluation.metrics import (
    METRICS,
    bootstrap,
    confusion,
    count_top5,
    judge,
    metrics,
    per_class,
    with_intervals,
)


def draw(samples: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=generator)
    scores = torch.randn(samples, classes, generator=generator)
    scores[torch.arange(samples), labels] += 1.0
    return scores, labels


@pytest.mark.parametrize(("samples", "classes"), [(200, 2), (300, 7), (150, 60)])
def test_metrics_are_sklearns(samples: int, classes: int) -> None:
    scores, labels = draw(samples, classes, seed=classes)
    predicted = scores.argmax(1)
    matrix = confusion(scores, labels, classes)
    values = metrics(matrix, count_top5(scores, labels))
    assert np.array_equal(matrix, confusion_matrix(labels, predicted, labels=range(classes)))
    assert values["top1"] == pytest.approx(float((labels == predicted).double().mean()))
    assert values["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    assert values["weighted_f1"] == pytest.approx(f1_score(labels, predicted, average="weighted", zero_division=0))
    recalls = recall_score(labels, predicted, labels=labels.unique(), average="macro", zero_division=0)
    assert values["mean_per_class"] == pytest.approx(recalls)
    if classes > 5:
        assert list(values) == list(METRICS)
        assert values["top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=range(classes)))
    else:
        assert "top5" not in values


@pytest.mark.parametrize("predicted", [[0, 0, 1, 1], [0, 3, 1, 3], [3, 3, 3, 3]])
def test_absent_classes_count_as_sklearn_counts_them(predicted: list[int]) -> None:
    labels = [0, 0, 1, 1]  # of four classes 2 never occurs, 3 only among predictions
    values = metrics(confusion(torch.tensor(predicted), torch.tensor(labels), 4), None)
    assert values["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    assert values["weighted_f1"] == pytest.approx(f1_score(labels, predicted, average="weighted", zero_division=0))
    per_class = [np.mean([p == t for p, t in zip(predicted, labels, strict=True) if t == k]) for k in (0, 1)]
    assert values["mean_per_class"] == pytest.approx(np.mean(per_class))


def test_top5_breaks_ties_as_argmax_does() -> None:
    scores = torch.zeros(7, 7)
    assert count_top5(scores, torch.arange(7)) == 5
    absent = torch.full((1, 7), -torch.inf)
    absent[0, 6] = 0.0
    assert [count_top5(absent, torch.tensor([k])) for k in range(7)] == [1, 1, 1, 1, 0, 0, 1]
    assert count_top5(torch.zeros(2, 5), torch.tensor([0, 1])) is None


def test_empty_split_is_an_error() -> None:
    with pytest.raises(BadData, match="empty"):
        metrics(torch.zeros(3, 3, dtype=torch.int64), None)


def test_wrong_metric_names_the_nearest() -> None:
    scores, labels = draw(20, 3, seed=0)
    with pytest.raises(UnknownName, match="did you mean 'macro_f1'"):
        judge(scores, labels).value("macro-f1")


def test_bootstrap_agrees_with_resampling_the_samples() -> None:
    scores, labels = draw(400, 8, seed=1)
    matrix, hits = confusion(scores, labels, 8), count_top5(scores, labels)
    ours = bootstrap(matrix, hits, seed=0, resamples=4000)
    random = np.random.default_rng(1)
    drawn = [torch.from_numpy(random.integers(0, 400, 400)) for _ in range(1500)]
    tables = [metrics(confusion(scores[i], labels[i], 8), count_top5(scores[i], labels[i])) for i in drawn]
    assert set(ours) == set(METRICS)
    for name, (low, high) in ours.items():
        expected = np.percentile([table[name] for table in tables], (2.5, 97.5))
        assert (low, high) == pytest.approx(expected, abs=0.006)


def test_bootstrap_is_deterministic_and_holds_the_value() -> None:
    scores, labels = draw(3000, 200, seed=2)
    plain = judge(scores, labels)
    first, again, other = (with_intervals(plain, seed).intervals for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert all(low <= plain.values[name] + 0.02 and plain.values[name] <= high for name, (low, high) in first.items())
    assert first["top1"][0] < plain.values["top1"] < first["top1"][1]
    assert plain.intervals == {}


def test_bootstrap_of_a_perfect_classifier_has_no_width() -> None:
    labels = torch.arange(6).repeat(5)
    scores = torch.nn.functional.one_hot(labels, 6).float()
    assert set(with_intervals(judge(scores, labels), 0).intervals.values()) == {(1.0, 1.0)}


@pytest.mark.parametrize("seed", range(4))
def test_per_class_figures_are_sklearns(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, predicted = random.choice([0, 1, 3, 4], 60), random.choice([0, 1, 2, 4], 60)  # 5 is in neither
    figures = per_class(confusion(torch.tensor(predicted), torch.tensor(labels), 6))
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=range(6), zero_division=0)
    assert figures.precision == pytest.approx(precision)
    assert [0.0 if value is None else value for value in figures.recall] == pytest.approx(recall)
    assert [0.0 if value is None else value for value in figures.f1] == pytest.approx(f1)
    assert [k for k, value in enumerate(figures.recall) if value is None] == [2, 5]
    assert [k for k, value in enumerate(figures.f1) if value is None] == [5]
    assert figures.precision[3] == figures.f1[3] == 0.0
    assert all(type(value) is float for value in (*figures.precision, figures.recall[0], figures.f1[0]))
