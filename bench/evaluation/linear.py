"""The linear protocol: multinomial logistic regression on frozen features (Kornblith et al. 2019, appendix A).

For features x_i (as the encoder gives them: neither centred nor scaled), labels y_i and strength l it minimises

    sum_i cross_entropy(W x_i + b, y_i) + l/2 |W|^2         (the intercept b is not penalised)

which is scikit-learn's LogisticRegression(C=1/l). Like scikit-learn, two classes share one weight vector
w = w_1 - w_0 with penalty l/2 |w|^2. Classes that the training data lacks are never predicted.

How it is solved: features are centred (which only moves b) and turned into their principal axes (which leaves
|W| as it is), so the optimum is the same and the Hessian is nearly diagonal: about G (x) Z'Z + l, where
G = mean_i(diag p_i - p_i p_i') is [K,K]. The inverse of that is the starting matrix of L-BFGS. Along a path from
strong to weak the optimum is extrapolated over log l, and the curvature pairs of L-BFGS stay true, because a
change of l changes their gradient differences by a known amount. Neither is possible with the L-BFGS of scipy or
torch, hence the one here.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.errors import BadData, BadInput, TrialFailed
from bench.evaluation.metrics import Scores, judge

VERSION = 1
STRENGTHS: tuple[float, ...] = tuple(10 ** (-6 + 11 * i / 44) for i in range(45))

# Where to stop: predicted decrease <= tolerance * min(1, objective), in sums of nats.
PATH_TOLERANCE = 1e-7
FIT_TOLERANCE = 1e-10

MEMORY = 8  # curvature pairs; 20 saves a tenth of the evaluations and costs more than that in time
REFRESH = 25  # steps after which the approximate Hessian is made anew
ITERATIONS = 2000
ROUGH = 1e-4  # tolerance of the strengths that only lead to the wanted one


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

    `objective` is the minimised sum in nats, `gap` the decrease that a further step promised.
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
    solver = _solver(features, classes)
    for step in range(steps, 0, -1):
        solver.solve(strength * 10 ** (step / 2), ROUGH)
    return solver.solve(strength, tolerance)


def path(
    features: Features, classes: int, strengths: Sequence[float] = STRENGTHS, tolerance: float = PATH_TOLERANCE
) -> Iterator[LinearProbe]:
    """Yield the probe of every strength, the strongest first."""
    solver = _solver(features, classes)
    for strength in sorted(set(strengths), reverse=True):
        yield solver.solve(strength, tolerance)


def _solver(features: Features, classes: int) -> "_Path":
    low, high = int(features.y.min()), int(features.y.max())
    if low < 0 or high >= classes:
        raise BadData(f"labels must be in 0..{classes - 1}, they are in {low}..{high}")
    return _Path(features, classes)


class _Path:
    """Successive optima of one training set. Coefficients `w` are `[P,R+1]`: P present classes, R axes, intercept."""

    def __init__(self, features: Features, classes: int) -> None:
        self.classes = classes
        self.present, self.y = torch.unique(features.y.to(features.x.device), return_inverse=True)
        x = features.x.double()
        self.mean = x.mean(0)
        self.axes, z = _principal(x - self.mean)
        self.z = torch.cat([z, z.new_ones(len(z), 1)], 1)
        self.spread = self.z.square().sum(0)
        self.penalised = torch.ones_like(self.spread)
        self.penalised[-1] = 0
        self.l2 = 0.0
        self.solved: list[tuple[float, Tensor]] = []  # (log strength, w) of the last three
        self.pairs: list[tuple[Tensor, Tensor, float]] = []  # (step, gradient difference, their product)

    def solve(self, strength: float, tolerance: float) -> LinearProbe:
        """Solve the next strength, starting from what the ones before it foretell."""
        if not (math.isfinite(strength) and strength > 0):
            raise BadInput(f"an L2 strength must be above 0 (given: {strength!r})")
        self._weaken(strength * (2 if len(self.present) == 2 else 1))
        w, objective, gap = self._descend(self._predict(math.log(strength)), tolerance)
        self.solved = [*self.solved[-2:], (math.log(strength), w)]
        weight = w.new_zeros(self.classes, len(self.mean))
        weight[self.present] = w[:, :-1] @ self.axes.T
        bias = w.new_full((self.classes,), -math.inf)
        bias[self.present] = w[:, -1] - weight[self.present] @ self.mean
        return LinearProbe(weight, bias, strength, objective, gap)

    def _weaken(self, l2: float) -> None:
        """Change the penalty; the curvature pairs follow exactly, since it is quadratic."""
        change = (l2 - self.l2) * self.penalised
        pairs, self.pairs, self.l2 = self.pairs, [], l2
        for step, difference, _ in pairs:
            self._remember(step, torch.addcmul(difference, change, step))

    def _predict(self, place: float) -> Tensor:
        """Extrapolate the last optima to a log strength, by the polynomial through them."""
        if not self.solved:
            return self.z.new_zeros(len(self.present), len(self.spread))
        places = [known for known, _ in self.solved]
        guess = torch.zeros_like(self.solved[0][1])
        for known, w in self.solved:
            factor = math.prod((place - other) / (known - other) for other in places if other != known)
            guess.add_(w, alpha=factor)
        return guess

    def _descend(self, w: Tensor, tolerance: float) -> tuple[Tensor, float, float]:
        """L-BFGS from `w`; returns the optimum, its objective and the decrease still promised."""
        value, gradient, residual = self._evaluate(w)
        gap, age = math.inf, REFRESH
        for _ in range(ITERATIONS):
            if age >= REFRESH:
                (turn, scale), age = self._curvature(residual), 0
            direction = self._direction(gradient, turn, scale)
            slope = _dot(direction, gradient)
            gap = -slope / 2
            if slope > 0 and self.pairs:  # rounding spoilt the pairs: start anew without them
                self.pairs.clear()
            elif gap <= tolerance * min(1.0, value) and age == 0:
                break
            elif gap <= tolerance * min(1.0, value):  # far from where it was made, the Hessian overrates: check
                age = REFRESH
            else:
                found = self._search(w, direction, value, slope)
                if found is None:  # no decrease left that float64 can see
                    break
                new, value, new_gradient, residual = found
                self._remember(new - w, new_gradient - gradient)
                w, gradient, age = new, new_gradient, age + 1
        return w, value, gap

    def _remember(self, step: Tensor, difference: Tensor) -> None:
        """Keep a curvature pair, unless rounding made it useless."""
        product = _dot(step, difference)
        if product > 0:
            self.pairs = [*self.pairs[1 - MEMORY :], (step, difference, product)]

    def _search(
        self, w: Tensor, direction: Tensor, value: float, slope: float
    ) -> tuple[Tensor, float, Tensor, Tensor] | None:
        """Shorten the step until the value falls and the slope has not turned; the function is convex."""
        step = 1.0
        while step > 1e-10:
            new = torch.add(w, direction, alpha=step)
            new_value, gradient, residual = self._evaluate(new)
            end = _dot(direction, gradient)
            if new_value <= value + 1e-14 * abs(value) and end <= -0.9 * slope:
                return new, new_value, gradient, residual
            secant = slope / (slope - end) if end > slope else 0.5
            step *= min(0.5, max(0.1, secant))
        return None

    def _evaluate(self, w: Tensor) -> tuple[float, Tensor, Tensor]:
        """The objective, its gradient `[P,R+1]`, and the residuals p - onehot(y) `[N,P]`."""
        residual = torch.softmax(self.z @ w.T, 1)
        own = residual.gather(1, self.y[:, None])
        # 1 - p as the sum of the others: exact where p is all but 1, which weak strengths live on.
        others = residual.scatter_(1, self.y[:, None], 0.0).sum(1, keepdim=True)
        residual.scatter_(1, self.y[:, None], -others)
        # A probability below 1e-300 only ever ends a step that is too long.
        loss = torch.where(own < 0.5, -own.clamp(min=1e-300).log(), -torch.log1p(-others))
        penalty = self.l2 * self.penalised * w
        value = float(0.5 * _dot(penalty, w) + loss.sum())
        return value, torch.addmm(penalty, residual.T, self.z), residual

    def _curvature(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Diagonalise the approximate Hessian: the class axes `[P,P]` and the diagonal `[P,R+1]` in them."""
        p = residual.scatter_add(1, self.y[:, None], torch.ones_like(residual[:, :1]))
        share, turn = torch.linalg.eigh(torch.diag(p.mean(0)) - p.T @ p / len(p))
        share = share.clamp(min=max(1e-9 * float(share[-1]), 1e-300))
        return turn, share[:, None] * self.spread + self.l2 * self.penalised

    def _direction(self, gradient: Tensor, turn: Tensor, scale: Tensor) -> Tensor:
        """The two-loop recursion of L-BFGS (Nocedal 1980) about the approximate Hessian."""
        work = -gradient
        factors = []
        for step, difference, product in reversed(self.pairs):
            factors.append(_dot(step, work) / product)
            work.add_(difference, alpha=-factors[-1])
        work = turn @ ((turn.T @ work) / scale)
        if self.pairs:  # the last pair says how far off the size of the approximation is
            _, difference, product = self.pairs[-1]
            work *= product / float(((turn.T @ difference).square_() / scale).sum())
        for (step, difference, product), factor in zip(self.pairs, reversed(factors), strict=True):
            work.add_(step, alpha=factor - _dot(difference, work) / product)
        # All classes moving together changes no probability: keep rounding from piling up there.
        return work - work.mean(0)


def _principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal axes `[D,R]` that hold all samples `[N,D]`, R = min(N,D), and the samples in them."""
    axes = None
    if centred.shape[1] > centred.shape[0]:  # the optimum lies in the span of the samples
        axes, inner = torch.linalg.qr(centred.T)
        centred = inner.T
    _, turn = torch.linalg.eigh(centred.T @ centred)
    return turn if axes is None else axes @ turn, centred @ turn


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.flatten(), b.flatten()))
