from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from bench import saliency as module
from bench.draw import Draw
from bench.images import ImageBatch
from bench.patches import numbers
from bench.saliency import box_sums, saliency, salient_crop


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the pictures are small and the machine may be shared
    yield
    torch.set_num_threads(before)


class ShapesOnly(Draw):
    """Draws without values: whatever needs one on the host (a synchronisation on a GPU) is an error."""

    def unit(self, count: int = 1) -> Tensor:
        return super().unit(count).to("meta")


def noise(batch: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


def spots(batch: int, height: int = 96, width: int = 96) -> tuple[Tensor, Tensor]:
    """Regular stripes with one gray disc each; also its place `[B,2]` (fractions, top and left)."""
    place = 0.2 + 0.6 * torch.rand(batch, 2, generator=torch.Generator().manual_seed(1))
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    stripes = (120 + 60 * torch.sin(2 * torch.pi * (6 * x + 3 * y))).expand(batch, 3, height, width)
    near = (y - place[:, 0].view(-1, 1, 1)) ** 2 + (x - place[:, 1].view(-1, 1, 1)) ** 2 < 0.06**2
    return torch.where(near.unsqueeze(1), 30.0, stripes).byte(), place


def by_the_paper(image: np.ndarray) -> np.ndarray:
    """Hou and Zhang's program in numpy and scipy, on luma `[S,S]`; the spectrum is periodic."""
    spectrum = np.fft.fft2(image)
    amplitude, phase = np.log(np.abs(spectrum)), np.angle(spectrum)
    residual = amplitude - ndimage.uniform_filter(amplitude, 3, mode="wrap")
    energy = np.abs(np.fft.ifft2(np.exp(residual + 1j * phase))) ** 2
    blurred = ndimage.gaussian_filter(energy, 2.5 / 64 * len(image), mode="mirror", truncate=3)
    return np.asarray(blurred / blurred.sum())


@pytest.mark.parametrize("side", [24, 32, 64])
def test_saliency_is_the_spectral_residual(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLOOR", 0.0)  # which the paper does not have: noise has no empty frequencies
    pixels = noise(6, side, side)
    ours = saliency(pixels, side)
    for image, found in zip(pixels.numpy() / 255, ours.numpy(), strict=True):
        theirs = by_the_paper(np.tensordot([0.2989, 0.587, 0.114], image, axes=1))
        assert np.abs(found - theirs).max() < 0.01 * theirs.max()


def test_the_floor_hardly_changes_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = saliency(noise(6))
    monkeypatch.setattr(module, "FLOOR", 0.0)
    assert (ours - saliency(noise(6))).abs().max() < 0.05 * ours.max()


def test_saliency_is_a_distribution_of_any_pixels() -> None:
    pixels = noise(5, 50, 70)
    ours = saliency(pixels)
    assert ours.shape == (5, 32, 32)
    assert ours.min() >= 0
    torch.testing.assert_close(ours.sum((1, 2)), torch.ones(5))
    torch.testing.assert_close(saliency(pixels.float() / 255), ours, atol=1e-6, rtol=1e-3)
    assert saliency(pixels, side=20).shape == (5, 20, 20)
    assert saliency(pixels[:, :, :9, :9], side=16).isfinite().all()


@pytest.mark.parametrize("level", [0, 1, 137, 255])
def test_one_colour_is_equally_salient_everywhere(level: int) -> None:
    ours = saliency(torch.full((2, 3, 50, 70), level, dtype=torch.uint8))
    torch.testing.assert_close(ours, torch.full((2, 32, 32), 1 / 32**2), rtol=1e-3, atol=0)


def test_what_breaks_a_pattern_is_salient() -> None:
    pixels, place = spots(40)
    ours = saliency(pixels)
    top = ours.flatten(1).argmax(1)
    found = torch.stack((top // 32, top % 32), dim=1) / 32 + 1 / 64
    assert ((found - place).norm(dim=1) < 0.12).double().mean() > 0.9


def test_box_sums_are_those_of_the_cells() -> None:
    density = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0, 0, 8, 8], [2, 3, 4, 1], [7, 0, 1, 8], [0, 5, 3, 3], [4, 4, 0, 0]]) / 8
    sums = box_sums(density, boxes.expand(4, 5, 4))
    for b in range(4):
        for box, found in zip((boxes * 8).int().tolist(), sums[b], strict=True):
            top, left, height, width = box
            assert found.item() == pytest.approx(
                density[b, top : top + height, left : left + width].sum().item(), abs=1e-5
            )


def test_box_sums_share_out_the_cells_that_a_box_cuts() -> None:
    density = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    fine = density.repeat_interleave(10, 1).repeat_interleave(10, 2) / 100
    boxes = torch.tensor([[7, 13, 31, 22], [0, 1, 59, 58], [33, 34, 1, 2]]).float() / 60
    boxes = boxes.expand(3, 3, 4)
    torch.testing.assert_close(box_sums(density, boxes), box_sums(fine, boxes), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("aspect", [0.2, 0.75, 1.0, 3.0])
def test_boxes_are_squares_inside_the_image(aspect: float) -> None:
    images = ImageBatch(noise(300), torch.full((300,), aspect))
    boxes = salient_crop(images, Draw(0, 300), (0.1, 0.8))
    assert boxes.shape == (300, 4)
    top, left, height, width = boxes.unbind(1)
    assert boxes.min() >= 0
    assert (top + height).max() <= 1 + 1e-6
    assert (left + width).max() <= 1 + 1e-6
    torch.testing.assert_close(aspect * width / height, torch.ones(300))
    area = height * width
    short = min(aspect, 1 / aspect)  # the share of the largest square
    assert area.min() >= min(0.1, short) - 1e-5
    assert area.max() <= min(0.8, short) + 1e-5


def test_one_candidate_is_a_random_crop() -> None:
    images = ImageBatch(noise(3000, 8, 8), torch.ones(3000))
    top, left, height, width = salient_crop(images, Draw(0, 3000), (0.2, 0.9), candidates=1).double().unbind(1)
    uniform = [(height * width - 0.2) / 0.7, top / (1 - height), left / (1 - width)]
    assert min(stats.kstest(values.numpy(), "uniform").pvalue for values in uniform) > 0.01


def test_the_crop_is_the_candidate_with_the_largest_saliency_minus_area() -> None:
    pixels, _ = spots(12, 60, 80)
    aspect = torch.linspace(0.5, 2.0, 12)
    ours = salient_crop(ImageBatch(pixels, aspect), Draw(3, 12), (0.1, 0.6), candidates=9)
    density = saliency(pixels).double()
    unit = numbers(Draw(3, 12), 27).double().view(12, 3, 9)
    for b in range(12):
        fine = density[b].repeat_interleave(30, 0).repeat_interleave(30, 1).numpy() / 900
        scores, candidates = [], []
        for share, down, across in unit[b].T.tolist():
            a = aspect[b].item()
            side = min(((0.1 + 0.5 * share) * a) ** 0.5, 1, a)  # in heights of the image
            top, left, tall, wide = down * (1 - side), across * (1 - side / a), side, side / a
            rows, columns = (slice(round(960 * s), round(960 * (s + e))) for s, e in ((top, tall), (left, wide)))
            scores.append(fine[rows, columns].sum() - tall * wide)
            candidates.append([top, left, tall, wide])
        distance = np.abs(np.array(candidates) - ours[b].numpy()).max(1)
        assert distance.min() < 1e-5
        assert scores[distance.argmin()] > max(scores) - 2e-3  # which the whole pixels above cost


def test_crops_hold_what_is_salient() -> None:
    pixels, place = spots(300)
    images = ImageBatch(pixels, torch.ones(300))

    def holding(boxes: Tensor) -> float:
        inside = (boxes[:, :2] <= place) & (place <= boxes[:, :2] + boxes[:, 2:])
        return inside.all(1).double().mean().item()

    smart = salient_crop(images, Draw(0, 300), (0.08, 0.5))
    plain = salient_crop(images, Draw(0, 300), (0.08, 0.5), candidates=1)
    assert holding(plain) < 0.6
    assert holding(smart) > 0.9
    assert len(smart.unique(dim=0)) == 300


def test_where_nothing_stands_out_the_first_candidate_counts() -> None:
    images = ImageBatch(torch.full((50, 3, 20, 20), 90, dtype=torch.uint8), torch.ones(50))
    unit = numbers(Draw(0, 50), 48)
    boxes = salient_crop(images, Draw(0, 50), (0.1, 0.9), candidates=16)
    torch.testing.assert_close(boxes, module._squares(unit, images.aspect, (0.1, 0.9))[:, 0])


def test_a_workers_rows_are_those_of_the_batch() -> None:
    pixels, _ = spots(30)
    pixels[:10] = noise(10, 96, 96)
    aspect = torch.linspace(0.5, 2.0, 30)
    whole = salient_crop(ImageBatch(pixels, aspect), Draw(5, 30))
    for rows in (slice(0, 15), slice(15, 30), slice(3, 4)):
        part = salient_crop(ImageBatch(pixels[rows], aspect[rows]), Draw(5, 30, rows=rows))
        assert torch.equal(part, whole[rows])
    assert not torch.equal(salient_crop(ImageBatch(pixels, aspect), Draw(6, 30)), whole)


def test_settings_do_not_shift_the_stream() -> None:
    images = ImageBatch(noise(4), torch.ones(4))
    rest = []
    for candidates in (1, 40):
        draw = Draw(0, 4)
        salient_crop(images, draw, (0.1, 0.2), candidates)
        rest.append(draw.unit(3))
    assert torch.equal(*rest)


def test_no_value_is_needed_on_the_host() -> None:
    images = ImageBatch(torch.empty(4, 3, 40, 48, dtype=torch.uint8, device="meta"), torch.empty(4, device="meta"))
    assert salient_crop(images, ShapesOnly(0, 4)).shape == (4, 4)


@pytest.mark.gpu
def test_a_gpu_gives_the_boxes_of_a_cpu() -> None:
    pixels, _ = spots(60)
    aspect = torch.linspace(0.5, 2.0, 60)
    ours = salient_crop(ImageBatch(pixels.cuda(), aspect.cuda()), Draw(0, 60, device="cuda"))
    torch.testing.assert_close(ours.cpu(), salient_crop(ImageBatch(pixels, aspect), Draw(0, 60)), atol=1e-5, rtol=0)
