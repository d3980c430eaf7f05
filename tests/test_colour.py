import colorsys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from bench import colour
from bench.draw import Draw

Operation = Callable[[Tensor, Draw, float], Tensor]

OPERATIONS: dict[str, Operation] = {
    "colour_jitter": lambda x, draw, p: colour.colour_jitter(x, draw, 0.8, 0.8, 0.8, 0.2, p),
    "grayscale": colour.grayscale,
    "gamma": lambda x, draw, p: colour.gamma(x, draw, 0.5, 2.5, p),
    "solarize": colour.solarize,
    "blur": lambda x, draw, p: colour.blur(x, draw, p, sigma=(0.5, 2.0)),
}


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


def noise(batch: int, side: int = 10, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def by_torchvision(image: Tensor, factors: list[float], turn: float, order: list[int], place: int) -> Tensor:
    steps: list[Callable[[Tensor], Tensor]] = [
        lambda x: tv.adjust_brightness(x, factors[0]),
        lambda x: tv.adjust_contrast(x, factors[1]),
        lambda x: tv.adjust_saturation(x, factors[2]),
        lambda x: tv.adjust_hue(x, turn),
    ]
    for step in [*order[:place], 3, *order[place:]]:
        image = steps[step](image)
    return image


@pytest.fixture
def jitters() -> tuple[Tensor, ...]:
    """120 samples: all 24 orders five times, one of five left alone."""
    draw = Draw(1, 120)
    orders = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    order, place = orders.repeat(20, 1), torch.arange(120) // 6 % 4
    factors = torch.stack([draw.uniform(0.0, 1.8) for _ in range(3)], dim=1)
    return noise(120), factors, draw.uniform(-0.5, 0.5), order, place, torch.arange(120) % 5 != 4


def test_jitter_equals_torchvision_in_every_order(jitters: tuple[Tensor, ...]) -> None:
    x, factors, turn, order, place, chosen = jitters
    ours = colour.jitter(x.clone(), *jitters[1:])
    for i in range(len(x)):
        theirs = by_torchvision(x[i], factors[i].tolist(), turn[i].item(), order[i].tolist(), int(place[i]))
        torch.testing.assert_close(ours[i], theirs if chosen[i] else x[i], atol=2e-5, rtol=0)
    orders = {(*row, where) for row, where, used in zip(order.tolist(), place.tolist(), chosen, strict=True) if used}
    assert len(orders) == 24


def test_jitter_without_branches_equals_jitter_by_groups(jitters: tuple[Tensor, ...]) -> None:
    x, factors, turn, order, place, chosen = jitters
    ours = colour._jitter_all(x, colour._slots(factors, order), turn, place, chosen)
    assert torch.equal(ours[~chosen], x[~chosen])
    torch.testing.assert_close(ours, colour.jitter(x.clone(), *jitters[1:]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("turn", [-0.5, -0.31, 0.0, 1e-4, 1 / 6, 1 / 3, 0.5])
def test_hue_equals_torchvision_and_colorsys(turn: float) -> None:
    steps = torch.linspace(0, 1, 9)
    cube = torch.cartesian_prod(steps, steps, steps).T.reshape(1, 3, 27, 27)  # every tie and gray is in it
    ours = colour.turn_hue_(cube.clone(), torch.tensor([turn]))
    torch.testing.assert_close(ours, tv.adjust_hue(cube, turn), atol=2e-6, rtol=0)
    for before, after in zip(cube.flatten(2)[0].T[::37].tolist(), ours.flatten(2)[0].T[::37].tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), abs=2e-6)


def test_luma_gamma_and_solarize_equal_torchvision() -> None:
    x = noise(4)
    x[0, :, :2] = 0
    x[1, :, :2] = 0.5
    torch.testing.assert_close(colour.luma(x), tv.rgb_to_grayscale(x))
    powers = torch.tensor([0.3, 1.0, 2.5, 6.0])
    raised = colour.raise_to(x, powers)
    for image, power, ours in zip(x, powers.tolist(), raised, strict=True):
        torch.testing.assert_close(ours, tv.adjust_gamma(image, power), atol=2e-6, rtol=0)
    torch.testing.assert_close(colour.solarize(x, Draw(0, 4), 1.0), tv.solarize(x, 0.5))
    torch.testing.assert_close(colour.grayscale(x, Draw(0, 4), 1.0), tv.rgb_to_grayscale(x, 3))


@pytest.mark.parametrize(("side", "taps"), [(64, 7), (30, 3), (5, 3), (4, 7), (12, 23)])
def test_blur_equals_torchvision(side: int, taps: int) -> None:
    x, sigmas = noise(5, side), torch.tensor([0.1, 0.4, 1.0, 2.0, 5.0])
    ours = colour.blur_by(x, sigmas, taps)
    for image, sigma, blurred in zip(x, sigmas.tolist(), ours, strict=True):
        theirs = tv.gaussian_blur(image, [taps, taps], [sigma, sigma])
        torch.testing.assert_close(blurred, theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("side", "taps"), [(224, 23), (64, 7), (96, 9), (20, 3), (2, 3), (1, 1)])
def test_blurs_window_is_an_odd_tenth_of_the_side(side: int, taps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(colour, "blur_by", lambda x, sigma, taps: seen.append((taps, sigma)) or x)
    colour.blur(torch.zeros(200, 3, side, side), Draw(0, 200), 1.0)
    assert {window for window, _ in seen} == {taps}
    assert stats.kstest(torch.cat([sigma for _, sigma in seen]).numpy(), stats.uniform(0.1, 1.9).cdf).pvalue > 0.01


def test_jitters_parameters_are_drawn_as_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, ...]] = []
    monkeypatch.setattr(colour, "jitter", lambda *drawn: seen.append(drawn) or drawn[0])
    colour.colour_jitter(torch.empty(6000, 3, 0, 0), Draw(0, 6000), 0.4, 1.5, 0.0, 0.1, 0.8)
    _, factors, turn, order, place, chosen = seen[0]
    ranks = (order * torch.tensor([9, 3, 1])).sum(1) * 4 + place
    counts = torch.unique(ranks, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 0.01
    for drawn, low, width in ((factors[:, 0], 0.6, 0.8), (factors[:, 1], 0.0, 2.5), (turn, -0.1, 0.2)):
        assert stats.kstest(drawn.numpy(), stats.uniform(low, width).cdf).pvalue > 0.01
    assert (factors[:, 2] == 1).all()
    assert stats.binomtest(int(chosen.sum()), 6000, 0.8).pvalue > 0.01
    assert abs(np.corrcoef(torch.stack([*factors[:, :2].T, turn, place, chosen]).numpy())).sum() < 5 + 20 * 0.03


def pictures(count: int) -> Tensor:
    """Coloured pictures `[count,3,8,8]`, each with its own colour and contrast."""
    generator = torch.Generator().manual_seed(3)
    base = torch.rand(count, 3, 1, 1, generator=generator)
    return (base + 0.3 * torch.rand(count, 3, 8, 8, generator=generator)).clamp(0, 1)


def summaries(x: Tensor) -> dict[str, np.ndarray]:
    """Per-image statistics of `[B,3,H,W]`."""
    mean, std, chroma = x.mean((2, 3)), x.std((2, 3)), (x.amax(1) - x.amin(1)).mean((1, 2))
    angle = torch.atan2(3**0.5 * (mean[:, 1] - mean[:, 2]), 2 * mean[:, 0] - mean[:, 1] - mean[:, 2])
    rough = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
    named = {"chroma": chroma, "hue": angle, "rough": rough}
    named |= {f"mean {i}": mean[:, i] for i in range(3)} | {f"std {i}": std[:, i] for i in range(3)}
    return {name: np.round(value.numpy(), 4) for name, value in named.items()}


def p_values(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    one, other = summaries(ours), summaries(theirs)
    return {name: float(stats.ks_2samp(one[name], other[name], method="asymp").pvalue) for name in one}


COUNT = 2000
THEIRS: dict[str, v2.Transform] = {
    "colour_jitter": v2.ColorJitter(0.8, 0.8, 0.8, 0.2),
    "grayscale": v2.RandomGrayscale(0.5),
    "blur": v2.GaussianBlur(3, (0.5, 2.0)),
    "solarize": v2.RandomSolarize(0.5, p=0.5),
}
PROBABILITY = {"colour_jitter": 1.0, "grayscale": 0.5, "blur": 1.0, "solarize": 0.5}


def by_images(name: str, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.stack([THEIRS[name](image) for image in x])


@pytest.mark.parametrize("name", THEIRS)
def test_operations_are_distributed_as_torchvisions(name: str) -> None:
    x = pictures(COUNT)
    theirs = by_images(name, x)
    found = p_values(OPERATIONS[name](x, Draw(0, COUNT), PROBABILITY[name]), theirs)
    assert min(found.values()) > 0.01, found
    weaker = p_values(OPERATIONS[name](x, Draw(0, COUNT), 0.6 * PROBABILITY[name]), theirs)
    assert min(weaker.values()) < 0.01, weaker


def test_the_comparison_would_see_a_narrower_hue_or_saturation() -> None:
    x = pictures(COUNT)
    theirs = by_images("colour_jitter", x)
    flatter = colour.colour_jitter(x, Draw(0, COUNT), 0.8, 0.8, 0.5, 0.2)
    assert min(p_values(flatter, theirs).values()) < 0.01
    x = torch.tensor([0.8, 0.3, 0.2]).view(1, 3, 1, 1).expand(COUNT, 3, 8, 8).contiguous()
    theirs = by_images("colour_jitter", x)
    assert p_values(colour.colour_jitter(x, Draw(0, COUNT), 0.8, 0.8, 0.8, 0.2), theirs)["hue"] > 0.01
    assert p_values(colour.colour_jitter(x, Draw(0, COUNT), 0.8, 0.8, 0.8, 0.15), theirs)["hue"] < 0.01


@pytest.mark.parametrize("name", OPERATIONS)
def test_probability_decides_how_many_change(name: str) -> None:
    x = noise(400, 6)
    before = x.clone()
    operation = OPERATIONS[name]
    assert operation(x, Draw(0, 400), 0.0) is x
    changed = (operation(x, Draw(0, 400), 1.0) != x).flatten(1).any(1)
    assert changed.all()
    out = operation(x, Draw(0, 400), 0.3)
    changed = (out != x).flatten(1).any(1)
    assert stats.binomtest(int(changed.sum()), 400, 0.3).pvalue > 0.01
    assert torch.equal(operation(x, Draw(0, 400), 1.0)[changed], out[changed])
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", OPERATIONS)
def test_settings_do_not_shift_the_stream(name: str) -> None:
    rest = []
    for probability in (0.0, 0.5, 1.0):
        draw = Draw(0, 4)
        OPERATIONS[name](noise(4), draw, probability)
        rest.append(draw.unit(3))
    assert torch.equal(rest[0], rest[1])
    assert torch.equal(rest[1], rest[2])


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_workers_rows_are_those_of_the_batch(name: str) -> None:
    x = noise(12)
    whole = OPERATIONS[name](x, Draw(5, 12), 0.6)
    for rows in (slice(0, 6), slice(6, 12), slice(3, 4)):
        part = OPERATIONS[name](x[rows], Draw(5, 12, rows=rows), 0.6)
        torch.testing.assert_close(part, whole[rows], atol=1e-6, rtol=0)
    assert torch.equal(OPERATIONS[name](x, Draw(5, 12), 0.6), whole)
    assert not torch.equal(OPERATIONS[name](x, Draw(6, 12), 0.6), whole)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("pixel", [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (0, 1, 1), (1e-8, 0, 0)])
def test_output_stays_in_bounds_on_extreme_images(name: str, pixel: tuple[float, ...]) -> None:
    x = torch.tensor(pixel, dtype=torch.float32).view(1, 3, 1, 1).expand(16, 3, 7, 5).contiguous()
    for seed in range(3):
        out = OPERATIONS[name](x, Draw(seed, 16), 1.0)
        assert out.isfinite().all()
        assert out.min() >= 0
        assert out.max() <= 1


@pytest.mark.parametrize("pixel", [0.0, 0.4, 1.0])
def test_gamma_of_nothing_is_finite(pixel: float) -> None:
    x = torch.full((2, 3, 4, 4), pixel)
    out = colour.gamma(x, Draw(0, 2), 0.0, 0.0)
    torch.testing.assert_close(out, torch.full_like(x, float(pixel > 0)))


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(40)
    whole = [operation(x, Draw(0, 40), 0.7) for operation in OPERATIONS.values()]
    monkeypatch.setattr("bench.resample.CACHE", 700)
    parts = [operation(x, Draw(0, 40), 0.7) for operation in OPERATIONS.values()]
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)


def test_inplace_overwrites_and_gives_the_same() -> None:
    operations: list[Callable[..., Tensor]] = [colour.grayscale, colour.solarize, colour.blur]
    operations.append(lambda x, draw, p, **options: colour.gamma(x, draw, 0.5, 2.0, p, **options))
    operations.append(lambda x, draw, p, **options: colour.colour_jitter(x, draw, 0.4, 0.4, 0.4, 0.1, p, **options))
    for operation in operations:
        x = noise(9)
        expected = operation(x, Draw(0, 9), 0.5)
        assert torch.equal(operation(x, Draw(0, 9), 0.5, inplace=True), expected)
        assert torch.equal(x, expected)


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_value_is_needed_on_the_host(name: str) -> None:
    x = torch.empty(4, 3, 16, 16, device="meta")
    assert OPERATIONS[name](x, ShapesOnly(0, 4), 0.5).shape == x.shape
    with pytest.raises(NotImplementedError):
        (x > 0).nonzero()


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_gpu_gives_the_views_of_a_cpu(name: str) -> None:
    x = noise(30, 24)
    ours = OPERATIONS[name](x.cuda(), Draw(0, 30, device="cuda"), 0.6)
    torch.testing.assert_close(ours.cpu(), OPERATIONS[name](x, Draw(0, 30), 0.6), atol=1e-4, rtol=0)
