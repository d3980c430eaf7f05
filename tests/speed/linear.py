"""The linear protocol's path of 45 strengths against scikit-learn's LogisticRegression, in one run on the same threads.

Features such as an encoder gives: not negative, of decaying variance, their mean far from 0. scikit-learn goes the
same way (lbfgs, warm start, strongest first). Its tolerance is on the mean gradient, which nearly vanishes at weak
strengths, so as it comes it stops short of nearly every optimum. It is measured twice: as it comes, over the whole
path, in float32 and in float64; and with `TIGHT` in float32, which brings it to within 1e-4 of the minimum at the
strengths from 1e5 to 1. For weaker ones it takes tolerances that cost it many times more.

"Off" is the largest (objective - minimum) / minimum of the strengths, computed in float64 from coefficients, "p" the
largest difference of a probability on 2,000 samples not seen. The minimum is that of the same path solved a thousand
times as closely as the protocol does, so both are held to the same measure.

python -m tests.speed.linear [--repeats 3]
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.evaluation.linear import PATH_TOLERANCE, STRENGTHS, Features, path
from tests.speed.figures import Figure, Taken, alternate, main, ratio

SAMPLES, DIM, CLASSES, LATENT = 5000, 512, 100, 128
ALL = sorted(STRENGTHS, reverse=True)
STRONG = ALL[:21]  # 1e5 to 1
DEFAULT, TIGHT = 1e-4, 1e-6  # scikit-learn's tol
CPU_GOAL, GPU_GOAL = 3.0, 20.0

Optima = list[tuple[Tensor, Tensor]]  # weight [K,D] and bias [K] of each strength


def draw(samples: int, seed: int) -> Features:
    """Classes in a latent space of decaying variance, seen through two layers of ReLU."""
    fixed, own = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, LATENT, generator=fixed)
    first = torch.randn(LATENT, 2 * DIM, generator=fixed) / LATENT**0.5
    second = torch.randn(2 * DIM, DIM, generator=fixed) / (DIM / 2) ** 0.5
    offset = 0.3 * torch.randn(DIM, generator=fixed)
    y = torch.randint(CLASSES, (samples,), generator=own)
    latent = centres[y] + torch.randn(samples, LATENT, generator=own)
    hidden = torch.relu(4 * latent * torch.arange(1, LATENT + 1) ** -0.5 @ first)
    noise = 0.05 * torch.randn(samples, DIM, generator=own)
    return Features(torch.relu(hidden @ second + offset + noise), y)


def ours(train: Features, strengths: Sequence[float], tolerance: float = PATH_TOLERANCE) -> Optima:
    """The protocol's path."""
    found = [(probe.weight, probe.bias) for probe in path(train, CLASSES, strengths, tolerance)]
    return [(weight.cpu(), bias.cpu()) for weight, bias in found]


def sklearns(train: Features, strengths: Sequence[float], tol: float, dtype: str) -> Optima:
    """scikit-learn's LogisticRegression (lbfgs), warm-started along the same path."""
    x, y = train.x.numpy().astype(dtype), train.y.numpy()
    model = LogisticRegression(tol=tol, max_iter=100_000, warm_start=True)
    found = []
    for strength in strengths:
        model.set_params(C=1 / strength).fit(x, y)
        found.append((torch.tensor(model.coef_).double(), torch.tensor(model.intercept_).double()))
    return found


class Truth:
    """The minima along the path, and how far others are from them."""

    def __init__(self, train: Features, new: Features) -> None:
        self.x, self.y, self.new = train.x.double(), train.y, new.x.double()
        self.optima = ours(train, ALL, PATH_TOLERANCE / 1000)

    def off(self, optima: Optima) -> str:
        """How far off, at worst, in words."""
        pairs = list(zip(ALL, optima, self.optima, strict=False))
        excess = max(self._objective(s, *mine) / self._objective(s, *best) - 1 for s, mine, best in pairs)
        apart = max(float((self._odds(*mine) - self._odds(*best)).abs().max()) for _, mine, best in pairs)
        return f"off {excess:.1g}, p {apart:.1g}"

    def _objective(self, strength: float, weight: Tensor, bias: Tensor) -> float:
        loss = cross_entropy(self.x @ weight.T + bias, self.y, reduction="sum")
        return float(loss) + strength / 2 * float(weight.square().sum())

    def _odds(self, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.softmax(self.new @ weight.T + bias, 1)


def measure(arguments: argparse.Namespace) -> Sequence[Figure]:
    """Both comparisons, and the GPU's where there is one."""
    warnings.simplefilter("ignore")  # scikit-learn's line search gives up where float32 sees no decrease
    train, new = draw(SAMPLES, 0), draw(2000, 1)
    truth = Truth(train, new)
    things: dict[str, Callable[[], Optima]] = {
        "ours": partial(ours, train, ALL),
        "float32": partial(sklearns, train, ALL, DEFAULT, "float32"),
        "float64": partial(sklearns, train, ALL, DEFAULT, "float64"),
        "ours to 1": partial(ours, train, STRONG),
        "tight": partial(sklearns, train, STRONG, TIGHT, "float32"),
    }
    if torch.cuda.is_available():
        things["GPU"] = partial(ours, Features(train.x.cuda(), train.y.cuda()), ALL)
    found: dict[str, Optima] = {}
    runs = {name: partial(_keep, found, name, thing) for name, thing in things.items()}
    taken = alternate(runs, arguments.repeats, warm=0)
    return _figures(taken, {name: truth.off(optima) for name, optima in found.items()})


def _keep(found: dict[str, Optima], name: str, thing: Callable[[], Optima]) -> None:
    found[name] = thing()


def _figures(taken: dict[str, Taken], off: dict[str, str]) -> list[Figure]:
    def shown(name: str) -> str:
        one = taken[name]
        return f"{one.seconds:.2f} s ({statistics.median(one.cpu):.2f} s CPU; {off[name]})"

    where = f"{torch.get_num_threads()} threads, scikit-learn {version('scikit-learn')}, torch {torch.__version__}"
    default = min(("float32", "float64"), key=lambda name: taken[name].seconds)
    both = f"scikit-learn as it comes float32 {shown('float32')}, float64 {shown('float64')}; {where}"
    figures = [
        Figure(
            "linear, 21 strengths from 1e5 to 1, both at the optimum",
            f"ours {shown('ours to 1')}, scikit-learn tol={TIGHT:g} float32 {shown('tight')}; {where}",
            ratio(taken["tight"], taken["ours to 1"]),
            "x",
            CPU_GOAL,
        ),
        Figure(
            "linear, 45 strengths, scikit-learn as it comes, short of the optimum",
            f"ours {shown('ours')}, {both}",
            ratio(taken[default], taken["ours"]),
            "x",
            CPU_GOAL,
        ),
    ]
    if "GPU" in taken:
        what = "linear, 45 strengths on the GPU, against scikit-learn as it comes on the CPU"
        figures.append(Figure(what, f"ours {shown('GPU')}, {both}", ratio(taken[default], taken["GPU"]), "x", GPU_GOAL))
    return figures


if __name__ == "__main__":
    main(measure, "the linear protocol's path beside scikit-learn's", repeats=3)
