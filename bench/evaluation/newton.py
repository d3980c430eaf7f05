"""Newton steps on the objective of `logistic`: by conjugate gradients, or by factors of the whole Hessian.

Conjugate gradients in float32 are the fast way as long as the approximate Hessian is a good preconditioner. Where weak
penalties leave samples that are all but certain, it is not: the features of barely trained networks took
thousands of products a strength. Few classes and axes then have the whole Hessian factored instead, in float64.
"""

import math
from dataclasses import dataclass

import torch
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor

PRODUCTS = 500  # Hessian products of one step: 1 to 25 are usual
LONG = 250  # products after which factors are the faster way, where the system is small enough for them
FACTORED = 4000  # coefficients at most of a system that is factored: 128 MB for the Hessian, as much for its factors
SINGLE = 1e-9  # share of a step's decrease below which float32 cannot see what is left
CAUTION = 4.0  # stop at this fraction of what is allowed


@dataclass(frozen=True)
class Problem:
    """Samples `z` float64 `[N,R+1]` (the last column 1), `y` `[N,1]` in 0..P-1, and the penalty of each column."""

    z: Tensor
    y: Tensor
    single: Tensor  # z in float32
    spread: Tensor  # of each column, the sum of squares
    penalty: Tensor


@dataclass(frozen=True)
class Point:
    """A place on the objective: coefficients and gradient `[P,R+1]`, residuals p - onehot(y) `[N,P]`, own p `[N,1]`."""

    w: Tensor
    value: float
    gradient: Tensor
    residual: Tensor
    own: Tensor


@dataclass(frozen=True)
class Step:
    """A Newton step `[P,R+1]`, how it changes logits `[N,P]`, how far above the minimum it ends.

    `softest`: the Hessian's least eigenvalue relative to the preconditioner, as far as it was met.
    """

    step: Tensor
    change: Tensor
    left: float
    softest: float


def direct(problem: Problem, here: Point, softest: float) -> Step | None:
    """The step by Cholesky's factors of the whole Hessian; None where it has none in float64."""
    z, y = problem.z, problem.y
    classes, width = here.w.shape
    p = here.residual.scatter(1, y, here.own)
    spare = (1 - p).scatter(1, y, -here.residual.gather(1, y))  # exact where p is all but 1
    hessian = z.new_zeros(classes, width, classes, width)
    for a in range(classes):
        for b in range(a + 1):
            share = p[:, a] * spare[:, a] if a == b else -p[:, a] * p[:, b]
            hessian[a, :, b] = hessian[b, :, a] = z.T @ (z * share[:, None])
        hessian[a, :, a].diagonal().add_(problem.penalty)
    # All intercepts moving together change nothing: a weight on that leaves the solution and makes it the only one.
    intercepts = hessian[:, -1, :, -1]
    intercepts += intercepts.diagonal().mean()
    whole = hessian.view(classes * width, -1)
    factors, wrong = torch.linalg.cholesky_ex(whole)
    if int(wrong):
        return None
    gradient = here.gradient.reshape(-1, 1)
    step = -torch.cholesky_solve(gradient, factors)
    rest = -gradient - whole @ step
    better = torch.cholesky_solve(rest, factors)  # what rounding left, whose size it says
    linear = abs(float(rest.T @ better))
    step = _centred((step + better).view(classes, width))
    change = z @ step.T
    change -= change.gather(1, y)
    bend, widest = _bend(p, change)
    return Step(step, change, _left(linear, bend, widest), softest)


def _left(linear: float, bend: float, widest: float) -> float:
    """A bound on the gap after a step, from what its linear system left and from what `_bend` gives."""
    return 0.5 * math.exp(min(widest, 100.0)) * (math.sqrt(linear) + math.sqrt(bend)) ** 2


class Conjugate:
    """One Newton system, in float32 and for a gradient of length 1."""

    products = 0

    def __init__(self, problem: Problem, here: Point, softest: float) -> None:
        self.z, self.y, self.known = problem.single, problem.y, softest
        self.length = float(here.gradient.norm()) or 1.0
        self.gradient = (here.gradient / self.length).float()
        self.p = here.residual.float().scatter_(1, self.y, here.own.float())
        self.penalty = problem.penalty.float()
        self.turn, self.scale = self._curvature(problem)

    def solve(self, target: float, most: int) -> Step:
        """Preconditioned conjugate gradients (Nocedal & Wright 2006, algorithm 5.3), until about `target` is left.

        After `most` products they stop as far as they have come; `products` says how many there were.

        They also stop where more of them would gain less than the objective's bend along the step takes away. What is
        left is measured in the norm of the preconditioner's inverse; divided by the softest eigenvalue known it is
        no less than in that of the Hessian's inverse.
        """
        step, change = torch.zeros_like(self.gradient), torch.zeros_like(self.p)
        residual = -self.gradient
        direction = self._precondition(residual)
        norm = first = check = dot(residual, direction)
        allowed, bend, widest = 2 * target / CAUTION / self.length**2, 0.0, 0.0
        factors: list[float] = []
        ratios: list[float] = []
        for _ in range(most):
            if norm <= max(allowed, 0.1 * check):
                check = norm
                bend, widest = _bend(self.p, change * self.length)
                bend /= self.length**2
                if norm <= min(self.known, _softest(factors, ratios)) * max(allowed, bend / 4, SINGLE * first):
                    break
            moved, product = self._product(direction)
            factors.append(norm / dot(direction, product))
            step.add_(direction, alpha=factors[-1])
            change.add_(moved, alpha=factors[-1])
            residual.sub_(product, alpha=factors[-1])
            better = self._precondition(residual)
            norm, before = dot(residual, better), norm
            ratios.append(norm / before)
            direction = torch.add(better, direction, alpha=ratios[-1])
        met = _softest(factors, ratios)
        linear = max(norm, SINGLE * first) / min(self.known, met)
        left = self.length**2 * _left(linear, bend, widest)
        self.products = len(factors)
        return Step(_centred(step.double()) * self.length, change * self.length, left, met)

    def _product(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """The change of logits `[N,P]` along a direction, relative to the own class, and the Hessian's product.

        Relative, since 1 - p would be lost where p is all but 1.
        """
        moved = self.z @ direction.T
        moved.sub_(moved.gather(1, self.y))
        pulled = moved * self.p
        pulled.addcmul_(self.p, pulled.sum(1, keepdim=True), value=-1)
        return moved, _centred(torch.addmm(self.penalty * direction, pulled.T, self.z))

    def _curvature(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Diagonalise the approximate Hessian: the class axes `[P,P]` and the diagonal `[P,R+1]` in them.

        The rows of G sum to 0: its diagonal is taken from the rest, where nothing cancels.
        """
        pairs = (self.p.T @ self.p).double().cpu().fill_diagonal_(0) / len(self.p)  # small: the host is faster
        share, turn = torch.linalg.eigh(torch.diag(pairs.sum(1)) - pairs)
        share = share.clamp(min=max(1e-9 * float(share[-1]), 1e-30)).to(problem.spread)
        return turn.to(self.p), (share[:, None] * problem.spread + problem.penalty).float()

    def _precondition(self, residual: Tensor) -> Tensor:
        """All classes moving together changes no probability: keep rounding from piling up there."""
        return _centred(self.turn @ ((self.turn.T @ residual) / self.scale))


def _bend(p: Tensor, change: Tensor) -> tuple[float, float]:
    """How much of a step that changes logits `[N,P]` by `change` the objective's bend spoils, and the widest change.

    While sample i's logits move by t u, its probabilities keep within factors exp(-t r) and exp(t r), r the
    range of u; so does its Hessian G_i(t), because a variance is the least mean square about any centre (the
    generalised self-concordance of Bach 2010). So the gradient that the whole step leaves is that of the linear
    system plus Z' e, e_i = integral over t of (G_i(t) - G_i) u, whose squared norm in the inverse of the Hessian
    is at most the sum of ((exp(r) - 1 - r) / r)^2 u' G_i u. The gap is at most half of exp(r) times the squared
    sum of both norms.
    """
    low, high = torch.aminmax(change, dim=1)
    width = (high - low).clamp_(min=1e-6).double()
    mean = (p * change).sum(1, keepdim=True)
    variance = (p * (change - mean).square_()).sum(1)
    factor = (width.clamp(max=100.0).expm1() - width) / width
    spoilt, widest = torch.stack([(variance * factor.square()).sum(), width.max()]).tolist()
    return spoilt, widest


def _softest(factors: list[float], ratios: list[float]) -> float:
    """The Hessian's least eigenvalue relative to the preconditioner, as far as conjugate gradients have met it.

    Their factors make the tridiagonal matrix of Lanczos (Golub & Van Loan 2013, section 10.2.6).
    """
    if not factors:
        return 1.0
    diagonal = [1 / a + b / c for a, b, c in zip(factors, [0.0, *ratios], [1.0, *factors], strict=False)]
    beside = [math.sqrt(b) / a for a, b in zip(factors, ratios[: len(factors) - 1], strict=False)]
    return min(1.0, float(eigvalsh_tridiagonal(diagonal, beside)[0]))


def _centred(w: Tensor) -> Tensor:
    return w - w.mean(0)


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product of two tensors of one shape."""
    return float(torch.dot(a.flatten(), b.flatten()))
