"""Per-sample randomness: the same for any number of workers and any number of draws before."""

import pytest
import torch
from scipy import stats

from bench.draw import BLOCK, Draw, mix


def numbers(draw: Draw) -> torch.Tensor:
    return torch.cat((draw.unit(3), draw.permutation(5).float(), draw.normal()[:, None], draw.unit(BLOCK)), dim=1)


def test_workers_draw_the_rows_of_the_whole_batch():
    whole = numbers(Draw(7, 12))
    parts = [numbers(Draw(7, 12, rows=slice(start, start + 4))) for start in (0, 4, 8)]
    assert torch.equal(torch.cat(parts), whole)


def test_same_seed_same_numbers_other_seed_other_numbers():
    assert torch.equal(numbers(Draw(1, 8)), numbers(Draw(1, 8)))
    assert not torch.equal(numbers(Draw(1, 8)), numbers(Draw(2, 8)))


def test_draws_run_on_across_blocks():
    one = Draw(3, 4)
    piecewise = torch.cat([one.unit(7) for _ in range(30)], dim=1)
    assert torch.equal(piecewise, Draw(3, 4).unit(210))


@pytest.mark.parametrize(
    ("sample", "distribution"),
    [
        (lambda draw: draw.uniform(-1, 3), stats.uniform(-1, 4)),
        (lambda draw: draw.log_uniform(0.5, 2).log(), stats.uniform(-0.6931472, 1.3862944)),
        (lambda draw: draw.normal(), stats.norm()),
    ],
)
def test_distributions(sample, distribution):
    values = sample(Draw(11, 20_000)).numpy()
    assert stats.kstest(values, distribution.cdf).pvalue > 0.01


def test_discrete_draws():
    draw = Draw(5, 30_000)
    assert draw.chance(0.3).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert torch.bincount(draw.integers(3)).tolist() == pytest.approx([10_000] * 3, rel=0.05)
    orders = draw.permutation(3)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(3).expand(30_000, 3))
    assert len(torch.unique(orders, dim=0)) == 6
    assert not draw.chance(0.0).any()
    assert draw.chance(1.0).all()


def test_seeds_are_mixed_well():
    seeds = {mix(seed, epoch, step) for seed in range(20) for epoch in range(20) for step in range(20)}
    assert len(seeds) == 8000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix(1, 2) != mix(2, 1)
