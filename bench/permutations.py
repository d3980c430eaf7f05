"""Permutation sets for the jigsaw pretext task: which orders of the tiles the network must tell apart.

Sets come from a generator of their own, whose stream numpy keeps for ever: the same arguments give the same set on
every machine, whatever else draws random numbers.
"""

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bench.errors import BadInput, suggestion

Choice = Literal["greedy", "pairs"]
Orders = NDArray[np.uint8]

ENUMERABLE = 3  # largest grid whose permutations are all looked at: 9! = 362,880
CANDIDATES = 16  # farthest permutations compared per step of a larger grid
TAKEN = 2**30  # more agreements than there can be
LARGEST = 15  # largest grid whose tile numbers fit a byte
ROUNDS = 64  # draws without a new pair before the pairs are drawn anew


def permutation_set(grid: int, size: int, choice: Choice, distance: float = 0.9, seed: int = 0) -> Tensor:
    """Return `size` different permutations of the grid x grid tiles: int64 `[size, grid*grid]`.

    "greedy": the maximal Hamming set (Noroozi and Favaro 2016, algorithm 1). After a random first one, each next is
    the permutation with the largest sum of distances to those chosen. Of equal ones, which the paper leaves open,
    it is the one whose nearest chosen one is farthest, then a random one. Up to grid 3 it is sought among
    all permutations. From grid 4 on the largest sum is found as an assignment problem, exactly and among all, and
    16 random ones of those that reach it are compared. 1000 of 9! take about 1 s on one core, 1000 of 16! 0.5 s.
    The mean distance is the largest there is after every grid*grid permutations (Latin squares). From grid 4 on the
    least distance of sets of hundreds is about that of random sets, because the last rows of a square are forced.

    "pairs": that of the 2021 study (arXiv 2107.13973). Random disjoint pairs of permutations that differ in more than
    `distance` of the places (0 <= distance < 1); both are kept, and neighbouring rows of the result are the pairs.
    An odd `size` keeps one of the last pair. Permutations of different pairs may be close.

    Sets are made once per process and arguments. Raises BadInput for sizes that there are not, and other choices.
    """
    _check(grid, size, choice, distance, seed)
    return _made(grid, size, choice, distance if choice == "pairs" else 0.0, seed).clone()


def hamming(orders: Tensor) -> Tensor:
    """Count of places in which permutations `[N,K]` differ, two by two: int64 `[N,N]`."""
    distances = torch.zeros(len(orders), len(orders), dtype=torch.int64, device=orders.device)
    for place in orders.unbind(1):
        distances += place.unsqueeze(0) != place.unsqueeze(1)
    return distances


def _check(grid: int, size: int, choice: str, distance: float, seed: int) -> None:
    if choice not in ("greedy", "pairs"):
        raise BadInput(f"choice: {choice!r} is no way to choose permutations{suggestion(choice, ('greedy', 'pairs'))}")
    if not 2 <= grid <= LARGEST:
        nearest = min(max(grid, 2), LARGEST)
        raise BadInput(f"grid: there is no set for {grid} x {grid} tiles; the nearest grid is {nearest}")
    most = math.factorial(grid * grid)
    if not 2 <= size <= most:
        nearest = min(max(size, 2), most)
        raise BadInput(f"size: no set of {size} permutations of {grid} x {grid} tiles; the nearest size is {nearest}")
    if not 0 <= distance < 1:
        raise BadInput(f"distance: {distance} is outside 0 <= distance < 1; 0.9 asks that 3 x 3 tiles all differ")
    if not 0 <= seed < 2**32:
        raise BadInput(f"seed: {seed} is outside 0..{2**32 - 1}; the nearest is {min(max(seed, 0), 2**32 - 1)}")


@lru_cache(maxsize=64)
def _made(grid: int, size: int, choice: Choice, distance: float, seed: int) -> Tensor:
    random, cells = RandomState(seed), grid * grid
    if choice == "pairs":
        pool = _all(cells) if grid <= ENUMERABLE else _random(cells, 16 * size, random)
        orders = _pairs(pool, size, distance, random)
    elif grid <= ENUMERABLE:
        orders = _greedy(random.permutation(_all(cells)), size)
    else:
        orders = _greedy_by_assignment(cells, size, random)
    return torch.from_numpy(orders.astype(np.int64))


def _greedy(pool: Orders, size: int) -> Orders:
    """Algorithm 1 over a shuffled pool `[M,K]` of all permutations, beginning with its first."""
    columns = np.ascontiguousarray(pool.T)
    nearest = np.zeros(len(pool), np.uint8)  # agreements with the nearest chosen one
    total = np.zeros(len(pool), np.int32)  # agreements with all chosen
    chosen = [0]
    while len(chosen) < size:
        agreements = np.zeros(len(pool), np.uint8)
        for column, tile in zip(columns, pool[chosen[-1]], strict=True):
            agreements += column == tile
        np.maximum(nearest, agreements, out=nearest)
        total += agreements
        total[chosen[-1]] = TAKEN
        equal = np.flatnonzero(total == total.min())
        chosen.append(int(equal[nearest[equal].argmin()]))
    return pool[chosen]


def _greedy_by_assignment(cells: int, size: int, random: RandomState) -> Orders:
    """Algorithm 1 over permutations too many to list.

    The agreements with those chosen are the sum over places of how many have the same tile there: the least sum is
    an assignment of tiles to places. Noise below one agreement in all picks one at random among equals.
    """
    chosen = np.empty((size, cells), np.uint8)
    chosen[0] = random.permutation(cells)
    counts = np.zeros((cells, cells))
    for i in range(1, size):
        counts[np.arange(cells), chosen[i - 1]] += 1
        noise = random.random_sample((CANDIDATES, cells, cells)) / (2 * cells)
        best = np.array([linear_sum_assignment(counts + part)[1] for part in noise], np.uint8)
        agreements = (best[:, None] == chosen[:i]).sum(2).max(1)
        chosen[i] = best[agreements.argmin()]
    return chosen


def _pairs(pool: Orders, size: int, distance: float, random: RandomState) -> Orders:
    """Shuffle the pool, keep neighbours that are far from each other, and go on with the rest."""
    while True:  # the last of a small pool may not pair up: then all are drawn anew
        left, kept, found = pool, [], 0
        for _ in range(ROUNDS):
            left = random.permutation(left)
            couples = left[: len(left) // 2 * 2].reshape(-1, 2, pool.shape[1])
            far = (couples[:, 0] != couples[:, 1]).sum(1) > distance * pool.shape[1]
            kept.append(couples[far])
            found += 2 * int(far.sum())
            if found >= size:
                return np.concatenate(kept).reshape(-1, pool.shape[1])[:size]
            left = np.concatenate((couples[~far].reshape(-1, pool.shape[1]), left[2 * len(couples) :]))


def _all(cells: int) -> Orders:
    """All permutations `[cells!,cells]` in lexicographic order."""
    orders = np.zeros((1, 1), np.uint8)
    for count in range(2, cells + 1):
        begun = [np.insert(orders + (orders >= first), 0, first, axis=1) for first in range(count)]
        orders = np.concatenate(begun)
    return orders


def _random(cells: int, count: int, random: RandomState) -> Orders:
    """About `count` different random permutations."""
    return np.unique(random.random_sample((count, cells)).argsort(1).astype(np.uint8), axis=0)
