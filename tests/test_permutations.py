import math
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import permutations as module
from bench.errors import BadInput
from bench.permutations import Choice, hamming, permutation_set

SETS: list[tuple[int, int, Choice]] = [
    (2, 12, "greedy"),
    (2, 24, "greedy"),
    (3, 100, "greedy"),
    (4, 60, "greedy"),
    (2, 12, "pairs"),
    (2, 24, "pairs"),
    (3, 100, "pairs"),
    (4, 60, "pairs"),
]


def others(orders: Tensor) -> Tensor:
    """Distances `[N,N-1]` of each permutation to the others."""
    distances = hamming(orders)
    return distances[~torch.eye(len(orders), dtype=torch.bool)].view(len(orders), -1)


def at_random(grid: int, size: int, seed: int) -> Tensor:
    return torch.rand(size, grid * grid, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)


@pytest.mark.parametrize(("grid", "size", "choice"), SETS)
def test_rows_are_different_permutations(grid: int, size: int, choice: Choice) -> None:
    orders = permutation_set(grid, size, choice)
    assert orders.dtype == torch.int64
    assert orders.shape == (size, grid * grid)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(grid * grid).expand(size, -1))
    assert len({tuple(row) for row in orders.tolist()}) == size


@pytest.mark.parametrize(("grid", "size", "choice"), SETS)
def test_a_set_depends_on_its_arguments_only(
    grid: int, size: int, choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = permutation_set(grid, size, choice, seed=4)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        np.random.seed(99)
        monkeypatch.setattr(module, "_made", module._made.__wrapped__)
        again = permutation_set(grid, size, choice, seed=4)
    assert torch.equal(first, again)
    assert not torch.equal(first, permutation_set(grid, size, choice, seed=5))


def test_a_set_is_made_once_and_is_the_callers_own() -> None:
    module._made.cache_clear()
    first = permutation_set(3, 30, "greedy", seed=1)
    kept = first.clone()
    first.zero_()
    again = permutation_set(3, 30, "greedy", distance=0.5, seed=1)  # which "greedy" does not look at
    assert module._made.cache_info().misses == 1
    assert torch.equal(again, kept)
    permutation_set(3, 30, "pairs", distance=0.5, seed=1)
    permutation_set(3, 30, "pairs", distance=0.6, seed=1)
    assert module._made.cache_info().misses == 3


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_algorithm_1(seed: int) -> None:
    """Each step as the paper writes it, with plain loops; among equals the nearest one farthest."""
    chosen = permutation_set(2, 24, "greedy", seed=seed).tolist()
    pool = [list(order) for order in permutations(range(4))]
    for step in range(1, len(chosen)):
        before = chosen[:step]
        scores = {}
        for order in pool:
            if order in before:
                continue
            distances = [sum(a != b for a, b in zip(order, other, strict=True)) for other in before]
            scores[tuple(order)] = (sum(distances), min(distances))
        assert scores[tuple(chosen[step])] == max(scores.values())


def test_greedy_is_algorithm_1_over_all_of_nine_factorial() -> None:
    chosen = permutation_set(3, 40, "greedy", seed=2).numpy()
    pool = np.array(list(permutations(range(9))), np.uint8)
    total, nearest = np.zeros(len(pool), np.int64), np.full(len(pool), 9)
    for before, order in pairwise(chosen):
        distance = (pool != before).sum(1)
        total += distance
        nearest = np.minimum(nearest, distance)
        taken = nearest == 0
        place = int((pool == order).all(1).argmax())
        assert not taken[place]
        assert total[place] == total[~taken].max()
        assert nearest[place] == nearest[(total == total[place]) & ~taken].max()


def test_assignment_finds_the_largest_sum_there_is() -> None:
    chosen = module._greedy_by_assignment(6, 30, np.random.RandomState(0))
    pool = np.array(list(permutations(range(6))), np.uint8)
    for step in range(1, len(chosen)):
        total = sum((pool != before).sum(1) for before in chosen[:step])
        reached = sum(int((chosen[step] != before).sum()) for before in chosen[:step])
        assert reached == total.max()


def test_a_set_of_a_large_grid_begins_with_a_latin_square() -> None:
    for grid in (4, 5):
        orders = permutation_set(grid, grid * grid, "greedy")
        assert others(orders).min() == grid * grid  # no tile is twice at one place: the optimum


@pytest.mark.parametrize(("grid", "size"), [(2, 12), (3, 10), (3, 100), (4, 30), (4, 100)])
def test_greedy_sets_are_wider_than_random_ones(grid: int, size: int) -> None:
    for seed in range(3):
        greedy = others(permutation_set(grid, size, "greedy", seed=seed)).double()
        for attempt in range(20):
            random = others(at_random(grid, size, attempt)).double()
            assert greedy.mean() > random.mean()
            assert greedy.min(1).values.mean() > random.min(1).values.mean()
            if size < 100 or grid < 4:  # there the sum leaves no choice of some members
                assert greedy.min() >= random.min()


@pytest.mark.parametrize("distance", [0.0, 0.5, 8 / 9, 0.9])
@pytest.mark.parametrize("grid", [2, 3, 4])
def test_pairs_are_farther_than_the_distance(grid: int, distance: float) -> None:
    orders = permutation_set(grid, 20, "pairs", distance, seed=3)
    apart = (orders[0::2] != orders[1::2]).double().mean(1)
    assert apart.min() > distance
    assert others(orders).min() < grid * grid  # between pairs nothing is asked
    if distance == 0:
        assert (permutation_set(grid, 24, "pairs", distance).double().std(0) > 0).all()


def test_pairs_are_random_among_those_that_qualify() -> None:
    apart = torch.cat([hamming(permutation_set(3, 2000, "pairs", 0.6, seed=s))[0::2, 1::2].diag() for s in range(3)])
    counts = torch.bincount(apart, minlength=10)[6:].double()
    # Permutations of 9 with k fixed points: C(9, k) times the derangements of the rest.
    derangements = [1, 0, 1, 2, 9, 44, 265, 1854, 14833, 133496]
    expected = torch.tensor([math.comb(9, d) * derangements[d] for d in range(6, 10)]).double()
    torch.testing.assert_close(counts / counts.sum(), expected / expected.sum(), atol=0.03, rtol=0)


def test_an_odd_size_keeps_one_of_the_last_pair() -> None:
    assert torch.equal(permutation_set(3, 21, "pairs"), permutation_set(3, 22, "pairs")[:21])


def test_hamming_counts_places() -> None:
    orders = torch.tensor([[0, 1, 2, 3], [1, 0, 2, 3], [3, 2, 1, 0]])
    assert hamming(orders).tolist() == [[0, 2, 4], [2, 0, 4], [4, 4, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 25, "greedy"), "size: no set of 25 permutations of 2 x 2 tiles; the nearest size is 24"),
        ((2, 100, "pairs"), "the nearest size is 24"),
        ((3, 1, "greedy"), "the nearest size is 2"),
        ((3, 362881, "greedy"), "the nearest size is 362880"),
        ((1, 10, "greedy"), "grid: there is no set for 1 x 1 tiles; the nearest grid is 2"),
        ((99, 10, "greedy"), "the nearest grid is 15"),
        ((3, 10, "gredy"), "choice: 'gredy' .* did you mean 'greedy'"),
        ((3, 10, "pairs", 1.0), "distance: 1.0 is outside 0 <= distance < 1"),
        ((3, 10, "pairs", -0.1), "distance: -0.1"),
        ((3, 10, "pairs", 0.5, -1), "seed: -1 .* the nearest is 0"),
    ],
)
def test_what_cannot_be_is_one_clear_error(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        permutation_set(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_golden_sets() -> None:
    """Sets decide results: another one means another version of the methods that use them."""
    assert permutation_set(2, 4, "greedy").tolist() == [[1, 3, 2, 0], [3, 2, 0, 1], [0, 1, 3, 2], [2, 0, 1, 3]]
    assert texts(permutation_set(3, 2, "greedy")) == ["570423618", "613748250"]
    assert texts(permutation_set(3, 100, "greedy")[-1:]) == ["401382675"]
    assert texts(permutation_set(3, 2, "pairs")) == ["570423618", "613748250"]
    assert texts(permutation_set(4, 2, "greedy")) == ["1689d42ea7fb305c", "984f107be5c6d3a2"]
    assert texts(permutation_set(4, 100, "greedy")[-1:]) == ["7956128a3fceb4d0"]
    assert texts(permutation_set(4, 2, "pairs")) == ["ef946b30c251a7d8", "763dafb51248c0e9"]


def texts(orders: Tensor) -> list[str]:
    return ["".join(f"{tile:x}" for tile in order) for order in orders.tolist()]
