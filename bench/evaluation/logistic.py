"""Optima of L2-regularised multinomial logistic regression along a path of strengths.

For centred principal axes z_i `[R]` of the features the objective, in sums of nats, is

    sum_i cross_entropy(W [z_i, 1], y_i) + l/2 |W|^2        (the last column of W, the intercept, is not penalised)

On principal axes its Hessian is nearly diagonal: about G (x) Z'Z + l, where G = mean_i(diag p_i - p_i p_i') is
[P,P]. Along a path from strong to weak the optimum is extrapolated over log l and from there found by Newton's
method: value and gradient in float64, each step by conjugate gradients in float32 with that approximate Hessian as
preconditioner (truncated Newton: Nocedal & Wright 2006, algorithm 7.1), or exactly where that takes long. How far from
quadratic the objective is along a step is bounded (`newton._bend`). This says how far the conjugate gradients are
worth carrying, and mostly that the step has arrived, which saves the evaluation that would see it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.evaluation.newton import FACTORED, LONG, PRODUCTS, Conjugate, Point, Problem, Step, direct, dot

STEPS = 100  # Newton steps of one strength: 1 or 2 are usual
FADE = 0.9  # power with which the softest direction is forgotten from strength to strength


@dataclass(frozen=True)
class Optimum:
    """Coefficients float64 `[P,R+1]`, the objective there, and the estimate of how far above its minimum that is."""

    w: Tensor
    value: float
    gap: float


class Path:
    """Successive optima of one training set: `z` float64 `[N,R]` on principal axes and centred, `y` `[N]` in 0..P-1."""

    def __init__(self, z: Tensor, y: Tensor, classes: int) -> None:
        z = torch.cat([z, z.new_ones(len(z), 1)], 1)
        spread = z.square().sum(0)
        self.problem = Problem(z, y[:, None], z.float(), spread, torch.zeros_like(spread))
        self.start = z.new_zeros(classes, z.shape[1])
        self.hard = False  # conjugate gradients were long at the last step
        self.softest = 1.0  # least eigenvalue relative to the preconditioner, as the steps so far met it
        self.solved: list[tuple[float, Tensor]] = []  # (log l, w) of the last three

    def solve(self, l2: float, tolerance: float) -> Optimum:
        """Solve the next strength to within tolerance * min(1, objective), from what the ones before it foretell."""
        self.problem.penalty[:-1] = l2
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
            newton = self._step(here, target)
            gap, self.softest = newton.left, min(newton.softest, self.softest**FADE)
            if gap <= target:
                w = here.w + newton.step
                return Optimum(w, self._value(w, here, newton.change), gap)
            found = self._search(here, newton.step)
            if found is None:  # no decrease left that float64 can see
                break
            here = found
        return Optimum(here.w, here.value, gap)

    def _step(self, here: Point, target: float) -> Step:
        """The Newton step: by conjugate gradients until they are long, from then on by factors where these are few."""
        found = direct(self.problem, here, self.softest) if self.hard else None
        if found is None:
            small = here.w.numel() <= FACTORED
            conjugate = Conjugate(self.problem, here, self.softest)
            found = conjugate.solve(target, LONG if small and not self.hard else PRODUCTS)
            self.hard = small and conjugate.products >= LONG
        return found

    def _search(self, here: Point, step: Tensor) -> Point | None:
        """Shorten the step until the value falls and the slope has not turned; the function is convex."""
        slope = dot(step, here.gradient)
        length = 1.0
        while length > 1e-10:
            new = self._evaluate(torch.add(here.w, step, alpha=length))
            end = dot(step, new.gradient)
            if new.value <= here.value + 1e-14 * abs(here.value) and end <= -0.9 * slope:
                return new
            secant = slope / (slope - end) if end > slope else 0.5
            length *= min(0.5, max(0.1, secant))
        return None

    def _evaluate(self, w: Tensor) -> Point:
        """The objective and its gradient, with 1 - p of the own class as the sum of the others.

        So it is exact where p is all but 1, which weak strengths live on. The bound on the difference of two
        logits only ever meets a step that is too long.
        """
        odds = self.problem.z @ w.T
        odds.sub_(odds.gather(1, self.problem.y)).clamp_(max=600.0).exp_().scatter_(1, self.problem.y, 0.0)
        others = odds.sum(1, keepdim=True)
        own = 1 / (1 + others)
        residual = odds.mul_(own).scatter_(1, self.problem.y, -others * own)
        penalty = self.problem.penalty * w
        value = float(0.5 * dot(penalty, w) + others.log1p().sum())
        return Point(w, value, torch.addmm(penalty, residual.T, self.problem.z), residual, own)

    def _value(self, w: Tensor, here: Point, change: Tensor) -> float:
        """The objective at `w`, whose logits differ from those `here` by `change`, without another product with Z."""
        odds = change.double().exp_().mul_(here.residual).scatter_(1, self.problem.y, 0.0)
        return float(0.5 * dot(self.problem.penalty * w, w) + (odds.sum(1, keepdim=True) / here.own).log1p().sum())
