"""SimCLR's loss against the paper's formula, and its views."""

import math

import pytest
import torch

from bench.draw import Draw
from bench.encoders import build_encoder
from bench.errors import BadInput
from bench.images import ImageBatch
from bench.registry import build, configure
from methods.simclr import nt_xent


def formula(first: torch.Tensor, second: torch.Tensor, temperature: float) -> float:
    """Equation 1 of arXiv 2002.05709 in plain loops: the mean of l(i,j) over all 2N positive pairs."""
    rows = [row / row.norm() for pair in zip(first, second, strict=True) for row in pair]
    total = 0.0
    for i, row in enumerate(rows):
        partner = i + 1 if i % 2 == 0 else i - 1
        scores = [math.exp(float(row @ other) / temperature) for other in rows]
        total -= math.log(scores[partner] / (sum(scores) - scores[i]))
    return total / len(rows)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_is_equation_1(temperature):
    first, second = torch.randn(2, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(nt_xent(first, second, temperature)) == pytest.approx(formula(first, second, temperature), abs=1e-12)


def test_nt_xent_of_unrelated_views_is_near_the_log_of_the_choices():
    first, second = torch.randn(2, 256, 512, generator=torch.Generator().manual_seed(0))
    assert float(nt_xent(first, second, 1.0)) == pytest.approx(math.log(2 * 256 - 1), abs=0.02)
    assert float(nt_xent(first, first, 0.05)) < 0.01


def gray_batch(value: int = 100, count: int = 16) -> ImageBatch:
    return ImageBatch(torch.full((count, 3, 24, 24), value, dtype=torch.uint8), torch.ones(count))


PLAIN = {"jitter": {"probability": 0}, "grayscale": 0, "crop": {"low": 1.0}}


@pytest.mark.parametrize("which", ["one", "both"])
def test_gamma_changes_one_view_or_both(which):
    config = PLAIN | {"gamma": {"low": 0.5, "high": 2.5, "views": which}}
    method = build("simclr", config, build_encoder("small", 0))
    first, second = method.views(gray_batch(), Draw(0, 16), 16)
    base = 100 / 255
    exponents = [(view.mean(dim=(1, 2, 3)).log() / math.log(base)) for view in (first, second)]
    assert exponents[1].min() > 0.5 - 1e-4
    assert exponents[1].max() < 2.5 + 1e-4
    assert exponents[1].std() > 0.3
    if which == "one":
        assert torch.allclose(first, torch.full_like(first, base), atol=1e-5)
    else:
        assert exponents[0].std() > 0.3
        assert not torch.allclose(*exponents)


def test_no_gamma_is_one_configuration():
    off = configure("simclr", {"gamma": {"enabled": False}}, "test")
    for no in (False, 0, "False", "no"):
        swept = configure("simclr", {"gamma": {"enabled": no, "low": 0.3, "high": 1.7, "views": "both"}}, "test")
        assert off == swept
    with pytest.raises(BadInput, match=r"gamma\.low"):
        configure("simclr", {"gamma": {"low": 1.5}}, "test")
    with pytest.raises(BadInput, match="did you mean 'gamma'"):
        configure("simclr", {"gama": {"low": 0.5}}, "test")
