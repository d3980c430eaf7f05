from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from bench import patches
from bench.draw import Draw
from bench.errors import BadInput

Operation = Callable[[Tensor, Draw, float], Tensor]

OPERATIONS: dict[str, Operation] = {
    "coarse_dropout": lambda x, draw, p: patches.coarse_dropout(x, draw, 4, (0.1, 0.3), 0.5, p),
    "swap_patches": lambda x, draw, p: patches.swap_patches(x, draw, 3, 0.25, p),
    "shuffle_tiles": lambda x, draw, p: patches.shuffle_tiles(x, draw, 4, p),
    "shuffle_locally": lambda x, draw, p: patches.shuffle_locally(x, draw, 4, 2, p),
}
MOVES = [name for name in OPERATIONS if name != "coarse_dropout"]


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


def noise(batch: int, side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def numbered(batch: int, grid: int) -> Tensor:
    """Views of one pixel per tile whose value is the tile's number: what is left of them are the orders."""
    tiles = torch.arange(grid * grid, dtype=torch.float32).view(1, 1, grid, grid)
    return tiles.expand(batch, 3, grid, grid).contiguous()


def orders(x: Tensor) -> Tensor:
    return x[:, 0].flatten(1).long()


# --- kernels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "grid"), [(12, 3), (12, 1), (13, 3), (17, 4), (7, 7), (11, 6)])
def test_arrange_puts_tile_order_j_at_place_j(side: int, grid: int) -> None:
    x = noise(5, side)
    order = Draw(1, 5).permutation(grid * grid)
    order[0] = order[0, 0]  # tiles may also be repeated
    expected = x.numpy().copy()
    tile = side // grid
    edge = (side - grid * tile) // 2
    for b in range(5):
        for j in range(grid * grid):
            place, source = [(edge + tile * (k // grid), edge + tile * (k % grid)) for k in (j, int(order[b, j]))]
            expected[b, :, place[0] : place[0] + tile, place[1] : place[1] + tile] = x[
                b, :, source[0] : source[0] + tile, source[1] : source[1] + tile
            ]
    before = x.clone()
    assert np.array_equal(patches.arrange(x, order, grid).numpy(), expected)
    assert torch.equal(x, before)
    strided = x.contiguous(memory_format=torch.channels_last)
    assert np.array_equal(patches.arrange(strided, order, grid).numpy(), expected)


def test_arranging_by_the_inverse_restores() -> None:
    x = (noise(6, 14) * 255).byte()
    order = Draw(1, 6).permutation(16)
    assert torch.equal(patches.arrange(patches.arrange(x, order, 4), order.argsort(1), 4), x)


@pytest.mark.parametrize(("side", "grid", "tile"), [(12, 3, 4), (12, 3, 3), (17, 4, 2), (14, 3, 1), (9, 1, 5)])
def test_cut_takes_a_window_of_each_cell(side: int, grid: int, tile: int) -> None:
    x = noise(5, side)
    cell = side // grid
    room = cell - tile + 1
    offsets = torch.randint(0, room, (5, grid * grid, 2), generator=torch.Generator().manual_seed(0))
    out = patches.cut(x, grid, tile, offsets)
    assert out.shape == (5, grid * grid, 3, tile, tile)
    edge = (side - grid * cell) // 2
    for b in range(5):
        for j in range(grid * grid):
            top = edge + cell * (j // grid) + int(offsets[b, j, 0])
            left = edge + cell * (j % grid) + int(offsets[b, j, 1])
            assert torch.equal(out[b, j], x[b, :, top : top + tile, left : left + tile])
    assert torch.equal(patches.cut(x.contiguous(memory_format=torch.channels_last), grid, tile, offsets), out)


def test_cut_holds_offsets_to_the_cell() -> None:
    x, far = noise(2, 12), torch.full((2, 9, 2), 100)
    assert torch.equal(patches.cut(x, 3, 3, far), patches.cut(x, 3, 3, torch.ones_like(far)))
    assert torch.equal(patches.cut(x, 3, 3, -far), patches.cut(x, 3, 3, torch.zeros_like(far)))


def test_whole_cells_put_together_are_the_view() -> None:
    x = noise(2, 12)
    cells = patches.cut(x, 3, 4, torch.zeros(2, 9, 2, dtype=torch.int64))
    rows = [torch.cat([cells[:, 3 * i + j] for j in range(3)], dim=3) for i in range(3)]
    assert torch.equal(torch.cat(rows, dim=2), x)


# --- operations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [8, 16, 21])
def test_coarse_dropout_fills_squares(side: int) -> None:
    x = noise(200, side)
    draw = Draw(0, 200)
    out = patches.coarse_dropout(x, draw, 3, (0.2, 0.5), fill=2.0)
    draw = Draw(0, 200)
    count, unit = draw.integers(3) + 1, patches.numbers(draw, 9).view(200, 3, 3)
    assert count.unique().tolist() == [1, 2, 3]
    for b in range(200):
        expected = x[b].numpy().copy()
        for share, down, across in unit[b].T[: int(count[b])].tolist():
            width = max(1, round((0.2 + 0.3 * share) * side))
            top, left = int(down * (side - width + 1)), int(across * (side - width + 1))
            expected[:, top : top + width, left : left + width] = 2.0
        assert np.array_equal(out[b].numpy(), expected)


def test_holes_reach_every_place_evenly_and_stay_inside() -> None:
    x = torch.zeros(4000, 3, 6, 6)
    out = patches.coarse_dropout(x, Draw(0, 4000), 1, (0.34, 0.34), fill=1.0)
    assert torch.equal(out.sum((2, 3)), torch.full((4000, 3), 4.0))  # 2 x 2 px, no pixel over the edge
    corners = out[:, 0].flatten(1).argmax(1)
    counts = torch.bincount(corners, minlength=36).view(6, 6)[:5, :5]
    assert counts.sum() == 4000
    assert stats.chisquare(counts.flatten()).pvalue > 0.01


def test_holes_as_large_as_the_view_and_smaller_than_a_pixel() -> None:
    x = noise(20, 5)
    assert (patches.coarse_dropout(x, Draw(0, 20), 2, (1.0, 1.0)) == 0).all()
    small = patches.coarse_dropout(x, Draw(0, 20), 1, (0.0, 0.0))
    assert ((small == 0).sum((1, 2, 3)) == 3).all()


@pytest.mark.parametrize(
    ("size", "grid", "pairs"), [(0.25, 4, 3), (0.25, 4, 8), (1 / 3, 3, 4), (0.3, 3, 1), (0.5, 2, 2)]
)
def test_swap_exchanges_pairs_of_tiles(size: float, grid: int, pairs: int) -> None:
    found = orders(patches.swap_patches(numbered(300, grid), Draw(0, 300), pairs, size))
    rest = torch.arange(grid * grid).expand_as(found)
    assert torch.equal(found.gather(1, found), rest)  # its own inverse: pairs exchanged
    assert ((found != rest).sum(1) == 2 * pairs).all()
    if 2 * pairs < grid * grid:
        moved = (found != rest).sum(0)
        assert stats.chisquare(moved).pvalue > 0.01


def test_swap_and_tiles_follow_their_numbers() -> None:
    x = noise(9, 12)
    picked = patches.numbers(Draw(3, 9), 9).numpy().argsort(1)
    swapped = patches.swap_patches(x, Draw(3, 9), 2, 1 / 3)
    shuffled = patches.shuffle_tiles(x, Draw(3, 9), 3)
    for b in range(9):
        order = np.arange(9)
        for a, c in zip(picked[b, :2], picked[b, 2:4], strict=True):
            order[[a, c]] = order[[c, a]]
        assert torch.equal(swapped[b], patches.arrange(x[b : b + 1], torch.from_numpy(order)[None], 3)[0])
        assert torch.equal(shuffled[b], patches.arrange(x[b : b + 1], torch.from_numpy(picked[b])[None], 3)[0])


def test_every_jigsaw_is_as_likely() -> None:
    found = orders(patches.shuffle_tiles(numbered(6000, 2), Draw(0, 6000), 2))
    _, counts = found.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize(("grid", "reach"), [(3, 1), (7, 2), (5, 1), (4, 9)])
def test_local_shuffle_is_the_region_confusion_mechanism(grid: int, reach: int) -> None:
    found = orders(patches.shuffle_locally(numbered(20, grid), Draw(0, 20), grid, reach))
    unit = patches.numbers(Draw(0, 20), 2 * grid * grid).view(20, 2, grid, grid).double().numpy()
    for b in range(20):
        tiles = np.arange(grid * grid).reshape(grid, grid)
        for row in range(grid):
            tiles[row] = tiles[row, np.argsort(np.arange(grid) + (2 * unit[b, 0, row] - 1) * reach)]
        for column in range(grid):
            keys = np.arange(grid) + (2 * unit[b, 1, :, column] - 1) * reach
            tiles[:, column] = tiles[np.argsort(keys), column]
        assert found[b].tolist() == tiles.flatten().tolist()


@pytest.mark.parametrize(("grid", "reach"), [(8, 1), (8, 2), (8, 3), (16, 2)])
def test_tiles_move_less_than_twice_the_reach(grid: int, reach: int) -> None:
    found = orders(patches.shuffle_locally(numbered(2000, grid), Draw(0, 2000), grid, reach))
    place = torch.arange(grid * grid)
    for moved in (found // grid - place // grid, found % grid - place % grid):
        assert moved.abs().max() == 2 * reach - 1  # the bound is reached and kept
    assert (found != place).double().mean() > 0.3


def test_extreme_numbers_keep_the_bound_and_every_tile() -> None:
    for reach in (1, 2, 3):
        unit = torch.where(torch.rand(500, 128, generator=torch.Generator().manual_seed(0)) < 0.5, 0.0, 1 - 2**-24)
        found = patches.local_order(unit, 8, reach)
        assert torch.equal(found.sort(1).values, torch.arange(64).expand(500, -1))
        assert (found % 8 - torch.arange(64) % 8).abs().max() < 2 * reach
        assert (found // 8 - torch.arange(64) // 8).abs().max() < 2 * reach


# --- what all have in common ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("side", [16, 18, 19])
def test_moves_keep_the_pixels_and_the_border(name: str, side: int) -> None:
    x = noise(10, side)
    out = OPERATIONS[name](x, Draw(0, 10), 1.0)
    assert torch.equal(out.flatten(2).sort(dim=2).values, x.flatten(2).sort(dim=2).values)
    edge, used = (side % 4) // 2, side - side % 4
    inner = torch.zeros(side, side, dtype=torch.bool)
    inner[edge : edge + used, edge : edge + used] = True
    assert torch.equal(out[:, :, ~inner], x[:, :, ~inner])
    assert not torch.equal(out, x)


@pytest.mark.parametrize("name", OPERATIONS)
def test_probability_decides_how_many_change(name: str) -> None:
    x = noise(400)
    before = x.clone()
    operation = OPERATIONS[name]
    assert operation(x, Draw(0, 400), 0.0) is x
    always = operation(x, Draw(0, 400), 1.0)
    out = operation(x, Draw(0, 400), 0.3)
    changed = (out != x).flatten(1).any(1)
    assert stats.binomtest(int(changed.sum()), 400, 0.3).pvalue > 0.01
    assert torch.equal(always[changed], out[changed])
    assert torch.equal(x, before)


OTHER_SETTINGS: list[tuple[str, Operation]] = [
    ("coarse_dropout", lambda x, draw, p: patches.coarse_dropout(x, draw, 9, (0.0, 0.9), 0.0, p)),
    ("swap_patches", lambda x, draw, p: patches.swap_patches(x, draw, 1, 0.5, p)),
    ("shuffle_tiles", lambda x, draw, p: patches.shuffle_tiles(x, draw, 2, p)),
    ("shuffle_locally", lambda x, draw, p: patches.shuffle_locally(x, draw, 8, 1, p)),
]


@pytest.mark.parametrize(("name", "other"), OTHER_SETTINGS)
def test_settings_do_not_shift_the_stream(name: str, other: Operation) -> None:
    rest = []
    for operation in (OPERATIONS[name], other):
        for probability in (0.0, 1.0):
            draw = Draw(0, 4)
            operation(noise(4), draw, probability)
            rest.append(draw.unit(3))
    assert all(torch.equal(rest[0], numbers) for numbers in rest)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_workers_rows_are_those_of_the_batch(name: str) -> None:
    x = noise(12)
    whole = OPERATIONS[name](x, Draw(5, 12), 0.6)
    for rows in (slice(0, 6), slice(6, 12), slice(3, 4)):
        assert torch.equal(OPERATIONS[name](x[rows], Draw(5, 12, rows=rows), 0.6), whole[rows])
    assert torch.equal(OPERATIONS[name](x, Draw(5, 12), 0.6), whole)
    assert not torch.equal(OPERATIONS[name](x, Draw(6, 12), 0.6), whole)


def test_numbers_are_uniform_and_independent() -> None:
    unit = patches.numbers(Draw(0, 2000), 32).double()
    assert unit.min() >= 0
    assert unit.max() < 1
    assert stats.kstest(unit.flatten().numpy(), "uniform").pvalue > 0.01
    assert min(stats.kstest(column.numpy(), "uniform").pvalue for column in unit.T) > 0.01 / 32
    for values in (unit.T, unit[:32]):  # between counters, and between samples
        off = torch.corrcoef(values) - torch.eye(len(values), dtype=torch.double)
        assert off.abs().max() < 4.5 / values.shape[1] ** 0.5
    assert torch.equal(unit[:, :5], patches.numbers(Draw(0, 2000), 5).double())
    assert len(unit.flatten().unique()) > 0.99 * unit.numel()


def test_numbers_stay_as_they_are() -> None:
    """They decide views: others mean another version of the methods that use them."""
    first, second = (Draw(0, 1).unit(2)[0].double() * 2**24).long().tolist()
    expected = []
    for counter in range(4):
        word = (first + counter * 0x9E3779B9) % 2**32
        for key in (second << 8, 0):
            for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
                word = (word ^ word >> shift) * factor % 2**32
            word ^= word >> 15
            word ^= key
        expected.append((word >> 8) / 2**24)
    assert patches.numbers(Draw(0, 1), 4)[0].tolist() == expected


ERRORS: list[tuple[Callable[[Tensor, Draw], object], str]] = [
    (lambda x, draw: patches.shuffle_tiles(x, draw, 17), "grid: a view of 16 px has no grid of 17 x 17 tiles; 1 to 16"),
    (lambda x, draw: patches.swap_patches(x, draw, 9, 0.25), "pairs: 9 pairs .* at most 8"),
    (lambda x, draw: patches.swap_patches(x, draw, 1, 0.6), "size: a patch of 0.6 .* at most 0.5"),
    (lambda x, _: patches.cut(x, 3, 6, torch.zeros(2, 9, 2)), "tile: 6 px do not fit cells of 5 px .* 1 to 5"),
    (lambda x, _: patches.cut(x, 3, 0, torch.zeros(2, 9, 2)), "tile: 0 px"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_what_cannot_be_is_one_clear_error(call: Callable[[Tensor, Draw], object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call(noise(2), Draw(0, 2))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("side", [16, 19])
def test_no_value_is_needed_on_the_host(name: str, side: int) -> None:
    x = torch.empty(4, 3, side, side, device="meta")
    assert OPERATIONS[name](x, ShapesOnly(0, 4), 0.5).shape == x.shape
    offsets = torch.empty(4, 9, 2, dtype=torch.int64, device="meta")
    assert patches.cut(x, 3, 4, offsets).shape == (4, 9, 3, 4, 4)
    with pytest.raises(NotImplementedError):
        (x > 0).nonzero()


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("side", [24, 27])
def test_a_gpu_gives_the_views_of_a_cpu(name: str, side: int) -> None:
    x = noise(30, side)
    ours = OPERATIONS[name](x.cuda(), Draw(0, 30, device="cuda"), 0.6)
    assert torch.equal(ours.cpu(), OPERATIONS[name](x, Draw(0, 30), 0.6))
    offsets = torch.randint(0, 3, (30, 9, 2), generator=torch.Generator().manual_seed(0))
    assert torch.equal(patches.cut(x.cuda(), 3, 6, offsets.cuda()).cpu(), patches.cut(x, 3, 6, offsets))
