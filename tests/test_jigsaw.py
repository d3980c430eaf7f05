"""Jigsaw: which tile lies where, gaps, places and statistics, the loss written out, errors, and that it is learnt."""

import math

import pytest
import torch
from torch.nn import functional as F

from bench.draw import Draw
from bench.encoders import build_encoder
from bench.errors import BadInput
from bench.images import ImageBatch
from bench.patches import arrange
from bench.permutations import permutation_set
from bench.registry import build, configure
from bench.training.optimisers import build_optimizer
from bench.training.pretrain import train_batch
from bench.trial import Training

STILL = {"crop": {"low": 1.0, "flip": 0.0}, "jitter": {"probability": 0.0}, "grayscale": 0.0}
STILL |= {"tile": 8, "gap": 0.2}  # cells of 10 px, a view of 30 px
RAW = STILL | {"normalise": False}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(config: dict | None = None, encoder: str = "small"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build("jigsaw", config or {}, build_encoder(encoder, 0))


def ramps(count: int, side: int = 30) -> ImageBatch:
    """Each pixel says its row in red and its column in green; blue differs from image to image."""
    rows = (torch.arange(side) * 8).view(1, 1, side, 1).expand(count, 1, side, side)
    blue = torch.arange(count).view(-1, 1, 1, 1).expand_as(rows)
    pixels = torch.cat((rows, rows.transpose(2, 3), blue), dim=1)
    return ImageBatch(pixels.to(torch.uint8), torch.ones(count))


def grains(count: int) -> ImageBatch:
    """Noise of 30 px over waves that are shorter the farther down and to the right the cell: one set for all images."""
    generator = torch.Generator().manual_seed(count)
    pixels = torch.rand(count, 3, 3, 3, 10, 10, generator=generator)
    for cell in range(9):
        row, column = divmod(cell, 3)
        wave = torch.outer(torch.cos(torch.arange(10) * row * 1.2), torch.cos(torch.arange(10) * column * 1.2))
        pixels[:, :, row, column] = pixels[:, :, row, column] * 0.3 + 0.35 + 0.3 * wave
    return ImageBatch((pixels.transpose(3, 4).reshape(count, 3, 30, 30) * 255).to(torch.uint8), torch.ones(count))


def corners(tiles: torch.Tensor) -> torch.Tensor:
    """Row and column in the image `[N,2]` of the first pixel of each tile of `ramps`."""
    return (tiles[:, :2, 0, 0] * 255 / 8).round().long()


@pytest.mark.parametrize(("gap", "side"), [(0.0, 10), (0.1, 9), (0.2, 8)])
@pytest.mark.parametrize("shift", [True, False])
def test_a_tile_is_a_window_of_its_cell(gap, side, shift):
    method = make(RAW | {"tile": side, "gap": gap, "shift": shift, "permutations": 2})
    tiles, which = method.views(ramps(40), Draw(0, 40), 30)
    assert tiles.shape == (40 * 9, 3, side, side)
    assert which.shape == (40, 8)
    # Whole rows and columns follow the first pixel, in the image that the tile is said to be of.
    expected = corners(tiles)[:, 0].view(-1, 1, 1) + torch.arange(side).view(-1, 1)
    assert torch.allclose(tiles[:, 0], (expected * 8 / 255).expand(-1, -1, side), atol=1e-5)
    assert torch.allclose(tiles[:, 2].unflatten(0, (40, 9)) * 255, torch.arange(40.0).view(-1, 1, 1, 1), atol=1e-3)
    cell = torch.cartesian_prod(torch.arange(3), torch.arange(3)) * 10
    offset = corners(tiles).unflatten(0, (40, 9)) - cell
    seen = sorted(offset.unique().tolist())
    assert seen == (list(range(10 - side + 1)) if shift else [(10 - side) // 2])
    if shift and side < 10:
        assert not torch.equal(offset[0], offset[1])


@pytest.mark.parametrize("choice", ["greedy", "pairs"])
def test_the_head_sees_the_tiles_in_the_order_that_it_must_name(choice):
    method = make(RAW | {"tile": 10, "gap": 0.0, "permutations": 20, "orders": 3, "choice": choice}).eval()
    assert torch.equal(method.orders, permutation_set(3, 20, choice, 0.9))
    images = ramps(6)
    tiles, which = method.views(images, Draw(0, 6), 30)
    scores = method.logits(tiles, which).detach().unflatten(0, (6, 3))
    for image in range(6):
        for puzzle in range(3):
            # The whole puzzle as a picture, cut again: what the head would see of it.
            order = method.orders[which[image, puzzle]]
            laid = arrange(images.pixels[image : image + 1] / 255, order.view(1, 9), 3)
            cells = laid.unflatten(3, (3, 10)).unflatten(2, (3, 10)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
            found = [3 * (row // 10) + column // 10 for row, column in corners(cells).tolist()]
            assert found == order.tolist()
            expected = method.all(method.each(method.encoder(cells)).view(1, -1))[0].detach()
            torch.testing.assert_close(scores[image, puzzle], expected, atol=1e-4, rtol=1e-3)


def test_the_whole_set_is_used_and_every_image_has_its_own_orders():
    _, which = make({"permutations": 30, "orders": 4}).views(ramps(200), Draw(0, 200), 30)
    counts = which.flatten().bincount(minlength=30)
    assert counts.min() > 5
    assert counts.max() < 60
    assert len(which.unique(dim=0)) > 190


def test_a_tile_reaches_the_trunk_with_zero_mean_and_unit_deviation_in_each_channel():
    method = make(STILL)
    tiles, _ = method.views(grains(8), Draw(0, 8), 30)
    inside = (tiles - method.encoder.mean) / method.encoder.std
    torch.testing.assert_close(inside.mean((2, 3)), torch.zeros(72, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(inside.std((2, 3), correction=0), torch.ones(72, 3), atol=1e-3, rtol=0)
    flat, _ = method.views(ImageBatch(torch.full((2, 3, 30, 30), 90, dtype=torch.uint8), torch.ones(2)), Draw(0, 2), 30)
    assert ((flat - method.encoder.mean) / method.encoder.std).abs().max() < 0.01


def test_loss_and_accuracy_are_those_of_the_numbers_of_the_orders():
    method = make({"permutations": 12, "orders": 2}).eval()
    tiles, which = method.views(grains(5), Draw(0, 5), 30)
    found, scores = method.losses((tiles, which), 0.0), method.logits(tiles, which).detach()
    numbers = which.flatten().tolist()
    loss = sum(float(row.exp().sum().log() - row[number]) for row, number in zip(scores, numbers, strict=True)) / 10
    assert float(found["loss"].detach()) == pytest.approx(loss, abs=1e-5)
    assert float(found["accuracy"]) == pytest.approx(
        sum(int(row.argmax()) == number for row, number in zip(scores, numbers, strict=True)) / 10
    )


@pytest.mark.parametrize(
    ("tile", "encoder", "size", "side", "cell"),
    [(17, "small", 30, 17, 20), (0, "small", 30, 15, 18), (0, "small", 64, 32, 38), (0, "vit_micro", 56, 24, 28)],
)
def test_a_tile_has_the_side_that_is_asked_for_or_half_of_a_views(tile, encoder, size, side, cell):
    method = make({"tile": tile}, encoder)
    assert method.sides(size) == (side, cell)
    assert method.views(grains(3), Draw(0, 3), size)[0].shape == (27, 3, side, side)


@pytest.mark.parametrize(
    ("config", "encoder", "size", "message"),
    [
        ({}, "vit_s16", 24, r"image_size 24: tiles of 0 px.* tile = 16"),
        ({"tile": 4}, "small", 32, r"tile: tiles of 4 px.* tile = 8"),
    ],
)
def test_tiles_that_are_too_small_are_refused_with_the_side_that_works(config, encoder, size, message):
    method = make(config, encoder)
    with pytest.raises(BadInput, match=message):
        method.views(ramps(2), Draw(0, 2), size)
    fitting = int(message.rsplit(" ", 1)[1])
    assert make({"tile": fitting}, encoder).sides(size)[0] == fitting


def test_settings_that_cannot_be_or_have_no_effect():
    with pytest.raises(BadInput, match=r"2 x 2 tiles have 24 orders"):
        make({"grid": 2})
    defaults = configure("jigsaw", {}, "test")
    assert configure("jigsaw", {"distance": 0.5}, "test") == defaults
    assert configure("jigsaw", {"choice": "pairs", "distance": 0.5}, "test").distance == 0.5


def test_jigsaw_is_learnt_and_judged_on_other_images():
    method = make(STILL | {"permutations": 20})
    training = Training(image_size=30, lr=3e-3)
    optimizers = {"loss": build_optimizer(training, method.objectives()["loss"])}
    for step in range(20):
        for losses in train_batch(method, optimizers, training, grains(16), Draw(step, 16), 0.0, 3e-3):
            loss, accuracy = losses["loss"].item(), losses["accuracy"].item()
    assert loss < 0.3 * math.log(20)
    assert accuracy > 0.9
    method.eval()
    with torch.no_grad():
        figures = method.validation(grains(20), 30)
        tiles, which = method.views(grains(20), Draw(0, 20), 30)
        loss = F.cross_entropy(method.logits(tiles, which), which.flatten())
    assert figures["accuracy"] > 0.8
    assert float(figures["loss"]) == pytest.approx(float(loss), abs=1e-6)
