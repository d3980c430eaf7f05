"""The knn protocol: weighted nearest neighbours by cosine similarity (Wu et al. 2018, section 3.4)."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.errors import BadInput
from bench.evaluation.linear import Features

VERSION = 1
TEMPERATURE = 0.07
NEIGHBOURS = (20, 200)
CELLS = 1 << 24  # similarities held at a time: 64 MiB


def knn_scores(train: Features, x: Tensor, classes: int, k: int) -> Tensor:
    """Return float64 `[N,K]`: for each row of `x` `[N,D]` the weights of its `k` nearest in `train`, by class.

    A neighbour of cosine similarity s weighs exp((s - 1) / 0.07), so at most 1; `k` is clipped to the train
    size; a zero vector is similar to nothing (s = 0). Raises BadInput for k < 1.
    """
    if k < 1:
        raise BadInput(f"k must be at least 1 (given: {k})")
    keys = _unit(train.x)
    labels = train.y.to(keys.device)
    rows = max(1, CELLS // len(train))
    parts = [_vote(_unit(part) @ keys.T, labels, classes, min(k, len(train))) for part in x.split(rows)]
    return torch.cat(parts)


def _vote(similarity: Tensor, labels: Tensor, classes: int, k: int) -> Tensor:
    """Sum the weights of the `k` nearest per class: `[n,M]` similarities -> `[n,K]`."""
    nearest, index = similarity.topk(k, dim=1)
    weights = ((nearest.double() - 1) / TEMPERATURE).exp()
    return weights.new_zeros(len(similarity), classes).scatter_add_(1, labels[index], weights)


def _unit(x: Tensor) -> Tensor:
    """Rows of length one, float32; in float64 meanwhile, so that no square overflows."""
    return normalize(x.double(), dim=1).float()
