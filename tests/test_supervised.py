"""Supervised training: the loss with its options written out, masks of the draw, and that it is learnt."""

import math

import pytest
import torch

from bench.draw import Draw
from bench.encoders import build_encoder
from bench.images import ImageBatch
from bench.method import Method, SupervisedMethod
from bench.registry import build
from bench.training.optimisers import build_optimizer
from bench.training.pretrain import train_batch
from bench.trial import Training

STILL = {"crop": {"low": 1.0, "flip": 0.0}}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(config: dict | None = None, classes: int = 3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build("supervised", config or {}, build_encoder("small", 0), classes)


def stripes(count: int, labels: list[int] | None = None) -> ImageBatch:
    """Noise with stripes that lie, stand or are none, by class."""
    label = torch.tensor(labels) if labels else torch.arange(count) % 3
    pixels = torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(count)) * 120
    wave = (torch.arange(24) // 3 % 2) * 120
    pixels[label == 1] += wave
    pixels[label == 2] += wave.view(-1, 1)
    return ImageBatch(pixels.byte(), torch.ones(count), label)


def formula(scores: torch.Tensor, labels: torch.Tensor, smoothing: float) -> list[float]:
    """Cross entropy of each sample against (1 - s) of the label and s / K of every class."""
    each = []
    for row, label in zip(scores.detach(), labels.tolist(), strict=True):
        logs = (row - row.exp().sum().log()).tolist()
        each.append(-(1 - smoothing) * logs[label] - smoothing / len(logs) * sum(logs))
    return each


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_cross_entropy_with_smoothed_labels(smoothing):
    method = make({"smoothing": smoothing}).eval()
    views = method.views(stripes(9), Draw(0, 9), 24)
    scores, found = method.head(method.encoder(views[0])), method.losses(views, 0.0)
    expected = formula(scores, views[1], smoothing)
    assert float(found["loss"].detach()) == pytest.approx(sum(expected) / 9, abs=1e-5)
    assert float(found["accuracy"]) == pytest.approx(sum((scores.argmax(1) == views[1]).tolist()) / 9)


def test_balanced_weights_are_inverse_to_how_often_a_class_was_seen():
    method = make({"weighting": "balanced"}).eval()
    labels = [0] * 6 + [1] * 2 + [2]
    views = method.views(stripes(9, labels), Draw(0, 9), 24)
    each = formula(method.head(method.encoder(views[0])), views[1], 0.0)
    for seen in ([7, 3, 2], [13, 5, 3]):  # with one of each class before the first batch; then a second batch
        weights = [sum(seen) / (3 * count) for count in seen]
        expected = sum(weights[label] * loss for label, loss in zip(labels, each, strict=True)) / 9
        assert float(method.losses(views, 0.0)["loss"].detach()) == pytest.approx(expected, rel=1e-5)
    assert method.state_dict()["seen"].tolist() == [13, 5, 3]  # kept in checkpoints


def test_dropout_masks_are_the_samples_own_and_keep_the_mean():
    method = make({"dropout": 0.75})
    factors = method.views(stripes(64), Draw(0, 64), 24)[2]
    assert factors.unique().tolist() == [0, 4]
    assert float(factors.mean()) == pytest.approx(1, abs=0.05)
    assert not torch.equal(factors[0], factors[1])
    half = ImageBatch(*(getattr(stripes(64), name)[32:] for name in ("pixels", "aspect", "labels")))
    assert torch.equal(method.views(half, Draw(0, 64, rows=slice(32, 64)), 24)[2], factors[32:])
    assert torch.equal(make().views(stripes(4), Draw(0, 4), 24)[2], torch.ones(4, 192))


def test_dropped_features_get_no_gradient():
    method = make({"dropout": 0.5}).eval()
    view, labels, _ = method.views(stripes(4), Draw(0, 4), 24)
    factors = torch.ones(4, 192)
    factors[:, 10:20] = 0
    method.losses((view, labels, factors), 0.0)["loss"].backward()
    dead = method.head.weight.grad.abs().sum(0) == 0
    assert dead[10:20].all()
    assert not dead.all()


def test_it_learns_from_labels_and_has_no_figures_without_them():
    method = make(STILL)
    assert isinstance(method, SupervisedMethod)
    assert type(method).validation is Method.validation
    with pytest.raises(ValueError, match="labels"):
        method.views(ImageBatch(stripes(2).pixels, torch.ones(2)), Draw(0, 2), 24)
    training = Training(image_size=24, lr=3e-3)
    optimizers = {"loss": build_optimizer(training, method.objectives()["loss"])}
    for step in range(20):
        for losses in train_batch(method, optimizers, training, stripes(30), Draw(step, 30), 0.0, 3e-3):
            loss, accuracy = losses["loss"].item(), losses["accuracy"].item()
    assert loss < 0.3 * math.log(3)
    assert accuracy > 0.9
