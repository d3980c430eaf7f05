import inspect
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from bench.data.index import SPLITS
from bench.data.pack import Pack
from bench.data.source import Metric, Source, Split
from bench.encoders import Encoder
from bench.errors import TrialFailed, UnknownName
from bench.evaluation import linear, protocols
from bench.evaluation.examples import Examples, Images, split_examples
from bench.evaluation.finetune import Finetune, Tuning
from bench.evaluation.linear import Features
from bench.evaluation.metrics import METRICS, Scores
from bench.evaluation.protocols import PROTOCOLS, QUICK_STRENGTHS, Selected, Task, quick_objective, score, select

COUNTS = {"train": 90, "val": 48, "test": 120}
CENTRES = torch.rand(6, 3, 4, generator=torch.Generator().manual_seed(99))
QUICK = Finetune(epochs=6, lrs=(0.3,), batch_size=16)


class Tiles(Encoder):
    """Features `[B,12]`: the mean colour of each quarter of the image, which a layer turns a little."""

    def __init__(self) -> None:
        trunk = nn.Module()
        trunk.tiles = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Unflatten(1, (12, 1, 1)))
        trunk.turn = nn.Conv2d(12, 12, 1)
        nn.init.dirac_(trunk.turn.weight)
        super().__init__(trunk, [["tiles"], ["turn"]], [12, 12])


def make_pack() -> Pack:
    """Images of four coloured quarters, whose colours are the class's with noise."""
    labels = torch.cat([torch.arange(count) % 6 for count in COUNTS.values()])
    noise = torch.randn(len(labels), 3, 4, generator=torch.Generator().manual_seed(0))
    quarters = (255 * (CENTRES[labels] + 0.2 * noise)).clamp(0, 255).view(-1, 3, 2, 2)
    images = quarters.repeat_interleave(8, 2).repeat_interleave(8, 3).to(torch.uint8)
    splits = torch.cat([torch.full((count,), SPLITS.index(split)) for split, count in COUNTS.items()])
    source = Source(name="tiles", reader="builtin", location="tiles", fingerprint="f" * 64)
    files = tuple(str(row) for row in range(len(labels)))
    return Pack(source, tuple("abcdef"), images, torch.ones(len(labels)), labels, splits, files)


ENCODER, PACK = Tiles(), make_pack()
TRAIN, VAL, TEST = (split_examples(ENCODER, PACK, split, 16) for split in ("train", "val", "test"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def task(metric: str = "top1") -> Task:
    return Task(6, metric, finetune=QUICK)


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
    order = torch.randperm(len(TEST), generator=torch.Generator().manual_seed(3))
    poisoned = Examples(TEST.images, TEST.labels[order])
    selections, tables = [], []
    for test in (TEST, poisoned):
        selected = select(protocol, TRAIN, VAL, task())
        tables.append(score(selected, TRAIN, VAL, test))
        selections.append(selected)
    assert same_selection(*selections)
    for honest, blind in zip(*tables, strict=True):
        assert replace(honest, scores=blind.scores) == blind  # choice and headline are the same
        assert same(honest.scores, blind.scores) == (honest.split == "val")
        if honest.split == "test":
            assert honest.scores.value("top1") > 0.6 > 0.35 > blind.scores.value("top1")


@pytest.mark.parametrize("module", [linear, protocols, Tuning], ids=["linear", "all", "finetune"])
def test_what_chooses_takes_no_test_data(module: object) -> None:
    choosing = {
        name: function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name.startswith(("select", "choose", "quick")) or name.endswith("_variants")
    }
    assert choosing
    for function in choosing.values():
        parameters = inspect.signature(function).parameters
        assert [name for name, p in parameters.items() if p.annotation in (Features, Examples)] == ["train", "val"]
        assert not any("test" in name for name in parameters)


def test_what_predicts_takes_no_label_of_what_it_predicts() -> None:
    for protocol in PROTOCOLS.values():
        kinds = [parameter.annotation for parameter in inspect.signature(protocol.predict).parameters.values()]
        assert kinds[:2] == [Examples, Images]
    assert not any("label" in name for name in vars(TEST.images))
    assert TEST.images.batch(torch.tensor([0])).labels is None


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_examples_reach_the_rows_of_their_split_alone(split: Split) -> None:
    examples = split_examples(ENCODER, PACK, split, 16)
    pixels, rows = examples.images.batch(torch.arange(-len(examples), len(examples))).pixels, PACK.rows(split)
    assert torch.equal(pixels, PACK.images[torch.cat([rows, rows])])
    assert torch.equal(examples.labels, PACK.labels[rows])
    for beyond in (len(examples), -len(examples) - 1):
        with pytest.raises(IndexError):
            examples.images.batch(torch.tensor([beyond]))


def test_frozen_features_are_extracted_once_for_all_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    centred = Images.centred

    def counting(self: Images) -> object:
        seen.append(len(self))
        return centred(self)

    monkeypatch.setattr(Images, "centred", counting)
    train, val, test = (split_examples(ENCODER, PACK, split, 16) for split in ("train", "val", "test"))
    selections = [select(protocol, train, val, task()) for protocol in ("linear", "knn")]
    quick_objective(train, val, task())
    assert seen == [90, 48]
    for selected in selections:
        score(selected, train, val, test)
    assert seen == [90, 48, 120]
    assert torch.equal(train.join(val).features.x, torch.cat([train.features.x, val.features.x]))


def test_linear_results() -> None:
    selected = select("linear", TRAIN, VAL, task("mean_per_class"))
    results = score(selected, TRAIN, VAL, TEST)
    assert [(r.variant, r.split, r.headline) for r in results] == [("", "val", True), ("", "test", True)]
    assert all(r.version == linear.VERSION and r.chosen == selected.best.chosen for r in results)
    refit = linear.fit(TRAIN.join(VAL).features, selected.best.chosen["l2"], 6)
    assert results[1].scores.value("top1") == float(
        (refit.scores(TEST.features.x).argmax(1) == TEST.labels).double().mean()
    )
    for result in results:
        assert set(result.scores.values) == set(result.scores.intervals) == set(METRICS)
    assert [r.scores.samples for r in results] == [48, 120]


def test_knn_reports_each_k_and_validation_picks_the_headline() -> None:
    selected = select("knn", TRAIN, VAL, task())
    results = score(selected, TRAIN, VAL, TEST)
    rows = [(r.variant, r.split) for r in results]
    assert rows == [("k=20", "val"), ("k=20", "test"), ("k=200", "val"), ("k=200", "test")]
    best = max(selected.variants, key=lambda variant: variant.scores.value("top1"))
    assert selected.headline == best.name
    assert {r.variant for r in results if r.headline} == {best.name}


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_can_choose(metric: str) -> None:
    assert metric in Metric.__args__
    selected = select("linear", TRAIN, VAL, task(metric))
    assert selected.best.scores.value(metric) > 0.6


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_class_missing_from_train_is_allowed(protocol: str) -> None:
    pack = replace(PACK, splits=PACK.splits.where((PACK.splits != SPLITS.index("train")) | (PACK.labels < 3), -1))
    few = split_examples(ENCODER, pack, "train", 16)
    assert few.labels.unique().tolist() == [0, 1, 2]
    selected = select(protocol, few, VAL, task("macro_f1"))
    assert 0.3 < selected.best.scores.value("top1") <= 0.5
    assert int(selected.best.scores.confusion[:, 3:].sum()) == 0
    weak = replace(
        selected, variants=tuple(replace(v, chosen={**v.chosen, "l2": 0.1, "k": 20}) for v in selected.variants)
    )
    test = score(weak, few, VAL, TEST)[1].scores
    assert test.value("top1") > 0.6  # the refit has seen validation's classes


def test_features_that_are_not_finite_fail_the_trial() -> None:
    x = TRAIN.features.x.clone()
    x[4, 2], x[7, 1] = torch.nan, torch.inf
    with pytest.raises(TrialFailed, match="2 of 90 samples are NaN or infinite"):
        Features(x, TRAIN.labels)


def test_wrong_names_are_clear_errors() -> None:
    with pytest.raises(UnknownName, match="did you mean 'linear'"):
        select("liner", TRAIN, VAL, task())
    with pytest.raises(UnknownName, match="top6"):
        select("knn", TRAIN, VAL, task("top6"))


def test_quick_objective_is_near_the_whole_path() -> None:
    assert len(QUICK_STRENGTHS) == 9
    whole = select("linear", TRAIN, VAL, task()).best.scores.value("top1")
    assert quick_objective(TRAIN, VAL, task()) == pytest.approx(whole, abs=0.05)
