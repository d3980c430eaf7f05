"""Optima of L2-regularised multinomial logistic regression along a path of strengths.

For centred principal axes z_i `[R]` of the features the objective, in sums of nats, is

    sum_i cross_entropy(W [z_i, 1], y_i) + l/2 |W|^2        (the last column of W, the intercept, is not penalised)

On principal axes its Hessian is nearly diagonal: about G (x) Z'Z + l, where G = mean_i(diag p_i - p_i p_i') is
[P,P]. Along a path from strong to weak the optimum is extrapolated over log l and from there found by Newton's
method: value and gradient in float64, each step by conjugate gradients in float32 with that approximate Hessian as
preconditioner (truncated Newton: Nocedal & Wright 2006, algorithm 7.1). How far from quadratic the objective is
along a step is bounded (`_Newton._bend`). This says how far the conjugate gradients are worth carrying, and mostly
that the step has arrived, which saves the evaluation that would see it.
"""

import math
from dataclasses import dataclass

import torch
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor

STEPS = 100  # Newton steps of one strength: 1 or 2 are usual
PRODUCTS = 500  # Hessian products of one step: 1 to 25 are usual
SINGLE = 1e-9  # share of a step's decrease below which float32 cannot see what is left
CAUTION = 4.0  # stop at this fraction of what is allowed
FADE = 0.9  # power with which the softest direction is forgotten from strength to strength


@dataclass(frozen=True)
class Optimum:
    """Coefficients float64 `[P,R+1]`, the objective there, and the estimate of how far above its minimum that is."""

    w: Tensor
    value: float
    gap: float


@dataclass(frozen=True)
class _Point:
    """A place on the objective: coefficients and gradient `[P,R+1]`, residuals p - onehot(y) `[N,P]`, own p `[N,1]`."""

    w: Tensor
    value: float
    gradient: Tensor
    residual: Tensor
    own: Tensor


@dataclass(frozen=True)
class _Step:
    """A Newton step `[P,R+1]`, how it changes logits `[N,P]`, how far above the minimum it ends, `_softest`."""

    step: Tensor
    change: Tensor
    left: float
    softest: float


class Path:
    """Successive optima of one training set: `z` float64 `[N,R]` on principal axes and centred, `y` `[N]` in 0..P-1."""

    def __init__(self, z: Tensor, y: Tensor, classes: int) -> None:
        self.y = y[:, None]
        self.z = torch.cat([z, z.new_ones(len(z), 1)], 1)
        self.single = self.z.float()
        self.spread = self.z.square().sum(0)
        self.penalty = torch.zeros_like(self.spread)
        self.start = z.new_zeros(classes, len(self.spread))
        self.softest = 1.0  # least eigenvalue relative to the preconditioner, as the steps so far met it
        self.solved: list[tuple[float, Tensor]] = []  # (log l, w) of the last three

    def solve(self, l2: float, tolerance: float) -> Optimum:
        """Solve the next strength to within tolerance * min(1, objective), from what the ones before it foretell."""
        self.penalty[:-1] = l2
        found = self._descend(self._predict(math.log(l2)), tolerance)
        self.solved = [*self.solved[-2:], (math.log(l2), found.w)]
        return found

    def _predict(self, place: float) -> Tensor:
        """Extrapolate the last optima to a log strength, by the polynomial through them."""
        places = [known for known, _ in self.solved]
        guess = self.start.clone()
        for known, w in self.solved:
            factor = math.prod((place - other) / (known - other) for other in places if other != known)
            guess.add_(w, alpha=factor)
        return guess

    def _descend(self, w: Tensor, tolerance: float) -> Optimum:
        here = self._evaluate(w)
        gap = math.inf
        for _ in range(STEPS):
            target = tolerance * min(1.0, here.value)
            newton = _Newton(self, here).solve(target)
            gap, self.softest = newton.left, min(newton.softest, self.softest**FADE)
            if gap <= target:
                w = here.w + newton.step
                return Optimum(w, self._value(w, here, newton.change), gap)
            found = self._search(here, newton.step)
            if found is None:  # no decrease left that float64 can see
                break
            here = found
        return Optimum(here.w, here.value, gap)

    def _search(self, here: _Point, step: Tensor) -> _Point | None:
        """Shorten the step until the value falls and the slope has not turned; the function is convex."""
        slope = _dot(step, here.gradient)
        length = 1.0
        while length > 1e-10:
            new = self._evaluate(torch.add(here.w, step, alpha=length))
            end = _dot(step, new.gradient)
            if new.value <= here.value + 1e-14 * abs(here.value) and end <= -0.9 * slope:
                return new
            secant = slope / (slope - end) if end > slope else 0.5
            length *= min(0.5, max(0.1, secant))
        return None

    def _evaluate(self, w: Tensor) -> _Point:
        """The objective and its gradient, with 1 - p of the own class as the sum of the others.

        So it is exact where p is all but 1, which weak strengths live on. The bound on the difference of two
        logits only ever meets a step that is too long.
        """
        odds = self.z @ w.T
        odds.sub_(odds.gather(1, self.y)).clamp_(max=600.0).exp_().scatter_(1, self.y, 0.0)
        others = odds.sum(1, keepdim=True)
        own = 1 / (1 + others)
        residual = odds.mul_(own).scatter_(1, self.y, -others * own)
        penalty = self.penalty * w
        value = float(0.5 * _dot(penalty, w) + others.log1p().sum())
        return _Point(w, value, torch.addmm(penalty, residual.T, self.z), residual, own)

    def _value(self, w: Tensor, here: _Point, change: Tensor) -> float:
        """The objective at `w`, whose logits differ from those `here` by `change`, without another product with Z."""
        odds = change.double().exp_().mul_(here.residual).scatter_(1, self.y, 0.0)
        return float(0.5 * _dot(self.penalty * w, w) + (odds.sum(1, keepdim=True) / here.own).log1p().sum())


class _Newton:
    """One Newton system, in float32 and for a gradient of length 1."""

    def __init__(self, path: Path, here: _Point) -> None:
        self.z, self.y, self.known = path.single, path.y, path.softest
        self.length = float(here.gradient.norm()) or 1.0
        self.gradient = (here.gradient / self.length).float()
        self.p = here.residual.float().scatter_(1, self.y, here.own.float())
        self.penalty = path.penalty.float()
        self.turn, self.scale = self._curvature(path)

    def solve(self, target: float) -> _Step:
        """Preconditioned conjugate gradients (Nocedal & Wright 2006, algorithm 5.3), until about `target` is left.

        They also stop where more of them would gain less than the objective's bend along the step takes away. What is
        left is measured in the norm of the preconditioner's inverse; divided by the softest eigenvalue known it is
        no less than in that of the Hessian's inverse.
        """
        step, change = torch.zeros_like(self.gradient), torch.zeros_like(self.p)
        residual = -self.gradient
        direction = self._precondition(residual)
        norm = first = check = _dot(residual, direction)
        allowed, bend, widest = 2 * target / CAUTION / self.length**2, 0.0, 0.0
        factors: list[float] = []
        ratios: list[float] = []
        for _ in range(PRODUCTS):
            if norm <= max(allowed, 0.1 * check):
                check = norm
                bend, widest = self._bend(change)
                if norm <= min(self.known, _softest(factors, ratios)) * max(allowed, bend / 4, SINGLE * first):
                    break
            moved, product = self._product(direction)
            factors.append(norm / _dot(direction, product))
            step.add_(direction, alpha=factors[-1])
            change.add_(moved, alpha=factors[-1])
            residual.sub_(product, alpha=factors[-1])
            better = self._precondition(residual)
            norm, before = _dot(residual, better), norm
            ratios.append(norm / before)
            direction = torch.add(better, direction, alpha=ratios[-1])
        met = _softest(factors, ratios)
        linear = max(norm, SINGLE * first) / min(self.known, met)
        left = 0.5 * self.length**2 * math.exp(min(widest, 100.0)) * (math.sqrt(linear) + math.sqrt(bend)) ** 2
        return _Step(_centred(step.double()) * self.length, change * self.length, left, met)

    def _product(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """The change of logits `[N,P]` along a direction, relative to the own class, and the Hessian's product.

        Relative, since 1 - p would be lost where p is all but 1.
        """
        moved = self.z @ direction.T
        moved.sub_(moved.gather(1, self.y))
        pulled = moved * self.p
        pulled.addcmul_(self.p, pulled.sum(1, keepdim=True), value=-1)
        return moved, _centred(torch.addmm(self.penalty * direction, pulled.T, self.z))

    def _bend(self, change: Tensor) -> tuple[float, float]:
        """How much of a step that changes logits by `change` the objective's bend spoils, and the widest change.

        While sample i's logits move by t u, its probabilities keep within factors exp(-t r) and exp(t r), r the
        range of u; so does its Hessian G_i(t), because a variance is the least mean square about any centre (the
        generalised self-concordance of Bach 2010). So the gradient that the whole step leaves is that of the linear
        system plus Z' e, e_i = integral over t of (G_i(t) - G_i) u, whose squared norm in the inverse of the Hessian
        is at most the sum of ((exp(r) - 1 - r) / r)^2 u' G_i u. The gap is at most half of exp(r) times the squared
        sum of both norms.
        """
        change = change * self.length
        low, high = torch.aminmax(change, dim=1)
        width = (high - low).clamp_(min=1e-6).double()
        mean = (self.p * change).sum(1, keepdim=True)
        variance = (self.p * (change - mean).square_()).sum(1)
        factor = (width.clamp(max=100.0).expm1() - width) / width
        spoilt, widest = torch.stack([(variance * factor.square()).sum(), width.max()]).tolist()
        return spoilt / self.length**2, widest

    def _curvature(self, path: Path) -> tuple[Tensor, Tensor]:
        """Diagonalise the approximate Hessian: the class axes `[P,P]` and the diagonal `[P,R+1]` in them.

        The rows of G sum to 0: its diagonal is taken from the rest, where nothing cancels.
        """
        pairs = (self.p.T @ self.p).double().cpu().fill_diagonal_(0) / len(self.p)  # small: the host is faster
        share, turn = torch.linalg.eigh(torch.diag(pairs.sum(1)) - pairs)
        share = share.clamp(min=max(1e-9 * float(share[-1]), 1e-30)).to(path.spread)
        return turn.to(self.p), (share[:, None] * path.spread + path.penalty).float()

    def _precondition(self, residual: Tensor) -> Tensor:
        """All classes moving together changes no probability: keep rounding from piling up there."""
        return _centred(self.turn @ ((self.turn.T @ residual) / self.scale))


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


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.flatten(), b.flatten()))
