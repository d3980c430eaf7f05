"""Rotation: which turn is which, the loss written out, and that it is learnt."""

import math

import pytest
import torch
from torch.nn import functional as F

from bench.draw import Draw
from bench.encoders import build_encoder
from bench.images import ImageBatch
from bench.registry import build
from bench.training.optimisers import build_optimizer
from bench.training.pretrain import train_batch
from bench.trial import Training

STILL = {"crop": {"low": 1.0, "flip": 0.0}, "jitter": {"probability": 0.0}, "grayscale": 0.0}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(config: dict | None = None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build("rotation", config or {}, build_encoder("small", 0))


def suns(count: int) -> ImageBatch:
    """Noise under a bright top: upright at a glance."""
    pixels = torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(count)) * 120
    pixels[:, :, :6] += 120
    return ImageBatch(pixels.byte(), torch.ones(count))


def test_the_four_turns_of_an_image_lie_together_and_move_pixels_only():
    (views,) = make(STILL).views(suns(3), Draw(0, 3), 24)
    assert views.shape == (12, 3, 24, 24)
    turned = views.unflatten(0, (3, 4))
    assert torch.allclose(turned[:, 0], suns(3).pixels / 255, atol=1e-5)
    for turns in range(4):
        # A quarter turn anticlockwise takes the pixel at (row, column) to (23 - column, row).
        expected = turned[:, 0]
        for _ in range(turns):
            expected = expected.transpose(2, 3).flip(2)
        assert torch.equal(turned[:, turns], expected)
    bright = [turned[0, 1][:, :, :6], turned[0, 2][:, -6:], turned[0, 3][:, :, -6:]]  # left, bottom, right
    assert all(side.mean() > 0.6 for side in bright)


def test_loss_and_accuracy_are_those_of_the_turn_of_each_view():
    method = make().eval()
    views = method.views(suns(5), Draw(0, 5), 24)
    found = method.losses(views, 0.0)
    scores = method.head(method.encoder(views[0])).detach()
    loss = sum(float(scores[i].exp().sum().log() - scores[i, i % 4]) for i in range(20)) / 20
    right = sum(int(scores[i].argmax()) == i % 4 for i in range(20))
    assert float(found["loss"].detach()) == pytest.approx(loss, abs=1e-5)
    assert float(found["accuracy"]) == pytest.approx(right / 20)
    assert list(method.objectives()) == ["loss"]


@pytest.mark.parametrize(("hidden", "layers"), [(0, 1), (32, 4)])
def test_the_head_is_linear_or_has_a_hidden_layer(hidden, layers):
    head = make({"hidden": hidden}).head
    assert len(head) == layers
    assert head(torch.rand(3, 192)).shape == (3, 4)


def test_rotation_is_learnt_and_judged_on_other_images():
    method = make()
    training = Training(image_size=24, lr=3e-3)
    optimizers = {"loss": build_optimizer(training, method.objectives()["loss"])}
    for step in range(15):
        for losses in train_batch(method, optimizers, training, suns(16), Draw(step, 16), 0.0, 3e-3):
            loss, accuracy = losses["loss"].item(), losses["accuracy"].item()
    assert loss < 0.3 * math.log(4)
    assert accuracy > 0.9
    method.eval()
    with torch.no_grad():
        figures = method.validation(suns(20), 24)
        (views,) = method.views(suns(20), Draw(0, 20), 24)
        scores = method.head(method.encoder(views))
    assert figures["accuracy"] > 0.9
    assert figures["loss"] == pytest.approx(float(F.cross_entropy(scores, torch.arange(4).repeat(20))), abs=1e-6)
