"""The kernels of the views, run by Triton's interpreter on the CPU: run by `test_kernels` in a process of its own."""

import pytest
import torch

from bench import colour, kernels, resample
from bench.draw import Draw
from bench.images import ImageBatch
from bench.views import crop, random_resized_crop
from tests.pretended import There, pretended

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero")  # the logarithm of a black pixel, by NumPy


def photographs(count: int, height: int, width: int) -> torch.Tensor:
    """Noise, some of it gray, black, white and saturated, uint8."""
    images = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0))
    images[0] = images[0, :1]
    images[1], images[2, :, :5], images[3, 1:] = 0, 255, 0
    return images.to(torch.uint8)


@pytest.mark.parametrize("size", [5, 24, 61])
def test_bands_are_those_of_the_cpu(size):
    pixels = photographs(8, 30, 41)
    start, extent = torch.linspace(0, 9, 8), torch.linspace(3, 20, 8)
    rows = resample.triangle(start, extent, size, 30).scaled(1 / 255)
    columns = resample.triangle(start, extent, size, 41, torch.arange(8) % 3 == 0)
    found = kernels.band(kernels.band(pixels, rows.index, rows.weight, 2), columns.index, columns.weight, 3)
    torch.testing.assert_close(found.clamp(0, 1), resample.separable(pixels, rows, columns), atol=1e-6, rtol=0)


VIEWS = {
    "crop": lambda x, draw: crop(x, random_resized_crop(x.aspect, draw), 20, draw.chance(0.5)),
    "jitter": lambda x, draw: colour.colour_jitter(plain(x), draw, 0.8, 0.8, 0.8, 0.2, 0.8),
    "strong jitter": lambda x, draw: colour.colour_jitter(plain(x), draw, 1.0, 1.0, 1.0, 0.5),
    "gray": lambda x, draw: colour.grayscale(plain(x), draw, 0.5),
    "gamma": lambda x, draw: colour.gamma(plain(x), draw, 0.3, 3.0, 0.7),
    "power of zero": lambda x, draw: colour.gamma(plain(x), draw, 0.0, 0.0),
    "solarize": lambda x, draw: colour.solarize(plain(x), draw, 0.5),
    "blur": lambda x, draw: colour.blur(plain(x), draw, 0.5),
}


def plain(x: ImageBatch) -> torch.Tensor:
    return x.pixels.float() / 255


@pytest.mark.parametrize("name", VIEWS)
def test_views_with_the_kernels_are_those_of_the_cpu(name, monkeypatch):
    pixels, aspect = photographs(24, 28, 37), torch.linspace(0.5, 2, 24)
    expected = VIEWS[name](ImageBatch(pixels, aspect), Draw(3, 24))
    with pretended(monkeypatch, kernels) as device:
        there = ImageBatch(pixels.to("cuda"), aspect.to("cuda"))
        device.waits.clear()
        found = VIEWS[name](there, Draw(3, 24, device="cuda"))
        assert isinstance(found, There)
        assert not device.waits
        torch.testing.assert_close(there.pixels.cpu(), pixels)
    torch.testing.assert_close(found.here, expected, atol=1e-5, rtol=0)


def test_only_what_is_allowed_to_be_overwritten_is(monkeypatch):
    before = plain(ImageBatch(photographs(8, 9, 9), torch.ones(8)))
    with pretended(monkeypatch, kernels):
        x = before.to("cuda")
        colour.solarize(x, Draw(0, 8, device="cuda"), 1.0)
        torch.testing.assert_close(x.here, before)
        colour.solarize(x, Draw(0, 8, device="cuda"), 1.0, inplace=True)
        assert (x.here != before).any()
