"""PMG: patches and parameters of each step, the weight of the whole, errors, and that it is learnt."""

import math

import pytest
import torch
from torch.nn import functional as F

from bench.draw import Draw
from bench.encoders import ENCODERS, build_encoder
from bench.errors import BadInput
from bench.images import ImageBatch
from bench.registry import build, find_method
from bench.training.optimisers import build_optimizer
from bench.training.pretrain import train_batch
from bench.trial import Training
from tests.test_supervised import stripes

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
        return build("pmg", config or {}, build_encoder("small", 0), classes)


def tiles(image: torch.Tensor, grid: int) -> list[torch.Tensor]:
    """The tiles `[3,t,t]` of one image, row by row."""
    side = image.shape[1] // grid
    return [image[:, i * side : (i + 1) * side, j * side : (j + 1) * side] for i in range(grid) for j in range(grid)]


def test_the_patches_of_each_step_are_those_of_the_whole_in_another_order():
    noise = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageBatch(noise, torch.ones(4), torch.zeros(4, dtype=torch.int64))
    method = make(STILL)
    *shuffled, whole, labels = method.views(images, Draw(0, 4), 32)
    assert torch.equal(labels, images.labels)
    assert torch.allclose(whole, noise / 255, atol=1e-5)
    for picture, grid in zip(shuffled, (8, 4, 2), strict=True):
        for one, original in zip(picture, whole, strict=True):
            assert sorted(map(str, tiles(one, grid))) == sorted(map(str, tiles(original, grid)))
        moved = [not torch.equal(a, b) for a, b in zip(tiles(picture[0], grid), tiles(whole[0], grid), strict=True)]
        assert any(moved)
        orders = {
            tuple(next(i for i, tile in enumerate(tiles(b, grid)) if torch.equal(tile, a)) for a in tiles(p, grid))
            for p, b in zip(picture, whole, strict=True)
        }
        assert len(orders) > 1, "every image has its own order"


@pytest.mark.parametrize(("finest", "patches"), [(8, [8, 4, 2]), (16, [16, 8, 4]), (2, [2, 1, 1]), (1, [1, 1, 1])])
def test_patches_are_halved_from_step_to_step(finest, patches):
    method = make(STILL | {"finest": finest})
    assert method.patches() == patches
    views = method.views(stripes(2), Draw(0, 2), 32)
    assert [torch.equal(view, views[3]) for view in views[:3]] == [count == 1 for count in patches]


def test_a_batch_gives_four_steps_and_each_says_its_level():
    method = make()
    views = method.views(stripes(6), Draw(0, 6), 32)
    steps = list(method.steps(views))
    assert [int(level) for *_, level in steps] == [0, 1, 2, 3]
    for (view, labels, level), expected in zip(steps, views, strict=False):
        assert torch.equal(view, expected)
        assert labels is views[-1]
        assert level.device.type == "cpu"


EARLY = {"encoder.trunk.stage1", "encoder.trunk.stage2"}
TAKE_PART = [
    EARLY | {"blocks.0", "classifiers.0"},
    EARLY | {"encoder.trunk.stage3", "blocks.1", "classifiers.1"},
    EARLY | {"encoder.trunk.stage3", "encoder.trunk.stage4", "blocks.2", "classifiers.2"},
    EARLY | {"encoder.trunk.stage3", "encoder.trunk.stage4", "blocks.0", "blocks.1", "blocks.2", "classifiers.3"},
]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_what_takes_no_part_in_a_step_stays_as_it_is(optimizer):
    method = make()
    training = Training(image_size=32, optimizer=optimizer, lr=1e-2)
    optimizers = {"loss": build_optimizer(training, method.objectives()["loss"])}
    for number in range(2):
        before = {name: parameter.clone() for name, parameter in method.named_parameters()}
        steps = train_batch(method, optimizers, training, stripes(6), Draw(number, 6), 0.0, 1e-2)
        for level in range(4):
            next(steps)
            for name, parameter in method.named_parameters():
                takes_part = any(name.startswith(f"{place}.") for place in TAKE_PART[level])
                assert torch.equal(parameter, before[name]) != takes_part, (number, level, name)
            before = {name: parameter.clone() for name, parameter in method.named_parameters()}


@pytest.mark.parametrize("level", range(4))
def test_a_step_has_a_gradient_for_its_stages_and_its_head_alone(level):
    method = make()
    part = list(method.steps(method.views(stripes(6), Draw(0, 6), 32)))[level]
    method.losses(part, 0.0)["loss"].backward()
    moved = {
        name for name, parameter in method.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    places = ("encoder.trunk.stage", "blocks.", "classifiers.")
    assert {name[: len(place) + 1] for name in moved for place in places if name.startswith(place)} == TAKE_PART[level]


def test_the_heads_and_the_weight_of_the_whole_are_the_papers():
    method = make({"whole_weight": 2.0}).eval()
    parts = list(method.steps(method.views(stripes(6), Draw(0, 6), 32)))
    pooled = []
    for level, (view, labels, _) in enumerate(parts):
        maps = method.encoder.maps(view)[1:]
        pooled = [block(m).flatten(2).max(2).values for block, m in zip(method.blocks, maps, strict=True)]
        features = pooled[level] if level < 3 else torch.cat(pooled, dim=1)
        scores = method.classifiers[level](features)
        found = method.losses(parts[level], 0.0)
        loss = float(F.cross_entropy(scores, labels).detach())
        assert float(found["loss"].detach()) == pytest.approx(loss * (2 if level == 3 else 1), rel=1e-5)
        name = "loss_whole" if level == 3 else f"loss_level{level + 1}"
        assert float(found[name]) == pytest.approx(loss, rel=1e-5)
        assert ("accuracy" in found) == (level == 3)
        if level == 3:
            assert float(found["accuracy"]) == pytest.approx(float((scores.argmax(1) == labels).float().mean()))
    half, quarter = 192 // 2, 192 // 4
    assert [block[0].weight.shape[:2] for block in method.blocks] == [(quarter, width) for width in (48, 96, 192)]
    assert [block[3].weight.shape for block in method.blocks] == [(half, quarter, 3, 3)] * 3
    assert [head[0].weight.shape for head in method.classifiers] == [(quarter, half)] * 3 + [(quarter, 3 * half)]


def test_sizes_and_encoders_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match=r"image_size 60 .* finest = 8 .* 64"):
        make().views(stripes(2), Draw(0, 2), 60)
    kind = find_method("pmg")
    for name, card in ENCODERS.items():
        if card.transformer or name == "own":
            with pytest.raises(BadInput, match=rf"{name}.*small, resnet18"):
                kind.check(kind.Config(), name)
        else:
            kind.check(kind.Config(), name)


def test_pmg_is_learnt():
    method = make(STILL)
    training = Training(image_size=24, lr=3e-3)
    optimizers = {"loss": build_optimizer(training, method.objectives()["loss"])}
    for step in range(8):
        steps = list(train_batch(method, optimizers, training, stripes(30), Draw(step, 30), 0.0, 3e-3))
        assert len(steps) == 4
    assert float(steps[3]["loss_whole"]) < 0.3 * math.log(3)
    assert float(steps[3]["accuracy"]) > 0.9
