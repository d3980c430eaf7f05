"""Lab against published values and its own inverse; the ab cells against the colours that reach them."""

import pytest
import torch

from bench.lab import bins, lab_to_srgb, lightness, srgb_to_lab

# Lab (D65, 2 degrees) of sRGB's corners and a gray, as tables of them have it to two digits.
KNOWN = {
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
    (255, 255, 0): (97.14, -21.55, 94.48),
    (0, 255, 255): (91.11, -48.09, -14.13),
    (255, 0, 255): (60.32, 98.23, -60.82),
    (255, 255, 255): (100.0, 0.0, 0.0),
    (119, 119, 119): (50.03, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
}


def colours(count: int = 5000) -> torch.Tensor:
    """`[1,3,count,1]` random colours, many of them dark."""
    unit = torch.rand(1, 3, count, 1, generator=torch.Generator().manual_seed(0))
    return torch.where(torch.arange(count).view(1, 1, -1, 1) % 2 == 0, unit, unit * 0.08)


def test_published_values():
    codes = torch.tensor(list(KNOWN), dtype=torch.float32).view(-1, 3, 1, 1) / 255
    torch.testing.assert_close(srgb_to_lab(codes)[:, :, 0, 0], torch.tensor(list(KNOWN.values())), atol=0.011, rtol=0)


def test_the_definition_written_out_in_double_precision():
    rgb = colours()
    value = rgb.double()
    linear = torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
        dtype=torch.float64,
    )
    white = torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64).view(1, 3, 1, 1)
    t = torch.einsum("ij,bjhw->bihw", matrix, linear) / white
    x, y, z = torch.where(t > (6 / 29) ** 3, t ** (1 / 3), t / (3 * (6 / 29) ** 2) + 4 / 29).unbind(1)
    expected = torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1).float()
    torch.testing.assert_close(srgb_to_lab(rgb), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(srgb_to_lab(value).float(), expected, atol=1e-4, rtol=0)


def test_lightness_is_the_first_channel_and_rises_with_gray():
    assert torch.equal(lightness(colours()), srgb_to_lab(colours())[:, :1])
    ramp = torch.arange(256).div(255).view(1, 1, 256, 1).expand(1, 3, -1, -1)
    lab = srgb_to_lab(ramp)
    assert (lab[0, 0, :, 0].diff() > 0).all()
    assert lab[:, 1:].abs().max() < 1e-4


def test_round_trip():
    rgb = colours()
    torch.testing.assert_close(lab_to_srgb(srgb_to_lab(rgb)), rgb, atol=2e-5, rtol=0)


def test_colours_that_srgb_has_not_are_cut():
    wild = torch.tensor([[50.0, 200.0, -200.0], [150.0, 0.0, 0.0], [-20.0, 30.0, 30.0]]).view(3, 3, 1, 1)
    rgb = lab_to_srgb(wild)
    assert rgb.min() == 0
    assert rgb.max() == 1
    assert torch.equal(rgb[1].flatten(), torch.ones(3))


def test_batches_shapes_and_inputs_are_kept():
    rgb = torch.rand(5, 3, 90, 110, generator=torch.Generator().manual_seed(1))  # more than one block
    before = rgb.clone()
    for layout in (torch.contiguous_format, torch.channels_last):
        lab = srgb_to_lab(rgb.contiguous(memory_format=layout))
        assert torch.equal(torch.cat([srgb_to_lab(image[None]) for image in rgb]), lab)
    assert torch.equal(rgb, before)
    kept = lab.clone()
    lab_to_srgb(lab)
    assert torch.equal(lab, kept)


def test_autocast_does_not_round():
    rgb = colours(100)
    plain = srgb_to_lab(rgb)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(srgb_to_lab(rgb), plain)


@pytest.mark.parametrize("change", [srgb_to_lab, lightness, lab_to_srgb])
def test_gradients_are_those_of_differences(change):
    values = torch.tensor([[0.02, 0.3, 0.9], [0.5, 0.01, 0.2]], dtype=torch.float64).view(2, 3, 1, 1)
    if change is lab_to_srgb:
        values = srgb_to_lab(values)
    assert torch.autograd.gradcheck(change, values.requires_grad_())


@pytest.mark.parametrize(("grid", "count"), [(5, 969), (10, 261), (20, 77), (40, 23)])
def test_bins_are_the_cells_that_colours_reach(grid, count):
    centres = bins(grid)
    assert centres.shape == (count, 2)
    assert centres.dtype == torch.float32
    assert torch.equal(centres, torch.unique(centres, dim=0))  # a before b, ascending, none twice
    assert (centres == 0).all(1).sum() == 1  # gray
    assert torch.equal(centres % grid, torch.zeros_like(centres))
    # A colour's cell is a bin, but for slivers that 8-bit colours miss.
    ab = srgb_to_lab(torch.rand(1, 3, 20_000, 1, generator=torch.Generator().manual_seed(2)))[0, 1:, :, 0].T
    apart = (ab[:, None] - centres).abs().amax(2).min(1).values
    assert (apart <= grid / 2 + 1e-3).float().mean() > 0.999


def test_every_bin_is_in_gamut():
    levels = torch.linspace(0, 1, 256)
    face = torch.cartesian_prod(levels, levels)
    ends = [torch.full((len(face), 1), end) for end in (0.0, 1.0)]
    surface = torch.cat([torch.cat((face, end), 1).roll(axis, 1) for axis in range(3) for end in ends])
    ab = srgb_to_lab(surface.T.reshape(1, 3, -1, 1))[0, 1:, :, 0].T
    for grid in (10, 25):
        reached = {tuple(cell) for cell in (ab / grid).round().long().unique(dim=0).tolist()}
        missing = {tuple(cell) for cell in (bins(grid) / grid).long().tolist()} - reached
        assert len(missing) <= 1  # in double and single precision a colour may lie on either side of an edge


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_colours():
    rgb = colours()
    torch.testing.assert_close(srgb_to_lab(rgb.cuda()).cpu(), srgb_to_lab(rgb), atol=1e-3, rtol=0)
    torch.testing.assert_close(lab_to_srgb(srgb_to_lab(rgb.cuda())).cpu(), rgb, atol=2e-5, rtol=0)
