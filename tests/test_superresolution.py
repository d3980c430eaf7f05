"""Super-resolution networks against the paper's table, PSNR and SSIM against plain loops."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from bench import superresolution as sr


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(seed: int = 0, side: int = 18) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(2, 3, side, side + 3, generator=generator)
    return first, (first + 0.2 * torch.randn(first.shape, generator=generator)).clamp(0, 1)


def luma(image: torch.Tensor) -> np.ndarray:
    red, green, blue = image.double().numpy()
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def plain_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Wang et al. 2004, equations 13 to 17: weighted statistics of every 11x11 window, then their mean."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weight = np.outer(line, line) / line.sum() ** 2
    values = []
    for top in range(first.shape[0] - 10):
        for left in range(first.shape[1] - 10):
            x, y = (image[top : top + 11, left : left + 11] for image in (first, second))
            mx, my = (weight * x).sum(), (weight * y).sum()
            sxx, syy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
            sxy = (weight * (x - mx) * (y - my)).sum()
            c1, c2 = (0.01 * 1) ** 2, (0.03 * 1) ** 2
            values.append((2 * mx * my + c1) * (2 * sxy + c2) / ((mx**2 + my**2 + c1) * (sxx + syy + c2)))
    return float(np.mean(values))


def test_ssim_is_that_of_the_paper():
    first, second = pair()
    expected = [plain_ssim(luma(a), luma(b)) for a, b in zip(first, second, strict=True)]
    assert sr.ssim(first, second).tolist() == pytest.approx(expected, abs=1e-4)
    assert 0.2 < expected[0] < 0.98


def test_psnr_is_that_of_the_mean_squared_error():
    first, second = pair()
    expected = [10 * math.log10(1 / np.mean((luma(a) - luma(b)) ** 2)) for a, b in zip(first, second, strict=True)]
    assert sr.psnr(first, second).tolist() == pytest.approx(expected, abs=1e-3)


def test_equal_images_are_alike_and_still_finite():
    first, second = pair()
    assert sr.psnr(first, first).tolist() == [sr.MOST_PSNR] * 2
    assert sr.ssim(first, first).tolist() == pytest.approx([1, 1], abs=1e-5)
    torch.testing.assert_close(sr.ssim(first, second), sr.ssim(second, first))
    gray = torch.full_like(first, 0.5)
    assert sr.ssim(gray, gray).tolist() == pytest.approx([1, 1], abs=1e-5)


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize("removed", [0, 2, 8])
def test_the_papers_generator_has_its_size_wherever_it_is_cut(removed):
    with torch.device("meta"):
        whole = count(sr.generator_encoder(64, 16 - removed), sr.Restorer(64, removed))
    stem, image = 3 * 81 * 64 + 64, 64 * 81 * 3 + 3
    block = 2 * 9 * 64 * 64 + 2 * (64 + 64)  # two convolutions, weight and bias of two batch norms
    middle = 9 * 64 * 64 + 2 * 64
    upsampling = 9 * 64 * 256 + 256
    prelus = 64 * (1 + 16 + 2)
    assert whole == stem + 16 * block + middle + 2 * upsampling + image + prelus == 1_548_547


def test_the_papers_discriminator_has_its_convolutions():
    encoder = sr.discriminator_encoder(64)
    shapes = [(m.in_channels, m.out_channels, m.stride[0]) for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    widths = [64, 64, 128, 128, 256, 256, 512, 512]
    assert shapes == list(zip([3, *widths[:-1]], widths, [1, 2] * 4, strict=True))
    assert [(layer.in_features, layer.out_features) for layer in sr.verdict(512)[::2]] == [(512, 1024), (1024, 1)]


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_last_stage_of_a_generator_is_its_last_block(blocks):
    encoder = sr.generator_encoder(8, blocks)
    last = getattr(encoder.trunk, f"block{blocks}")
    assert [id(p) for p in encoder.last_stage()] == [id(p) for p in last.parameters()]
    maps = encoder.eval().maps(torch.rand(2, 3, 20, 24))
    assert len(maps) == len(encoder.widths)
    assert {tuple(one.shape) for one in maps} == {(2, 8, 20, 24)}


@pytest.mark.parametrize("side", [12, 17, 32])
def test_encoders_take_images_of_any_size(side):
    images = torch.rand(2, 3, side, side + 5)
    for encoder in (sr.generator_encoder(8, 2), sr.discriminator_encoder(4)):
        assert encoder.eval()(images).shape == (2, encoder.dim)


def test_restored_images_have_four_times_the_side():
    encoder, restorer = sr.generator_encoder(8, 2).eval(), sr.Restorer(8, 1, kernel=3).eval()
    maps = encoder.maps(torch.rand(2, 3, 5, 7))
    assert restorer(maps[0], maps[-1]).shape == (2, 3, 20, 28)


def test_reduction_and_enlargement_keep_what_is_smooth():
    ramp = torch.linspace(0.1, 0.9, 32).expand(1, 3, 32, 32)
    low = sr.reduce(ramp)
    assert low.shape == (1, 3, 8, 8)
    torch.testing.assert_close(low[..., 2:-2], ramp.unflatten(3, (8, 4)).mean(4)[..., ::4, 2:-2], atol=1e-3, rtol=0)
    assert (sr.enlarge(low) - ramp)[..., 14:-14].abs().max() < 1e-3
    checks = torch.ones(1, 3, 32, 32)
    checks[..., ::2] = 0  # the finest stripes must not survive as a pattern
    assert sr.reduce(checks)[..., 1:-1].std() < 0.01
