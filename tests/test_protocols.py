import inspect
from dataclasses import replace

import pytest
import torch

from bench.data.source import Metric
from bench.errors import TrialFailed, UnknownName
from bench.evaluation import linear, protocols
from bench.evaluation.linear import Features
from bench.evaluation.metrics import METRICS, Scores
from bench.evaluation.protocols import PROTOCOLS, QUICK_STRENGTHS, Selected, quick_objective, score, select

CENTRES = torch.randn(6, 16, generator=torch.Generator().manual_seed(99))


def draw(samples: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 6
    return Features(CENTRES[y] + 1.2 * torch.randn(samples, 16, generator=generator), y)


TRAIN, VAL, TEST = draw(90, 0), draw(48, 1), draw(120, 2)


def same(first: Scores, second: Scores) -> bool:
    alike = replace(first, confusion=second.confusion) == second
    return alike and torch.equal(first.confusion, second.confusion)


def same_selection(first: Selected, second: Selected) -> bool:
    pairs = zip(first.variants, second.variants, strict=True)
    return replace(first, variants=()) == replace(second, variants=()) and all(
        a.chosen == b.chosen and same(a.scores, b.scores) for a, b in pairs
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_selection_does_not_depend_on_test(protocol: str) -> None:
    poisoned = Features(TEST.x, TEST.y[torch.randperm(len(TEST), generator=torch.Generator().manual_seed(3))])
    selections, tables = [], []
    for test in (TEST, poisoned):
        selected = select(protocol, TRAIN, VAL, 6, "top1")
        tables.append(score(selected, TRAIN, VAL, test, seed=0))
        selections.append(selected)
    assert same_selection(*selections)
    for honest, blind in zip(*tables, strict=True):
        assert replace(honest, scores=blind.scores) == blind  # choice and headline are the same
        assert same(honest.scores, blind.scores) == (honest.split == "val")
        if honest.split == "test":
            assert honest.scores.value("top1") > 0.6 > 0.35 > blind.scores.value("top1")


@pytest.mark.parametrize("module", [linear, protocols])
def test_what_chooses_takes_no_test_data(module: object) -> None:
    choosing = {
        name: function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name.startswith(("select", "choose", "quick")) or name.endswith("_variants")
    }
    assert {"choose_strength"} <= choosing.keys()
    for function in choosing.values():
        parameters = inspect.signature(function).parameters
        assert [name for name, p in parameters.items() if p.annotation is Features] == ["train", "val"]
        assert not any("test" in name for name in parameters)


def test_linear_results() -> None:
    selected = select("linear", TRAIN, VAL, 6, "mean_per_class")
    results = score(selected, TRAIN, VAL, TEST, seed=0)
    assert [(r.variant, r.split, r.headline) for r in results] == [("", "val", True), ("", "test", True)]
    assert all(r.version == linear.VERSION and r.chosen == selected.best.chosen for r in results)
    refit = linear.fit(TRAIN.join(VAL), selected.best.chosen["l2"], 6)
    assert results[1].scores.value("top1") == float((refit.scores(TEST.x).argmax(1) == TEST.y).double().mean())
    for result in results:
        assert set(result.scores.values) == set(result.scores.intervals) == set(METRICS)
    assert [r.scores.samples for r in results] == [48, 120]


def test_knn_reports_each_k_and_validation_picks_the_headline() -> None:
    selected = select("knn", TRAIN, VAL, 6, "top1")
    results = score(selected, TRAIN, VAL, TEST, seed=0)
    rows = [(r.variant, r.split) for r in results]
    assert rows == [("k=20", "val"), ("k=20", "test"), ("k=200", "val"), ("k=200", "test")]
    best = max(selected.variants, key=lambda variant: variant.scores.value("top1"))
    assert selected.headline == best.name
    assert {r.variant for r in results if r.headline} == {best.name}


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_can_choose(metric: str) -> None:
    assert metric in Metric.__args__
    selected = select("linear", TRAIN, VAL, 6, metric)
    assert selected.best.scores.value(metric) > 0.6


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_class_missing_from_train_is_allowed(protocol: str) -> None:
    few = Features(TRAIN.x[TRAIN.y < 3], TRAIN.y[TRAIN.y < 3])
    selected = select(protocol, few, VAL, 6, "macro_f1")
    assert 0.3 < selected.best.scores.value("top1") <= 0.5
    assert int(selected.best.scores.confusion[:, 3:].sum()) == 0
    weak = replace(selected, variants=tuple(replace(v, chosen={"l2": 0.1, "k": 20}) for v in selected.variants))
    test = score(weak, few, VAL, TEST, seed=0)[1].scores
    assert test.value("top1") > 0.6  # the refit has seen validation's classes


def test_features_that_are_not_finite_fail_the_trial() -> None:
    x = TRAIN.x.clone()
    x[4, 2], x[7, 1] = torch.nan, torch.inf
    with pytest.raises(TrialFailed, match="2 of 90 samples are NaN or infinite"):
        Features(x, TRAIN.y)


def test_wrong_names_are_clear_errors() -> None:
    with pytest.raises(UnknownName, match="did you mean 'linear'"):
        select("liner", TRAIN, VAL, 6, "top1")
    with pytest.raises(UnknownName, match="top6"):
        select("knn", TRAIN, VAL, 6, "top6")


def test_quick_objective_is_near_the_whole_path() -> None:
    assert len(QUICK_STRENGTHS) == 9
    whole = select("linear", TRAIN, VAL, 6, "top1").best.scores.value("top1")
    assert quick_objective(TRAIN, VAL, 6, "top1") == pytest.approx(whole, abs=0.05)
