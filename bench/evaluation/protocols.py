"""Protocols on frozen features, in two steps: `select` sees train and validation, `score` then looks at test once.

`select` cannot be given test data, so nothing that it returns can depend on it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from bench.errors import UnknownName
from bench.evaluation import knn, linear
from bench.evaluation.linear import STRENGTHS, Features, choose_strength
from bench.evaluation.metrics import Scores, judge, with_intervals

QUICK_STRENGTHS = STRENGTHS[2::5]
QUICK_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Variant:
    """One way of running a protocol, settled on validation: its name, what was chosen, validation scores."""

    name: str
    chosen: dict[str, float]
    scores: Scores


@dataclass(frozen=True)
class Selected:
    """All that was settled before test is looked at; `headline` names the variant that is best on validation."""

    protocol: str
    classes: int
    metric: str
    variants: tuple[Variant, ...]
    headline: str

    @property
    def best(self) -> Variant:
        """The headline variant."""
        return next(variant for variant in self.variants if variant.name == self.headline)


@dataclass(frozen=True)
class Result:
    """The scores of one variant on one split ("val" or "test").

    `headline`: whether validation chose this variant; `chosen`: what validation settled, {"l2": 0.01}.
    """

    protocol: str
    variant: str
    split: str
    scores: Scores
    chosen: dict[str, float]
    version: int
    headline: bool


@dataclass(frozen=True)
class Protocol:
    """A protocol's steps: settle its variants on validation, and predict `[N,K]` with one of them."""

    version: int
    summary: str
    variants: Callable[[Features, Features, int, str], tuple[Variant, ...]]
    predict: Callable[[Features, Tensor, int, dict[str, float]], Tensor]


def _linear_variants(train: Features, val: Features, classes: int, metric: str) -> tuple[Variant, ...]:
    choice = choose_strength(train, val, classes, metric=metric)
    return (Variant("", {"l2": choice.strength}, choice.scores),)


def _linear_predict(train: Features, x: Tensor, classes: int, chosen: dict[str, float]) -> Tensor:
    return linear.fit(train, chosen["l2"], classes).scores(x)


def _knn_variants(train: Features, val: Features, classes: int, _metric: str) -> tuple[Variant, ...]:
    return tuple(
        Variant(f"k={k}", {"k": float(k)}, judge(knn.knn_scores(train, val.x, classes, k), val.y))
        for k in knn.NEIGHBOURS
    )


def _knn_predict(train: Features, x: Tensor, classes: int, chosen: dict[str, float]) -> Tensor:
    return knn.knn_scores(train, x, classes, int(chosen["k"]))


PROTOCOLS: dict[str, Protocol] = {
    "linear": Protocol(
        linear.VERSION,
        "logistic regression, L-BFGS, L2 strength of 45 chosen on validation, refit on train+val",
        _linear_variants,
        _linear_predict,
    ),
    "knn": Protocol(
        knn.VERSION,
        "cosine neighbours weighted exp(s/0.07), k = 20 and 200, refit on train+val",
        _knn_variants,
        _knn_predict,
    ),
}


def find_protocol(name: str) -> Protocol:
    """Return a protocol by name; UnknownName names the nearest."""
    if name not in PROTOCOLS:
        raise UnknownName("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def select(protocol: str, train: Features, val: Features, classes: int, metric: str) -> Selected:
    """Settle everything that the protocol leaves open, by `metric` on validation; of equals the first variant."""
    variants = find_protocol(protocol).variants(train, val, classes, metric)
    best = max(variants, key=lambda variant: variant.scores.value(metric))
    return Selected(protocol, classes, metric, variants, best.name)


def score(selected: Selected, train: Features, val: Features, test: Features, seed: int) -> list[Result]:
    """Refit each variant on train+val and score test once; `seed` draws the bootstrap intervals.

    Returns two results per variant: "val" as selected (fit on train alone) and "test".
    """
    protocol = find_protocol(selected.protocol)
    both = train.join(val)
    results = []
    for variant in selected.variants:
        predicted = protocol.predict(both, test.x, selected.classes, variant.chosen)
        splits = {"val": variant.scores, "test": judge(predicted, test.y)}
        results += [
            Result(
                selected.protocol,
                variant.name,
                split,
                with_intervals(scores, seed),
                variant.chosen,
                protocol.version,
                variant.name == selected.headline,
            )
            for split, scores in splits.items()
        ]
    return results


def quick_objective(train: Features, val: Features, classes: int, metric: str) -> float:
    """Return the linear protocol's validation metric from 9 of the 45 strengths, solved roughly.

    For pruning in the middle of training; selection bias makes it an optimistic figure, never one to report.
    """
    choice = choose_strength(train, val, classes, QUICK_STRENGTHS, metric, QUICK_TOLERANCE)
    return choice.scores.value(metric)
