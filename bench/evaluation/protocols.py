"""Protocols in two steps: `select` sees train and validation, `score` then looks at test once.

`select` cannot be given test data, so nothing that it returns can depend on it; what predicts test sees no label of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from bench.errors import UnknownName
from bench.evaluation import finetune, knn, linear
from bench.evaluation.examples import Examples, Images
from bench.evaluation.finetune import Finetune, Tuning
from bench.evaluation.linear import STRENGTHS, choose_strength
from bench.evaluation.metrics import Scores, judge, with_intervals

QUICK_STRENGTHS = STRENGTHS[2::5]
QUICK_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Task:
    """What is asked on one dataset, apart from its images: `metric` is what validation chooses by.

    `seed` draws the views of finetune and the bootstrap intervals.
    """

    classes: int
    metric: str
    seed: int = 0
    finetune: Finetune = field(default_factory=Finetune)


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
    task: Task
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
    """A protocol's steps: settle its variants on train and validation, and predict scores `[N,K]` of images with one.

    What predicts is fitted on the examples given first.
    """

    version: int
    summary: str
    variants: Callable[[Examples, Examples, Task], tuple[Variant, ...]]
    predict: Callable[[Examples, Images, Variant, Task], Tensor]


def _linear_variants(train: Examples, val: Examples, task: Task) -> tuple[Variant, ...]:
    choice = choose_strength(train.features, val.features, task.classes, metric=task.metric)
    return (Variant("", {"l2": choice.strength}, choice.scores),)


def _linear_predict(known: Examples, images: Images, variant: Variant, task: Task) -> Tensor:
    return linear.fit(known.features, variant.chosen["l2"], task.classes).scores(images.features)


def _knn_variants(train: Examples, val: Examples, task: Task) -> tuple[Variant, ...]:
    found = []
    for k in knn.NEIGHBOURS:
        scores = knn.knn_scores(train.features, val.features.x, task.classes, k)
        found.append(Variant(f"k={k}", {"k": float(k)}, judge(scores, val.labels)))
    return tuple(found)


def _knn_predict(known: Examples, images: Images, variant: Variant, task: Task) -> Tensor:
    return knn.knn_scores(known.features, images.features, task.classes, int(variant.chosen["k"]))


def _finetune_variants(train: Examples, val: Examples, task: Task) -> tuple[Variant, ...]:
    return tuple(
        Variant(part, *Tuning(part, task.finetune, task.classes, task.seed).choose(train, val, task.metric))
        for part in task.finetune.variants
    )


def _finetune_predict(known: Examples, images: Images, variant: Variant, task: Task) -> Tensor:
    part = next(part for part in finetune.PARTS if part == variant.name)
    tuning = Tuning(part, task.finetune, task.classes, task.seed)
    return finetune.predict(tuning.fit(known, variant.chosen), images)


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
    "finetune": Protocol(
        finetune.VERSION,
        "the last stage or the whole encoder trained on, SGD and cosine, grid chosen on validation, refit on train+val",
        _finetune_variants,
        _finetune_predict,
    ),
}


def find_protocol(name: str) -> Protocol:
    """Return a protocol by name; UnknownName names the nearest."""
    if name not in PROTOCOLS:
        raise UnknownName("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def select(protocol: str, train: Examples, val: Examples, task: Task) -> Selected:
    """Settle everything that the protocol leaves open, by the task's metric on validation; of equals the first."""
    variants = find_protocol(protocol).variants(train, val, task)
    best = max(variants, key=lambda variant: variant.scores.value(task.metric))
    return Selected(protocol, task, variants, best.name)


def score(selected: Selected, train: Examples, val: Examples, test: Examples) -> list[Result]:
    """Refit each variant on train+val and score test once.

    Returns two results per variant: "val" as selected (fit on train alone) and "test".
    """
    protocol, task = find_protocol(selected.protocol), selected.task
    both = train.join(val)
    results = []
    for variant in selected.variants:
        predicted = protocol.predict(both, test.images, variant, task)
        splits = {"val": variant.scores, "test": judge(predicted, test.labels)}
        results += [
            Result(
                selected.protocol,
                variant.name,
                split,
                with_intervals(scores, task.seed),
                variant.chosen,
                protocol.version,
                variant.name == selected.headline,
            )
            for split, scores in splits.items()
        ]
    return results


def quick_objective(train: Examples, val: Examples, task: Task) -> float:
    """Return the linear protocol's validation metric from 9 of the 45 strengths, solved roughly.

    For pruning in the middle of training; selection bias makes it an optimistic figure, never one to report.
    """
    choice = choose_strength(train.features, val.features, task.classes, QUICK_STRENGTHS, task.metric, QUICK_TOLERANCE)
    return choice.scores.value(task.metric)
