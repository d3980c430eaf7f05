import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from bench import views
from bench.draw import Draw
from bench.images import ImageBatch
from bench.resample import Band, products, separable, triangle

COUNT = 4000


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


def noise(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


def square(pixels: Tensor) -> ImageBatch:
    return ImageBatch(pixels, torch.ones(len(pixels)))


def torchvision_boxes(width: int, height: int, count: int, seed: int = 1) -> Tensor:
    """Boxes `[count,4]` in fractions from torchvision's own draws on images of `height` x `width` pixels."""
    transform = v2.RandomResizedCrop(8)
    image = torch.empty(3, height, width, device="meta")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        boxes = [[*transform.make_params([image]).values()] for _ in range(count)]
    return torch.tensor(boxes) / torch.tensor([height, width, height, width])


def features(boxes: Tensor, aspect: float) -> dict[str, np.ndarray]:
    top, left, height, width = boxes.double().numpy().T
    values = {
        "area": height * width,
        "log ratio": np.log(aspect * width / height),
        "centre y": top + height / 2,
        "centre x": left + width / 2,
    }
    return {name: np.round(value, 2) for name, value in values.items()}  # torchvision rounds to pixels


def p_values(ours: Tensor, theirs: Tensor, aspect: float) -> dict[str, float]:
    one, other = features(ours, aspect), features(theirs, aspect)
    return {name: float(stats.ks_2samp(one[name], other[name], method="asymp").pvalue) for name in one}


@pytest.mark.parametrize(("width", "height"), [(2000, 2000), (2400, 2000), (4000, 2000), (2000, 6000), (2000, 16000)])
def test_crops_are_distributed_as_torchvisions(width: int, height: int) -> None:
    aspect = width / height
    ours = views.random_resized_crop(torch.full((COUNT,), aspect), Draw(0, COUNT))
    found = p_values(ours, torchvision_boxes(width, height, COUNT // 2), aspect)
    assert min(found.values()) > 0.01, found


def test_the_comparison_would_see_a_uniform_ratio_and_an_ignored_aspect(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torchvision_boxes(4000, 2000, COUNT // 2)
    stretched = views.random_resized_crop(torch.ones(COUNT), Draw(0, COUNT))
    assert p_values(stretched, theirs, 2.0)["log ratio"] < 1e-6
    monkeypatch.setattr(views.math, "log", lambda value: value)
    monkeypatch.setattr(Tensor, "exp", lambda self: self)
    uniform = views.random_resized_crop(torch.full((COUNT,), 2.0), Draw(0, COUNT))
    assert p_values(uniform, theirs, 2.0)["log ratio"] < 0.01


@pytest.mark.parametrize("aspect", [1 / 30, 1 / 8, 0.5, 1.0, 3.0, 30.0])
def test_boxes_lie_inside_and_respect_their_bounds(aspect: float) -> None:
    boxes = views.random_resized_crop(torch.full((500,), aspect), Draw(3, 500), scale=(0.2, 0.9))
    top, left, height, width = boxes.unbind(1)
    assert boxes.min() >= 0
    assert (top + height).max() <= 1 + 1e-6
    assert (left + width).max() <= 1 + 1e-6
    ratio = aspect * width / height
    assert ratio.min() >= 3 / 4 - 1e-4
    assert ratio.max() <= 4 / 3 + 1e-4
    assert (height * width).max() <= 0.9 + 1e-5


def test_the_fallback_is_the_largest_central_box_within_the_ratio() -> None:
    tall, wide = views.random_resized_crop(torch.tensor([1 / 8, 8.0]), Draw(0, 2), scale=(0.9, 1.0))
    assert tall.tolist() == pytest.approx([0.5 - 1 / 12, 0, 1 / 6, 1])
    assert wide.tolist() == pytest.approx([0, 0.5 - 1 / 12, 1, 1 / 6])
    whole = views.random_resized_crop(torch.tensor([1.1]), Draw(0, 1), scale=(5.0, 6.0))
    assert whole.tolist() == [[0, 0, 1, 1]]


def test_the_first_fitting_attempt_counts() -> None:
    draw = Draw(5, 300)
    unit = Draw(5, 300).unit(2 * views.ATTEMPTS)
    boxes = views.random_resized_crop(torch.full((300,), 3.0), draw)
    for row, box in zip(unit.tolist(), boxes.tolist(), strict=True):
        for area, turn in zip(row[:10], row[10:], strict=True):
            shape = math.exp(math.log(3 / 4) + math.log(16 / 9) * turn)
            height, width = math.sqrt((0.08 + 0.92 * area) * 3 / shape), math.sqrt((0.08 + 0.92 * area) * shape / 3)
            if height <= 1 and width <= 1:
                assert box[2:] == pytest.approx([height, width], abs=1e-5)
                break


def test_centre_crop_is_the_evaluation_protocols() -> None:
    pixels = noise(1, 256, 512)
    boxes = views.centre_crop(torch.tensor([2.0]))
    assert boxes[0].tolist() == pytest.approx([1 / 16, 0.5 - 7 / 32, 7 / 8, 7 / 16])
    ours = views.crop(ImageBatch(pixels, torch.tensor([2.0])), boxes, 56)
    theirs = tv.resized_crop(pixels[0].float() / 255, 16, 144, 224, 224, [56, 56], antialias=True)
    torch.testing.assert_close(ours[0], theirs, atol=1e-4, rtol=0)
    tall = views.centre_crop(torch.tensor([0.5]), share=1.0)
    assert tall[0].tolist() == pytest.approx([0.25, 0, 0.5, 1])


BOXES = [(0, 0, 96, 96), (10, 20, 50, 40), (90, 91, 6, 5), (0, 33, 96, 63), (13, 0, 64, 64), (40, 40, 1, 2)]


@pytest.mark.parametrize("size", [16, 64, 100])
def test_crop_equals_torchvision_on_whole_pixels(size: int) -> None:
    pixels = noise(len(BOXES), 96, 96)
    flip = torch.arange(len(BOXES)) % 2 == 0
    ours = views.crop(square(pixels), torch.tensor(BOXES) / 96, size, flip)
    for image, box, mirrored, view in zip(pixels, BOXES, flip, ours, strict=True):
        theirs = tv.resized_crop(image.float() / 255, *box, [size, size], antialias=True)
        theirs = tv.horizontal_flip(theirs) if mirrored else theirs
        torch.testing.assert_close(view, theirs, atol=1e-4, rtol=0)
    unflipped = views.crop(square(pixels), torch.tensor(BOXES) / 96, size)
    torch.testing.assert_close(unflipped[1::2], ours[1::2])


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 32), (8, 400, 64), (400, 8, 16), (30, 47, 24)])
def test_crop_equals_torchvision_on_odd_canvases(height: int, width: int, size: int) -> None:
    pixels = noise(2, height, width)
    boxes = torch.tensor([[1, 2, height - 2, width - 3], [0, 0, height, width]])
    ours = views.crop(square(pixels), boxes / torch.tensor([height, width, height, width]), size)
    for image, box, view in zip(pixels, boxes.tolist(), ours, strict=True):
        theirs = tv.resized_crop(image.float() / 255, *box, [size, size], antialias=True)
        torch.testing.assert_close(view, theirs, atol=1e-4, rtol=0)


def scene(height: int, width: int) -> Tensor:
    """A smooth uint8 picture `[3,height,width]`, the same at every resolution."""
    y = ((torch.arange(height) + 0.5) / height).view(-1, 1)
    x = ((torch.arange(width) + 0.5) / width).view(1, -1)
    planes = [torch.sin(9 * x + 4 * y), torch.cos(7 * y * x), torch.sin(12 * y - 5 * x)]
    return ((torch.stack(planes) + 1) * 127.5).round().byte()


def test_crop_undoes_the_stretch_of_the_canvas() -> None:
    image, stretched = scene(200, 600), scene(256, 256)
    batch = ImageBatch(stretched[None], torch.tensor([3.0]))
    boxes = views.random_resized_crop(batch.aspect, Draw(2, 1))
    true = (boxes[0] * torch.tensor([200, 600, 200, 600])).round()
    theirs = tv.resized_crop(image.float() / 255, *true.int().tolist(), [48, 48], antialias=True)
    ours = views.crop(batch, (true / torch.tensor([200, 600, 200, 600]))[None], 48)[0]
    assert (ours - theirs).abs().max() < 0.02
    assert (ours.flip(2) - theirs).abs().max() > 0.2


def test_fractional_boxes_interpolate_between_whole_ones() -> None:
    pixels = scene(64, 64)[None]
    places = [views.crop(square(pixels), torch.tensor([[top, 8, 32, 32]]) / 64, 16) for top in (10, 10.5, 11)]
    assert (places[1] - (places[0] + places[2]) / 2).abs().max() < 0.02
    assert (places[1] - places[0]).abs().max() > 0.01


def test_matrix_products_equal_the_row_sums() -> None:
    pixels = noise(4, 40, 70)
    boxes = views.random_resized_crop(torch.full((4,), 1.75), Draw(0, 4))
    rows = triangle(boxes[:, 0] * 40, boxes[:, 2] * 40, 24, 40).scaled(1 / 255)
    columns = triangle(boxes[:, 1] * 70, boxes[:, 3] * 70, 32, 70, torch.tensor([True, False, True, False]))
    sums = separable(pixels, rows, columns)
    torch.testing.assert_close(products(pixels, rows, columns), sums, atol=1e-5, rtol=0)
    turned = products(pixels.mT, columns, rows)
    torch.testing.assert_close(turned.mT, sums, atol=1e-5, rtol=0)


def test_weights_sum_to_one() -> None:
    start, extent = torch.tensor([0.0, 3.3, 7.9]), torch.tensor([8.0, 0.4, 0.1])
    band = triangle(start, extent, 400, 8)
    assert isinstance(band, Band)
    torch.testing.assert_close(band.dense(8).sum(2), torch.ones(3, 400))


def view(images: ImageBatch, draw: Draw, size: int = 12) -> Tensor:
    return views.crop(images, views.random_resized_crop(images.aspect, draw), size, draw.chance(0.5))


def test_a_workers_views_are_its_rows_of_the_batch() -> None:
    images = ImageBatch(noise(6, 20, 30), torch.linspace(0.3, 3, 6))
    whole = view(images, Draw(7, 6))
    for rows in (slice(0, 3), slice(3, 6), slice(4, 5)):
        part = ImageBatch(images.pixels[rows], images.aspect[rows])
        assert torch.equal(view(part, Draw(7, 6, rows=rows)), whole[rows])
    assert torch.equal(view(images, Draw(7, 6)), whole)
    assert not torch.equal(view(images, Draw(8, 6)), whole)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_images_stay_flat(value: int) -> None:
    pixels = torch.full((3, 3, 9, 300), value, dtype=torch.uint8)
    out = view(ImageBatch(pixels, torch.tensor([0.1, 1.0, 10.0])), Draw(0, 3), 33)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert out.min() >= 0
    assert out.max() <= 1
    torch.testing.assert_close(out, torch.full_like(out, value / 255))


def test_a_batch_larger_than_one_block_is_resampled_alike() -> None:
    pixels = noise(9, 200, 200)
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6]]).expand(9, 4)
    whole = views.crop(square(pixels), boxes, 20)
    assert torch.equal(whole[8:], views.crop(square(pixels[8:]), boxes[8:], 20))


def test_no_value_is_needed_on_the_host() -> None:
    images = ImageBatch(noise(4, 20, 30).to("meta"), torch.ones(4, device="meta"))
    assert view(images, ShapesOnly(0, 4)).shape == (4, 3, 12, 12)
