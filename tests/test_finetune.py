"""The finetune protocol: what is trained, what is chosen on what, and what stays as it was."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from bench.data.index import SPLITS
from bench.data.pack import Pack
from bench.data.source import Source, Split
from bench.distributed import share_batch_norms
from bench.encoders import OWN, Encoder, build_encoder
from bench.errors import BadInput, TrialFailed
from bench.evaluate import evaluate
from bench.evaluation import finetune
from bench.evaluation.examples import Examples, Images, split_examples
from bench.evaluation.finetune import PARTS, Classifier, Finetune, Part, Tuning, class_weights, predict
from bench.evaluation.metrics import judge
from bench.evaluation.protocols import Task, score, select
from bench.job import Job
from bench.records import parse
from bench.trial import Evaluation, Training, Trial

SIZE, CLASSES = 16, 4
QUICK = Finetune(epochs=2, lrs=(0.03,), batch_size=16)
POINT = {"lr": 0.03, "weight_decay": 1e-4}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_pack(counts: tuple[int, int, int] = (60, 40, 40), seed: int = 0) -> Pack:
    """Gratings in random colours: classes differ by direction, which colour does not tell, whatever is flipped."""
    generator = torch.Generator().manual_seed(seed)
    number = sum(counts)
    labels = torch.cat([torch.arange(count) % CLASSES for count in counts])
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    y, x = (1.2 * axis + 6 * torch.rand(number, 1, 1, generator=generator) for axis in (y, x))
    kinds = torch.stack([x.sin(), y.sin(), (x + y).sin(), x.sin() * y.sin()])
    wave = 0.5 + 0.5 * kinds[labels, torch.arange(number)]
    colour = 0.4 + 0.6 * torch.rand(number, 3, 1, 1, generator=generator)
    noise = 20 * torch.randn(number, 3, 24, 24, generator=generator)
    images = (255 * colour * wave[:, None] + noise).clamp(0, 255).to(torch.uint8)
    splits = torch.repeat_interleave(
        torch.tensor([SPLITS.index(s) for s in ("train", "val", "test")]), torch.tensor(counts)
    )
    source = Source(name="gratings", reader="builtin", location="gratings", fingerprint="f" * 64)
    files = tuple(str(i) for i in range(number))
    return Pack(source, tuple("abcd"), images, torch.ones(number), labels, splits, files)


PACK = make_pack()


def given(encoder: Encoder, split: Split, pack: Pack = PACK) -> Examples:
    return split_examples(encoder, pack, split, SIZE)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def fit(encoder: Encoder, part: Part = "full", settings: Finetune = QUICK, seed: int = 0) -> Classifier:
    return Tuning(part, settings, CLASSES, seed).fit(given(encoder, "train"), POINT)


class Bare(Encoder):
    """Two layers without normalisation: a high rate makes them overflow."""

    def __init__(self) -> None:
        trunk = nn.Module()
        trunk.first = nn.Conv2d(3, 8, 3, stride=4)
        trunk.second = nn.Conv2d(8, 8, 1)
        super().__init__(trunk, [["first"], ["second"]], [8, 8])


def test_last_stage_leaves_the_rest_bit_equal_and_full_moves_it() -> None:
    encoder = build_encoder("small", 0)
    before = state(encoder)
    last = moved(before, state(fit(encoder, "last_stage").encoder))
    full = moved(before, state(fit(encoder, "full").encoder))
    statistics = {name for name in before if "running" in name or "tracked" in name}
    assert last == {name for name in before if name.startswith("trunk.stage4")}
    assert full == set(before)
    assert last & statistics
    assert full > statistics


def test_the_encoder_under_judgement_stays_as_it_was() -> None:
    encoder = build_encoder("small", 0)
    encoder.train()
    encoder.trunk.get_submodule("stage2").eval()
    encoder.trunk.get_submodule("stage3").requires_grad_(False)
    before, random = state(encoder), torch.get_rng_state()
    modes = [module.training for module in encoder.modules()]
    opened = [parameter.requires_grad for parameter in encoder.parameters()]
    task = Task(CLASSES, "top1", finetune=QUICK.model_copy(update={"epochs": 1}))
    train, val, test = (given(encoder, split) for split in ("train", "val", "test"))
    score(select("finetune", train, val, task), train, val, test)
    score(select("knn", train, val, task), train, val, test)
    assert moved(before, state(encoder)) == set()
    assert [module.training for module in encoder.modules()] == modes
    assert [parameter.requires_grad for parameter in encoder.parameters()] == opened
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_what_a_method_froze_is_trained_all_the_same() -> None:
    encoder = build_encoder("small", 0)
    encoder.requires_grad_(False)
    assert moved(state(encoder), state(fit(encoder).encoder)) == set(state(encoder))


@pytest.mark.parametrize("part", PARTS)
def test_training_is_deterministic_and_depends_on_the_seed(part: Part) -> None:
    encoder = build_encoder("small", 0)
    settings = QUICK.model_copy(update={"dropout": 0.3})
    first = state(fit(encoder, part, settings))
    torch.manual_seed(12345)
    assert moved(first, state(fit(encoder, part, settings))) == set()
    assert "head.weight" in moved(first, state(fit(encoder, part, settings, seed=1)))


def test_variants_do_not_depend_on_which_others_are_asked_for() -> None:
    encoder = build_encoder("small", 0)
    train, val = given(encoder, "train"), given(encoder, "val")
    both = select("finetune", train, val, Task(CLASSES, "top1", finetune=QUICK))
    alone = select(
        "finetune", train, val, Task(CLASSES, "top1", finetune=QUICK.model_copy(update={"variants": ("full",)}))
    )
    assert [variant.name for variant in both.variants] == ["last_stage", "full"]
    assert alone.best.scores.values == both.variants[1].scores.values


def fake(monkeypatch: pytest.MonkeyPatch, right: dict[tuple[float, float], int]) -> list[int]:
    """Make a point of the grid predict its first `right` images right (NaN for -1); returns the sizes predicted."""
    sizes: list[int] = []

    def fit(_tuning: Tuning, _examples: Examples, point: dict[str, float]) -> Any:
        return right[point["lr"], point["weight_decay"]]

    def predict(model: int, images: Images) -> Tensor:
        sizes.append(len(images))
        if model < 0:
            raise TrialFailed("not finite")
        labels = torch.arange(len(images)) % CLASSES
        labels[model:] = (labels[model:] + 1) % CLASSES
        return nn.functional.one_hot(labels, CLASSES).float()

    monkeypatch.setattr(Tuning, "fit", fit)
    monkeypatch.setattr(finetune, "predict", predict)
    return sizes


GRID = Finetune(lrs=(0.1, 0.2), weight_decays=(0.0, 0.5))


@pytest.mark.parametrize(
    ("right", "chosen"),
    [((5, 9, 30, 7), (0.2, 0.0)), ((5, 30, 30, 7), (0.1, 0.5)), ((-1, -1, -1, 0), (0.2, 0.5)), ((0,) * 4, (0.1, 0.0))],
)
def test_the_first_best_point_on_validation_is_chosen(
    monkeypatch: pytest.MonkeyPatch, right: tuple[int, ...], chosen: tuple[float, float]
) -> None:
    points = [(lr, decay) for lr in GRID.lrs for decay in GRID.weight_decays]
    sizes = fake(monkeypatch, dict(zip(points, right, strict=True)))
    encoder = Bare()
    point, scores = Tuning("full", GRID, CLASSES, 0).choose(given(encoder, "train"), given(encoder, "val"), "top1")
    assert point == {"lr": chosen[0], "weight_decay": chosen[1]}
    assert scores.value("top1") == max(right) / 40
    assert sizes == [40] * 4


@pytest.mark.parametrize("metric", ["top1", "macro_f1"])
def test_the_metric_of_the_dataset_chooses(metric: str) -> None:
    encoder = Bare()
    train, val = given(encoder, "train"), given(encoder, "val")
    tuning = Tuning("full", Finetune(epochs=4, lrs=(0.001, 0.1, 0.3), batch_size=16), CLASSES, 0)
    values = []
    for lr in tuning.settings.lrs:
        model = tuning.fit(train, {"lr": lr, "weight_decay": 1e-4})
        values.append(judge(predict(model, val.images), val.labels).value(metric))
    point, scores = tuning.choose(train, val, metric)
    assert len(set(values)) > 1
    assert scores.value(metric) == max(values)
    assert point["lr"] == tuning.settings.lrs[values.index(max(values))]


def test_training_that_diverges_is_a_bad_point_and_only_fails_where_all_do() -> None:
    encoder = Bare()
    train, val = given(encoder, "train"), given(encoder, "val")
    wild = Tuning("full", Finetune(epochs=20, lrs=(10.0,), batch_size=16), CLASSES, 0)
    with pytest.raises(TrialFailed, match="the loss is not finite at a learning rate of 10"):
        wild.fit(train, {"lr": 10.0, "weight_decay": 0.0})
    with pytest.raises(TrialFailed, match=r"finetune, full: training diverges at every rate; try lower finetune\.lrs"):
        wild.choose(train, val, "top1")
    mixed = Tuning("full", Finetune(epochs=20, lrs=(10.0, 0.01), batch_size=16), CLASSES, 0)
    assert mixed.choose(train, val, "top1")[0]["lr"] == 0.01


def test_outputs_that_are_not_finite_are_a_failure() -> None:
    encoder = Bare()
    model = fit(encoder)
    nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(TrialFailed, match="outputs are not finite"):
        predict(model, given(encoder, "val").images)


def test_test_is_scored_once_per_variant_and_never_while_choosing(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Bare()
    train, val, test = (given(encoder, split) for split in ("train", "val", "test"))
    looked: list[bool] = []
    batch = Images.batch

    def counting(self: Images, index: Tensor) -> Any:
        looked.append(self is test.images)
        return batch(self, index)

    monkeypatch.setattr(Images, "batch", counting)
    selected = select("finetune", train, val, Task(CLASSES, "top1", finetune=QUICK))
    assert looked
    assert not any(looked)
    score(selected, train, val, test)
    assert sum(looked) == len(PARTS)  # 40 images are one batch


def test_from_scratch_learns_what_random_features_do_not_show() -> None:
    encoder = build_encoder("small", 0)
    train, val, test = (given(encoder, split) for split in ("train", "val", "test"))
    settings = Finetune(variants=("full",), epochs=10, lrs=(0.05,), batch_size=12)
    results = score(select("finetune", train, val, Task(CLASSES, "top1", finetune=settings)), train, val, test)
    assert results[1].scores.value("top1") > 0.75  # chance is 0.25
    assert all(set(result.chosen) == {"lr", "weight_decay"} and result.headline for result in results)


@pytest.mark.parametrize("seed", [0, 1])
def test_class_weights_are_sklearns(seed: int) -> None:
    labels = np.random.default_rng(seed).choice(4, 50, p=[0.1, 0.2, 0.1, 0.6])
    ours = class_weights(torch.from_numpy(labels), 6)  # two classes never occur
    theirs = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    np.testing.assert_allclose(ours[np.unique(labels)], theirs, rtol=1e-6)
    assert ours[4:].tolist() == [0.0, 0.0]


def test_class_weights_enter_the_loss_of_what_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Bare()
    pack = make_pack((60, 40, 40))
    pack.labels[:30] = 0
    train = given(encoder, "train", pack)
    seen: list[Tensor | None] = []
    entropy = nn.functional.cross_entropy

    def spy(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        seen.append(weight)
        return entropy(logits, labels, weight)

    monkeypatch.setattr("torch.nn.functional.cross_entropy", spy)
    for on in (False, True):
        settings = QUICK.model_copy(update={"class_weights": on, "epochs": 1})
        Tuning("full", settings, CLASSES, 0).fit(train, POINT)
    plain, weighted = seen[0], seen[-1]
    assert plain is None
    assert weighted is not None
    counts = torch.bincount(train.labels)
    torch.testing.assert_close(weighted * counts, torch.full((CLASSES,), 60 / CLASSES))


def test_dropout_acts_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_encoder("small", 0)
    masks: list[Tensor | None] = []
    forward = Classifier.forward

    def spy(self: Classifier, view: Tensor, keep: Tensor | None = None) -> Tensor:
        masks.append(keep)
        return forward(self, view, keep)

    monkeypatch.setattr(Classifier, "forward", spy)
    model = fit(encoder, settings=QUICK.model_copy(update={"dropout": 0.7}))
    training = [mask for mask in masks if mask is not None]
    assert len(training) == len(masks) == 2 * 4
    values = torch.cat(training)
    assert float((values == 0).float().mean()) == pytest.approx(0.7, abs=0.01)
    assert set(values.unique().tolist()) == {0.0, float(torch.tensor(1 / (1 - 0.7)))}
    masks.clear()
    predicted = predict(model, given(encoder, "val").images)
    assert masks == [None]
    (view,) = given(encoder, "val").images.centred()
    with torch.no_grad():
        torch.testing.assert_close(predicted, model.head(model.encoder(view)))


def test_dropout_leaves_the_views_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Bare()
    seen: list[Tensor] = []
    forward = Classifier.forward

    def spy(self: Classifier, view: Tensor, keep: Tensor | None = None) -> Tensor:
        seen.append(view)
        return forward(self, view, keep)

    monkeypatch.setattr(Classifier, "forward", spy)
    for dropout in (0.0, 0.5):
        fit(encoder, settings=QUICK.model_copy(update={"dropout": dropout, "epochs": 1}))
    half = len(seen) // 2
    assert all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))
    assert not torch.equal(seen[0], seen[1])


def test_every_image_is_seen_once_per_epoch_in_batches_of_even_size(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Bare()
    train = given(encoder, "train")
    seen: list[Tensor] = []
    batch = Images.batch

    def spy(self: Images, index: Tensor) -> Any:
        seen.append(index)
        return batch(self, index)

    monkeypatch.setattr(Images, "batch", spy)
    settings = Finetune(epochs=2, batch_size=59)  # 60 images: not 59 and 1
    Tuning("full", settings, CLASSES, 0).fit(train, POINT)
    assert [len(index) for index in seen] == [30, 30, 30, 30]
    first, second = torch.cat(seen[:2]), torch.cat(seen[2:])
    assert torch.equal(first.sort().values, torch.arange(60))
    assert torch.equal(second.sort().values, torch.arange(60))
    assert not torch.equal(first, second)


def test_one_worker_of_several_evaluates_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, shared = build_encoder("small", 0), build_encoder("small", 0)
    share_batch_norms(shared)
    monkeypatch.setattr("bench.distributed.world_size", lambda: 2)  # a batch norm that shared would have no group
    assert moved(state(fit(plain)), state(fit(shared))) == set()


@pytest.mark.parametrize("name", ["resnet18", "vit_micro"])
def test_other_encoders_train_their_last_stage(name: str) -> None:
    encoder = build_encoder(name, 0)
    tuning = Tuning("last_stage", Finetune(epochs=1), CLASSES, 0)
    few = given(encoder, "train", make_pack((8, 8, 8)))
    last = moved(state(encoder), state(tuning.fit(few, POINT).encoder))
    expected = "trunk.layer4" if name == "resnet18" else ("trunk.blocks4", "trunk.norm")
    assert last
    assert all(key.startswith(expected) for key in last)


def test_an_encoder_without_a_last_stage_is_a_clear_error() -> None:
    encoder = Bare()
    encoder.name = OWN
    encoder.trunk.second = nn.Identity()
    with pytest.raises(BadInput, match=r"finetune\.variants: 'last_stage' needs .* encoder 'own' has none"):
        fit(encoder, "last_stage")
    fit(encoder, "full")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"variants": ["head"]}, "last_stage"),
        ({"variants": []}, "variants"),
        ({"lrs": [0.1, 0.1]}, "lrs: the same value is given twice"),
        ({"lrs": [0.0]}, "greater than 0"),
        ({"dropout": 1.0}, "dropout: .*0.95"),
    ],
)
def test_wrong_settings_name_the_field(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse(Finetune, wrong, "sweep x, [finetune]")


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Finetune.model_fields.values())
    assert parse(Finetune, {"variants": ["full"], "lrs": [0.1]}, "x").variants == ("full",)


def test_evaluate_fills_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.evaluate.open_job_pack", lambda *_: PACK)
    trial = Trial(
        method="random_init",
        method_version=1,
        config={},
        data="",
        training=Training(image_size=SIZE),
        evaluate=(Evaluation(fingerprint="f" * 64, metric="macro_f1", protocols=("finetune", "linear")),),
        finetune=QUICK.model_copy(update={"variants": ("full",)}),
        protocol_versions={"finetune": 1, "linear": 1},
        objective="finetune",
        seed=3,
    )
    job = Job(trial=trial, sources={}, sweep="s", sweep_id="i", stage="search", configuration="c", out="", cache="")
    rows, objective = evaluate(job, build_encoder("small", 0))
    assert {(row.protocol, row.variant, row.split) for row in rows} == {
        (protocol, variant, split)
        for protocol, variant in (("finetune", "full"), ("linear", ""))
        for split in ("val", "test")
    }
    headline = {(row.protocol, row.split): row.value for row in rows if row.headline}
    assert headline["finetune", "val"] == objective
    for row in rows:
        assert (row.f1 is None) == (row.precision is None) == (row.recall is None) == (row.metric != "confusion")
        if row.f1 is not None and row.confusion is not None:
            assert np.mean([value for value in row.f1 if value is not None]) == pytest.approx(
                headline[row.protocol, row.split]
            )
