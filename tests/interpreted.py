"""The kernels of the views, run by Triton's interpreter on the CPU: run by `test_kernels` in a process of its own."""

import pytest
import torch

from bench import colour, fused, kernels, resample
from bench.draw import Draw
from bench.images import ImageBatch
from tests.changes import VIEWS, photographs, plain
from tests.pretended import There, pretended

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero")  # the logarithm of a black pixel, by NumPy


@pytest.mark.parametrize("size", [5, 61])
def test_bands_are_those_of_the_cpu(size):
    pixels = photographs(8, 30, 41)
    start, extent = torch.linspace(0, 9, 8), torch.linspace(3, 20, 8)
    rows = resample.triangle(start, extent, size, 30).scaled(1 / 255)
    columns = resample.triangle(start, extent, size, 41, torch.arange(8) % 3 == 0)
    found = kernels.band(kernels.band(pixels, rows.index, rows.weight, 2), columns.index, columns.weight, 3)
    torch.testing.assert_close(found.clamp(0, 1), resample.separable(pixels, rows, columns), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", VIEWS)
def test_views_with_the_kernels_are_those_of_the_cpu(name, monkeypatch):
    pixels, aspect = photographs(16, 28, 37), torch.linspace(0.5, 2, 16)
    expected = VIEWS[name](ImageBatch(pixels, aspect), Draw(3, 16))
    with pretended(monkeypatch, kernels) as device:
        there = ImageBatch(pixels.to("cuda"), aspect.to("cuda"))
        device.waits.clear()
        found = VIEWS[name](there, Draw(3, 16, device="cuda"))
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


def test_the_layout_of_what_is_given_does_not_matter():
    pixels, index = photographs(6, 9, 14), torch.arange(12).view(1, 6, 2).expand(6, 6, 2) % 9
    weight = torch.linspace(0, 1, 12).view(1, 6, 2).expand(6, 6, 2)
    expected = kernels.band(pixels, index.contiguous(), weight.contiguous(), 2)
    wide = torch.cat((pixels, pixels), dim=3)[..., :14]
    for same in (pixels.contiguous(memory_format=torch.channels_last), wide, pixels.mT.contiguous().mT):
        assert torch.equal(kernels.band(same, index, weight, 2), expected)
    x, chosen = plain(ImageBatch(pixels, torch.ones(6))), torch.tensor([True, False, False] * 4)[::2]
    expected = torch.where(chosen.view(-1, 1, 1, 1), torch.minimum(x, 1 - x), x)
    assert torch.equal(kernels.change(x.contiguous(memory_format=torch.channels_last), "solarize", chosen), expected)


def test_what_tries_a_device_finds_the_kernels_right():
    assert fused._changed(kernels, torch.device("cpu")) == []
