"""Colorization: its encoding, weights and losses against the paper's formulas written out, and that it learns."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bench.draw import Draw
from bench.encoders import build_encoder
from bench.errors import BadInput
from bench.images import ImageBatch
from bench.lab import bins, lab_to_srgb, srgb_to_lab
from bench.records import field_paths
from bench.registry import build, configure
from methods.colorization import (
    Colorization,
    ColorizationConfig,
    SoftBins,
    annealed_mean,
    class_weights,
    colourful,
    gray_picture,
    soft_cross_entropy,
)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def colours(batch: int = 4, side: int = 12) -> torch.Tensor:
    """ab `[B,2,side,side]` of random sRGB colours."""
    return srgb_to_lab(torch.rand(batch, 3, side, side, generator=generator()))[:, 1:].contiguous()


def pictures(count: int = 32, side: int = 24) -> ImageBatch:
    """Blobs whose colour follows from their lightness: dark ones are red, light ones green."""
    level = F.interpolate(torch.rand(count, 1, 3, 3, generator=generator(3)), (side, side), mode="bilinear")
    lab = torch.cat((30 + 50 * level, 50 - 100 * level, 30 + 0 * level), dim=1)
    return ImageBatch((lab_to_srgb(lab) * 255).round().to(torch.uint8), torch.ones(count))


def method(encoder: str = "small", **config: object) -> Colorization:
    torch.manual_seed(0)
    made = build("colorization", config, build_encoder(encoder, 0))
    assert isinstance(made, Colorization)
    return made


@pytest.mark.parametrize(("grid", "neighbours"), [(5, 10), (10, 5), (10, 10), (20, 3), (40, 16), (17, 1)])
def test_soft_encoding_is_that_over_all_cells(grid, neighbours):
    ab = colours()
    index, share = SoftBins(grid, neighbours, 5.0)(ab)
    centres = bins(grid).double().numpy()
    flat = ab.permute(0, 2, 3, 1).reshape(-1, 2).double().numpy()
    square = ((flat[:, None] - centres) ** 2).sum(2)
    order = np.sort(square, axis=1)[:, :neighbours]
    expected = np.exp(-order / (2 * 5.0**2))
    expected /= expected.sum(1, keepdims=True)
    found = index.permute(0, 2, 3, 1).reshape(-1, neighbours).numpy()
    np.testing.assert_allclose(np.take_along_axis(square, found, 1), order, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(share.permute(0, 2, 3, 1).reshape(-1, neighbours).numpy(), expected, atol=1e-4)
    assert (np.sort(found)[:, 1:] != np.sort(found)[:, :-1]).all()


def test_weights_are_equation_4():
    seen = torch.tensor([6.0, 3.0, 1.0, 0.0])
    share = [0.6, 0.3, 0.1, 0.0]
    for uniform in (0.1, 0.5, 1.0):
        raw = [1 / ((1 - uniform) * p + uniform / 4) for p in share]
        mean = sum(p * w for p, w in zip(share, raw, strict=True))
        torch.testing.assert_close(class_weights(seen, uniform), torch.tensor([w / mean for w in raw]))
        torch.testing.assert_close(class_weights(1000 * seen, uniform), class_weights(seen, uniform))
    assert torch.equal(class_weights(torch.zeros(3), 0.5), torch.ones(3))


def test_weights_are_of_the_colours_seen_in_all_batches():
    task = method(bin=20).train()
    batches = [task.views(pictures(), Draw(seed, 32), 32) for seed in (0, 1)]
    total = torch.zeros(len(bins(20)))
    for gray, ab in batches:
        task.losses((gray, ab), 0.0)
        index, share = SoftBins(20, 10, 5.0)(ab)
        total += torch.zeros(len(total)).scatter_add_(0, index.flatten(), share.flatten()) / ab[:, 0].numel()
    torch.testing.assert_close(task.seen, total)
    torch.testing.assert_close(task.seen.sum(), torch.tensor(2.0))
    assert torch.equal(task.state_dict()["seen"], task.seen)
    task.eval().losses(batches[0], 0.0)
    torch.testing.assert_close(task.seen, total)


def test_gray_pictures_do_not_count():
    ab = torch.tensor([[0.0, 4.9], [-4.9, 4.9], [5.0, 0.0], [0.0, -30.0]]).view(4, 2, 1, 1).expand(-1, -1, 3, 3).clone()
    assert colourful(ab, 5.0).flatten().tolist() == [0, 0, 1, 1]
    ab[0, 1, 2, 2] = 6.0  # one pixel suffices
    assert colourful(ab, 5.0).flatten().tolist() == [1, 0, 1, 1]
    for mode in ("bins", "regression"):
        task = method(mode=mode).train()
        pixels = torch.full((4, 3, 24, 24), 120, dtype=torch.uint8)
        views = task.views(ImageBatch(pixels, torch.ones(4)), Draw(0, 4), 32)
        losses = task.losses(views, 0.0)
        assert losses["loss"] == losses["colourful"] == 0
        assert task.seen.sum() == 0


def test_pixels_are_counted_by_a_constant():
    task = method(gray=5.0).train()
    gray, ab = task.views(pictures(8), Draw(0, 8), 32)
    half = ab.clone()
    half[4:] = 0
    whole, part = (task.eval().losses((gray, target), 0.0) for target in (ab, half))
    alone = task.losses((gray[:4], ab[:4]), 0.0)
    assert part["colourful"] == 0.5
    torch.testing.assert_close(part["loss"], alone["loss"] / 2, rtol=1e-4, atol=1e-5)
    assert whole["loss"] > part["loss"]


def test_the_loss_by_hand():
    logits = torch.tensor([1.0, -2.0, 0.5, 0.0]).view(1, 4, 1, 1)
    index, share = torch.tensor([2, 0]).view(1, 2, 1, 1), torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
    scores = [math.exp(value) for value in logits.flatten().tolist()]
    expected = -(0.75 * math.log(scores[2] / sum(scores)) + 0.25 * math.log(scores[0] / sum(scores)))
    assert soft_cross_entropy(logits, index, share).item() == pytest.approx(expected, abs=1e-6)

    task = method(bin=20).train()
    gray, ab = task.views(pictures(3), Draw(0, 3), 16)
    losses = task.losses((gray, ab), 0.0)
    with torch.no_grad():
        logits = task.decoder(task.encoder.maps(gray), ab.shape[2])
    index, share = SoftBins(20, 10, 5.0)(ab)
    dense = torch.zeros_like(logits).scatter_(1, index, share)
    cross = F.cross_entropy(logits, dense, reduction="none")
    weight = class_weights(task.seen, 0.5)[index[:, 0]]
    torch.testing.assert_close(losses["loss"].detach(), (cross * weight).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["unweighted"], cross.mean(), rtol=1e-4, atol=1e-5)


def test_regression_is_half_the_squared_error():
    task = method(mode="regression").eval()
    gray, ab = task.views(pictures(3), Draw(0, 3), 16)
    with torch.no_grad():
        losses = task.losses((gray, ab), 0.0)
        out = task.decoder(task.encoder.maps(gray), 4)
    assert out.shape == ab.shape == (3, 2, 4, 4)
    total = sum(0.5 * (out[i, :, y, x] - ab[i, :, y, x] / 110).square().sum() for i, y, x in np.ndindex(3, 4, 4))
    torch.testing.assert_close(losses["loss"], total / 48)
    torch.testing.assert_close(losses["loss_of_gray"], (ab / 110).square().sum(1).mean() / 2)


def test_annealed_mean_lies_between_the_mode_and_the_mean():
    centres = bins(20)
    logits = 3 * torch.randn(2, len(centres), 3, 3, generator=generator())
    mode = centres[logits.argmax(1)].permute(0, 3, 1, 2)
    mean = torch.einsum("bqhw,qc->bchw", logits.softmax(1), centres)
    torch.testing.assert_close(annealed_mean(logits, centres, 1e-4), mode)
    torch.testing.assert_close(annealed_mean(logits, centres, 1.0), mean)
    shares = logits.softmax(1) ** (1 / 0.38)  # equation 5
    expected = torch.einsum("bqhw,qc->bchw", shares / shares.sum(1, keepdim=True), centres)
    torch.testing.assert_close(annealed_mean(logits, centres, 0.38), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("size", "target", "side"), [(32, 4, 8), (32, 1, 32), (30, 4, 7), (16, 32, 1)])
def test_views_are_gray_pictures_and_smaller_ab(size, target, side):
    gray, ab = method(target=target).views(pictures(4), Draw(0, 4), size)
    assert gray.shape == (4, 3, size, size)
    assert ab.shape == (4, 2, side, side)
    assert torch.equal(gray[:, 0], gray[:, 1])
    assert torch.equal(gray[:, 0], gray[:, 2])
    assert 0 <= gray.min() < gray.max() <= 1
    assert ab.abs().max() > 20


@pytest.mark.parametrize(
    ("encoder", "size", "mode"),
    [("small", 48, "regression"), ("resnet18", 32, "bins"), ("vit_micro", 32, "bins"), ("vit_micro", 32, "regression")],
)
def test_every_kind_of_encoder(encoder, size, mode):
    task = method(encoder, mode=mode, hidden=8).train()
    losses = task.losses(task.views(pictures(4), Draw(0, 4), size), 0.0)
    gradients = torch.autograd.grad(losses["loss"], task.objectives()["loss"], allow_unused=True)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_bf16_changes_the_convolutions_only():
    task = method().train()
    views = task.views(pictures(8), Draw(0, 8), 32)
    plain = task.losses(views, 0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = method().train().losses(views, 0.0)
    assert mixed["loss"].dtype == torch.float32
    torch.testing.assert_close(mixed["loss"], plain["loss"], rtol=0.02, atol=0)


@pytest.mark.parametrize("mode", ["bins", "regression"])
def test_it_learns_colours_that_follow_from_lightness(mode):
    task = method(mode=mode, bin=20, target=8, hidden=32, crop={"low": 1.0})
    images = pictures()
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    history = []
    for step in range(30):
        losses = task.train().losses(task.views(images, Draw(step, 32), 32), 0.0)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append(losses["loss"].item())
    assert history[-1] < 0.5 * history[0]
    with torch.no_grad():
        figures = task.eval().validation(images, 32)
    assert figures["ab_rmse"] < 0.8 * figures["ab_rmse_of_gray"]
    if mode == "bins":
        assert figures["bin_accuracy"] > figures["bin_accuracy_of_commonest"]


def test_pictures_show_gray_told_and_original():
    images = pictures(10)
    with torch.no_grad():
        (grid,) = method().eval().pictures(images, 32).values()
    assert grid.shape == (3, 2 + 3 * 34, 2 + 8 * 34)
    first, last = grid[:, 2:34, 2:34], grid[:, -34:-2, 2:34]
    torch.testing.assert_close(first[0], first[1], atol=1e-4, rtol=0)
    assert (last[0] - last[1]).abs().max() > 0.1


def test_downstream_the_encoder_sees_what_it_saw_in_training():
    images = pictures(6).pixels / 255
    for sees in ("lightness", "colours"):
        encoder = copy.deepcopy(method(downstream=sees).eval().encoder)  # as finetune takes it
        expected = gray_picture(images) if sees == "lightness" else images
        assert torch.equal(encoder(images), encoder.maps(expected)[-1].mean((2, 3)))
    seen = images.clone().requires_grad_()
    method().eval().encoder(seen).sum().backward()
    assert seen.grad.isfinite().all()
    assert seen.grad.abs().amax((0, 2, 3)).min() > 0


def test_regression_has_no_bins():
    plain = configure("colorization", {"mode": "regression"}, "test")
    swept = {"mode": "regression", "bin": 20, "neighbours": 5, "sigma": 3.0, "uniform": 0.2}
    assert configure("colorization", swept, "test") == plain
    assert configure("colorization", plain.model_dump(mode="json"), "test") == plain
    assert configure("colorization", swept | {"hidden": 32}, "test") != plain
    assert configure("colorization", swept | {"mode": "bins"}, "test") != configure("colorization", {}, "test")


def test_its_hyperparameters_can_be_swept_and_wrong_ones_are_named():
    assert {"mode", "bin", "neighbours", "sigma", "uniform", "crop.low", "crop.flip"} <= set(
        field_paths(ColorizationConfig)
    )
    for wrong, says in (
        ({"bin": 4}, "bin"),
        ({"uniform": 0}, "uniform"),
        ({"neighbors": 5}, "did you mean 'neighbours'"),
    ):
        with pytest.raises(BadInput, match=says):
            configure("colorization", wrong, "test")
