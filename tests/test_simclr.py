"""SimCLR's loss against the paper's formula and lightly's, and its views."""

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from bench import colour
from bench.augmentation import augment
from bench.draw import Draw
from bench.encoders import build_encoder
from bench.errors import BadInput
from bench.images import ImageBatch
from bench.method import Views
from bench.records import field_paths
from bench.registry import build, configure
from methods.simclr import SimCLRConfig, nt_xent

OFF = {"gamma": {"enabled": False}}
CHANGES = {
    "gamma": {"low": 0.3, "high": 1.7},
    "coarse_dropout": {"holes": 3, "probability": 0.4},
    "patch_swap": {"pairs": 1, "size": 0.5},
    "jigsaw": {"grid": 4},
    "local_jigsaw": {"grid": 5, "reach": 1},
    "smart_crop": {"low": 0.1, "high": 0.2, "candidates": 3},
}


def formula(first: Tensor, second: Tensor, temperature: float) -> float:
    """Equation 1 of arXiv 2002.05709 in plain loops: the mean of l(i,j) over all 2N positive pairs."""
    rows = [row / row.norm() for pair in zip(first, second, strict=True) for row in pair]
    total = 0.0
    for i, row in enumerate(rows):
        partner = i + 1 if i % 2 == 0 else i - 1
        scores = [math.exp(float(row @ other) / temperature) for other in rows]
        total -= math.log(scores[partner] / (sum(scores) - scores[i]))
    return total / len(rows)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_is_equation_1(temperature):
    first, second = torch.randn(2, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(nt_xent(first, second, temperature)) == pytest.approx(formula(first, second, temperature), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_and_its_gradient_are_lightlys(temperature):
    pairs = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    theirs = NTXentLoss(temperature=temperature)(*pairs)
    mine = nt_xent(*pairs, temperature)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, pairs)[0] for loss in (mine, theirs)))


def test_nt_xent_of_unrelated_views_is_near_the_log_of_the_choices():
    first, second = torch.randn(2, 256, 512, generator=torch.Generator().manual_seed(0))
    assert float(nt_xent(first, second, 1.0)) == pytest.approx(math.log(2 * 256 - 1), abs=0.02)
    assert float(nt_xent(first, first, 0.05)) < 0.01


def gray_batch(value: int = 100, count: int = 16) -> ImageBatch:
    return ImageBatch(torch.full((count, 3, 24, 24), value, dtype=torch.uint8), torch.ones(count))


def changes_on(*names: str) -> dict[str, object]:
    return OFF | {name: CHANGES[name] | {"enabled": True} for name in names}


def noise_batch(count: int = 16, side: int = 40) -> ImageBatch:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    return ImageBatch(pixels, torch.linspace(0.7, 1.5, count))


def views(config: dict[str, object], images: ImageBatch, size: int = 24) -> Views:
    return build("simclr", config, build_encoder("small", 0)).views(images, Draw(0, len(images)), size)


PLAIN = {"jitter": {"probability": 0}, "grayscale": 0, "crop": {"low": 1.0}}


@pytest.mark.parametrize("which", ["one", "both"])
def test_gamma_changes_one_view_or_both(which):
    first, second = views(PLAIN | {"gamma": {"low": 0.5, "high": 2.5, "views": which}}, gray_batch(), 16)
    base = 100 / 255
    exponents = [(view.mean(dim=(1, 2, 3)).log() / math.log(base)) for view in (first, second)]
    assert exponents[1].min() > 0.5 - 1e-4
    assert exponents[1].max() < 2.5 + 1e-4
    assert exponents[1].std() > 0.3
    if which == "one":
        assert torch.allclose(first, torch.full_like(first, base), atol=1e-5)
    else:
        assert exponents[0].std() > 0.3
        assert not torch.allclose(*exponents)


def test_views_are_those_of_version_1_where_it_had_them():
    images, config = noise_batch(), SimCLRConfig()
    draw = Draw(0, 16)
    plain = [augment(images, draw, 24, config) for _ in range(2)]
    changed = colour.gamma(plain[1], draw, config.gamma.low, config.gamma.high)
    for view, expected in zip(views(OFF, images), plain, strict=True):
        assert torch.equal(view, expected)
    for view, expected in zip(views({}, images), (plain[0], changed), strict=True):
        assert torch.equal(view, expected)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("which", ["one", "both"])
def test_a_change_changes_only_the_views_it_says(name, which):
    images = noise_batch()
    plain = views(OFF, images)
    changed = views(OFF | {name: CHANGES[name] | {"enabled": True, "views": which}}, images)
    different = [(a != b).flatten(1).any(1).float().mean().item() for a, b in zip(plain, changed, strict=True)]
    assert different[0] == 0 if which == "one" else different[0] > 0.2
    assert different[1] > 0.2
    assert all(0 <= view.min() <= view.max() <= 1 for view in changed)


@pytest.mark.parametrize("name", ["patch_swap", "jigsaw", "local_jigsaw"])
def test_what_moves_patches_keeps_every_pixel(name):
    images, options = noise_batch(), CHANGES[name] | {"enabled": True}
    size = 20  # whole tiles for each grid
    plain, changed = views(OFF, images, size), views(OFF | {name: options}, images, size)
    assert torch.equal(plain[1].flatten(2).sort(2).values, changed[1].flatten(2).sort(2).values)


def test_dropout_fills_some_samples_with_its_value():
    options = {"enabled": True, "holes": 4, "low": 0.3, "high": 0.3, "fill": 0.75, "probability": 0.5}
    plain, changed = (views(OFF | PLAIN | extra, gray_batch()) for extra in ({}, {"coarse_dropout": options}))
    filled = changed[1] == 0.75
    assert torch.equal(torch.where(filled, plain[1], changed[1]), plain[1])
    share = filled.float().mean((1, 2, 3))
    assert 0 < (share > 0).float().mean() < 1
    assert share[share > 0].min() >= 7**2 / 24**2 - 1e-6  # one hole of round(0.3 * 24) px


def test_smart_crop_goes_where_something_is_and_leaves_all_else_alone():
    pixels = torch.full((16, 3, 64, 64), 60, dtype=torch.uint8)
    pixels[:, :, 40:56, 8:24] = 250
    images = ImageBatch(pixels, torch.ones(16))
    config = OFF | {"jitter": {"probability": 0}, "grayscale": 0, "crop": {"low": 0.08, "high": 0.3}}
    smart = {"smart_crop": {"enabled": True, "low": 0.1, "high": 0.3, "candidates": 64}}
    plain, changed = views(config, images), views(config | smart, images)
    bright = [(view > 0.6).float().mean((1, 2, 3)) for view in (plain[1], changed[1])]
    assert (bright[1] > 0.05).all()
    assert bright[1].mean() > 2 * bright[0].mean()


def test_changes_do_not_disturb_each_other():
    images = noise_batch()
    alone = views(changes_on("gamma"), images)[1]
    both = views(changes_on("gamma", "coarse_dropout"), images)[1]
    kept = both != 0
    assert torch.equal(both[kept], alone[kept])
    assert 0.01 < (~kept).float().mean() < 0.5


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_off_is_one_configuration(name):
    off = configure("simclr", {name: {"enabled": False}}, "test")
    for no in (False, 0, "False", "no"):
        swept = configure("simclr", {name: CHANGES[name] | {"enabled": no, "views": "both"}}, "test")
        assert off == swept
    assert configure("simclr", off.model_dump(mode="json"), "test") == off
    on = configure("simclr", {name: CHANGES[name] | {"enabled": True}}, "test")
    assert configure("simclr", on.model_dump(mode="json"), "test") == on != off


def test_only_gamma_is_on_by_default():
    enabled = {name for name in CHANGES if getattr(SimCLRConfig(), name).enabled}
    assert enabled == {"gamma"}


def test_every_change_can_be_swept():
    paths = field_paths(SimCLRConfig)
    for name, options in CHANGES.items():
        assert {f"{name}.{key}" for key in (*options, "enabled", "views")} <= set(paths)
    assert {"temperature", "crop.low", "gamma.low", "gamma.high", "gamma.enabled"} <= set(paths)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"gamma": {"low": 1.5}}, r"gamma\.low"),
        ({"gama": {"low": 0.5}}, "did you mean 'gamma'"),
        ({"jigsaw": {"enabled": True, "gird": 3}}, "did you mean 'grid'"),
        ({"coarse_dropout": {"enabled": True, "low": 0.5, "high": 0.2}}, r"low \(0\.5\) must not exceed high \(0\.2\)"),
        ({"smart_crop": {"enabled": True, "low": 0.5, "high": 0.2}}, r"smart_crop: low \(0\.5\)"),
        ({"patch_swap": {"enabled": True, "pairs": 9}}, r"patch_swap: pairs \(9\).*at most 8"),
    ],
)
def test_wrong_values_are_named(wrong, says):
    with pytest.raises(BadInput, match=says):
        configure("simclr", wrong, "test")


@pytest.mark.parametrize("change", ["coarse_dropout", "patch_swap", "jigsaw", "local_jigsaw"])
def test_a_change_of_no_sample_is_said_by_switching_it_off(change):
    with pytest.raises(BadInput, match="greater than 0"):
        configure("simclr", {change: {"enabled": True, "probability": 0.0}}, "test")
