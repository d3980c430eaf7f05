"""The linear protocol: multinomial logistic regression on frozen features (Kornblith et al. 2019, appendix A).

For features x_i (as the encoder gives them: neither centred nor scaled), labels y_i and strength l it minimises

    sum_i cross_entropy(W x_i + b, y_i) + l/2 |W|^2         (the intercept b is not penalised)

which is scikit-learn's LogisticRegression(C=1/l). Like scikit-learn, two classes share one weight vector
w = w_1 - w_0 with penalty l/2 |w|^2. Classes that the training data lacks are never predicted.
How it is solved: `bench.evaluation.logistic`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.errors import BadData, BadInput, TrialFailed
from bench.evaluation.logistic import Path
from bench.evaluation.metrics import Scores, judge

VERSION = 2
STRENGTHS: tuple[float, ...] = tuple(10 ** (-6 + 11 * i / 44) for i in range(45))

# Where to stop: objective - minimum <= tolerance * min(1, objective), in sums of nats.
PATH_TOLERANCE = 1e-5
FIT_TOLERANCE = 1e-10
ROUGH = 1e-3  # tolerance of the strengths that only lead to the wanted one


@dataclass(frozen=True)
class Features:
    """Frozen features `x` float `[N,D]` and class numbers `y` int64 `[N]` of one split.

    Raises TrialFailed for features that are not finite, BadData for an empty or inconsistent pair.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.dim() != 2 or self.y.dim() != 1 or len(self.x) != len(self.y):
            shapes = f"{tuple(self.x.shape)} and {tuple(self.y.shape)}"
            raise BadData(f"features and labels must be [N,D] and [N], got {shapes}")
        if len(self.x) == 0:
            raise BadData("no sample to evaluate: the split is empty")
        if not bool(torch.isfinite(self.x).all()):
            rows = int((~torch.isfinite(self.x)).any(1).sum())
            raise TrialFailed(f"features of {rows} of {len(self.x)} samples are NaN or infinite")

    def __len__(self) -> int:
        return len(self.x)

    def join(self, other: "Features") -> "Features":
        """Return the samples of both, these first."""
        return Features(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]))


@dataclass(frozen=True)
class LinearProbe:
    """A solved classifier: `weight` float64 `[K,D]`, `bias` float64 `[K]` (-inf for a class without samples).

    `objective` is the minimised sum in nats, `gap` the estimate of how far above its minimum it is.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    objective: float
    gap: float

    def scores(self, x: Tensor) -> Tensor:
        """Return logits float64 `[N,K]` of features `[N,D]`."""
        return x.to(self.weight) @ self.weight.T + self.bias


@dataclass(frozen=True)
class Choice:
    """What validation chose: the strength, its validation scores, and the metric of every strength tried."""

    strength: float
    scores: Scores
    accuracies: dict[float, float]


def choose_strength(
    train: Features,
    val: Features,
    classes: int,
    strengths: Sequence[float] = STRENGTHS,
    metric: str = "top1",
    tolerance: float = PATH_TOLERANCE,
) -> Choice:
    """Fit every strength on `train` and choose by `metric` on `val`; of equals the strongest."""
    best: tuple[float, Scores] | None = None
    accuracies: dict[float, float] = {}
    for probe in path(train, classes, strengths, tolerance):
        scores = judge(probe.scores(val.x), val.y)
        accuracies[probe.strength] = scores.value(metric)
        if best is None or scores.value(metric) > best[1].value(metric):
            best = probe.strength, scores
    if best is None:
        raise BadInput("no strength to choose from")
    return Choice(best[0], best[1], accuracies)


def fit(features: Features, strength: float, classes: int, tolerance: float = FIT_TOLERANCE) -> LinearProbe:
    """Solve one strength, down a rough path of stronger ones where it is weak."""
    steps = math.ceil(2 * max(0.0, 2 - math.log10(strength))) if strength > 0 else 0
    solver = _Solver(features, classes)
    for step in range(steps, 0, -1):
        solver.solve(strength * 10 ** (step / 2), ROUGH)
    return solver.solve(strength, tolerance)


def path(
    features: Features, classes: int, strengths: Sequence[float] = STRENGTHS, tolerance: float = PATH_TOLERANCE
) -> Iterator[LinearProbe]:
    """Yield the probe of every strength, the strongest first."""
    solver = _Solver(features, classes)
    for strength in sorted(set(strengths), reverse=True):
        yield solver.solve(strength, tolerance)


class _Solver:
    """Probes of one training set: the classes it has, the mean of its features, their principal axes."""

    def __init__(self, features: Features, classes: int) -> None:
        low, high = int(features.y.min()), int(features.y.max())
        if low < 0 or high >= classes:
            raise BadData(f"labels must be in 0..{classes - 1}, they are in {low}..{high}")
        self.classes = classes
        self.present, y = torch.unique(features.y.to(features.x.device), return_inverse=True)
        x = features.x.double()
        self.mean = x.mean(0)
        self.axes, z = _principal(x - self.mean)
        self.unit = float(z.square().mean().sqrt()) or 1.0  # whatever features are measured in, float32 can hold them
        self.optima = Path(z / self.unit, y, len(self.present))

    def solve(self, strength: float, tolerance: float) -> LinearProbe:
        """Solve the next strength."""
        if not (math.isfinite(strength) and strength > 0):
            raise BadInput(f"an L2 strength must be above 0 (given: {strength!r})")
        shared = 2 if len(self.present) == 2 else 1
        found = self.optima.solve(shared * strength / self.unit**2, tolerance)
        weight = found.w.new_zeros(self.classes, len(self.mean))
        weight[self.present] = found.w[:, :-1] @ self.axes.T / self.unit
        bias = weight.new_full((self.classes,), -math.inf)
        bias[self.present] = found.w[:, -1] - weight[self.present] @ self.mean
        return LinearProbe(weight, bias, strength, found.value, found.gap)


def _principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal axes `[D,R]` that hold all samples `[N,D]`, R = min(N,D), and the samples in them."""
    axes = None
    if centred.shape[1] > centred.shape[0]:  # the optimum lies in the span of the samples
        axes, inner = torch.linalg.qr(centred.T)
        centred = inner.T
    _, turn = torch.linalg.eigh(centred.T @ centred)
    return turn if axes is None else axes @ turn, centred @ turn
