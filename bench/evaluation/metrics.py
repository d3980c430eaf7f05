"""Metrics of a classifier from its confusion matrix, and their bootstrap intervals over samples."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.errors import BadData, UnknownName

METRICS = ("top1", "top5", "mean_per_class", "macro_f1", "weighted_f1")
TOP = 5

Array = NDArray[Any]


@dataclass(frozen=True)
class Scores:
    """What one set of predictions is worth.

    `values`: a figure in 0..1 per metric (no "top5" where there are five classes or fewer); `intervals`: the
    bootstrap interval (low, high) of each, empty where none was asked for; `confusion`: int64 `[K,K]`, true x
    predicted, on the CPU; `samples`: how many predictions.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    confusion: Tensor
    samples: int

    def value(self, metric: str) -> float:
        """Return one metric; UnknownName says which there are."""
        if metric not in self.values:
            raise UnknownName("metric", metric, self.values)
        return self.values[metric]


@dataclass(frozen=True)
class PerClass:
    """Figures in 0..1 for each of K classes: scikit-learn's precision_recall_fscore_support with zero_division=0.

    `precision` is 0 for a class that is never predicted. Apart from scikit-learn, `recall` is None for a class that
    the truth lacks, and `f1` for one that the predictions lack as well.
    """

    precision: tuple[float, ...]
    recall: tuple[float | None, ...]
    f1: tuple[float | None, ...]


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return int64 `[K,K]` counts, true x predicted, on the CPU.

    `predicted` is scores `[N,K]` (the first of equal scores wins) or class numbers `[N]`; `labels` `[N]`.
    """
    chosen = predicted.argmax(1) if predicted.dim() == 2 else predicted
    cells = labels.to(chosen.device) * classes + chosen
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes).cpu()


def count_top5(scores: Tensor, labels: Tensor) -> int | None:
    """How many of `labels` `[N]` are among the five best of `scores` `[N,K]`; None where K <= 5.

    Among equal scores the lower class number ranks higher, as in `argmax`.
    """
    if scores.shape[1] <= TOP:
        return None
    wanted = labels.to(scores.device)[:, None]
    own = scores.gather(1, wanted)
    before = torch.arange(scores.shape[1], device=scores.device) < wanted
    rank = ((scores > own) | ((scores == own) & before)).sum(1)
    return int((rank < TOP).sum())


def metrics(matrix: Tensor, top5_hits: int | None) -> dict[str, float]:
    """Return each metric of a confusion matrix `[K,K]`; "top5" only where `top5_hits` is given.

    F1 scores are scikit-learn's with zero_division=0: macro over the classes that occur in the truth or among
    the predictions, weighted by the truth. Classes absent from the truth do not enter `mean_per_class`.
    Raises BadData for an empty matrix.
    """
    counts = matrix.numpy()
    samples = int(counts.sum())
    if samples == 0:
        raise BadData("no sample to score: the split is empty")
    values = _rates(counts.diagonal(), counts.sum(1), counts.sum(0))
    if top5_hits is not None:
        values["top5"] = np.asarray(top5_hits / samples)
    return {name: float(values[name]) for name in METRICS if name in values}


def per_class(matrix: Tensor) -> PerClass:
    """Return the figures of each class of a confusion matrix `[K,K]`."""
    counts = matrix.numpy()
    right, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    return PerClass(
        precision=tuple((right / np.maximum(predicted, 1)).tolist()),
        recall=_known(right / np.maximum(true, 1), true > 0),
        f1=_known(2 * right / np.maximum(true + predicted, 1), true + predicted > 0),
    )


def bootstrap(
    matrix: Tensor, top5_hits: int | None, seed: int, resamples: int = 1000
) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile interval of each metric over resamples of the samples.

    Drawing samples with replacement is a multinomial draw over the cells of the confusion matrix, and a
    binomial one over the top-5 hits, so the time does not depend on K squared. The same `seed` gives the same.
    """
    counts = matrix.numpy()
    samples = int(counts.sum())
    random = np.random.default_rng(seed)
    true, predicted = counts.nonzero()
    cells = counts[true, predicted]
    draws = random.multinomial(samples, cells / samples, size=resamples).astype(np.float64)
    right = true == predicted
    classes = np.eye(counts.shape[0])
    values = _rates(draws[:, right] @ classes[true[right]], draws @ classes[true], draws @ classes[predicted])
    if top5_hits is not None:
        values["top5"] = random.binomial(samples, top5_hits / samples, size=resamples) / samples
    bounds = {name: np.percentile(values[name], (2.5, 97.5)) for name in METRICS if name in values}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


def judge(scores: Tensor, labels: Tensor) -> Scores:
    """Score predictions `[N,K]` against `labels` `[N]`, without intervals."""
    matrix = confusion(scores, labels, scores.shape[1])
    return Scores(metrics(matrix, count_top5(scores, labels)), {}, matrix, int(matrix.sum()))


def with_intervals(scores: Scores, seed: int) -> Scores:
    """Return the same scores with their bootstrap intervals."""
    top5 = scores.values.get("top5")
    hits = None if top5 is None else round(top5 * scores.samples)
    return replace(scores, intervals=bootstrap(scores.confusion, hits, seed))


def _rates(right: Array, true: Array, predicted: Array) -> dict[str, Array]:
    """The metrics of per-class counts `[...,K]`: right predictions, true labels, predictions."""
    samples = true.sum(-1)
    recall = right / np.maximum(true, 1)
    f1 = 2 * right / np.maximum(true + predicted, 1)
    return {
        "top1": right.sum(-1) / samples,
        "mean_per_class": recall.sum(-1) / (true > 0).sum(-1),
        "macro_f1": f1.sum(-1) / (true + predicted > 0).sum(-1),
        "weighted_f1": (f1 * true).sum(-1) / samples,
    }


def _known(values: Array, known: Array) -> tuple[float | None, ...]:
    """The values of classes, None where they are not `known`."""
    return tuple(value if there else None for value, there in zip(values.tolist(), known.tolist(), strict=True))
