"""Separable linear resampling in which each sample has its own weights.

A pass is a `Band`: for every output its few inputs and their weights. On a CPU a band is applied as a weighted
sum of whole rows (`embedding_bag`, vectorised; measured 8 times faster than a matrix product at 96 to 64 px), on a
GPU by a kernel of its own (see `fused`), or else as a dense matrix product.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.fused import fused

CACHE = 2**19  # floats in a CPU's caches: work on larger batches goes in blocks of about this size


@dataclass(frozen=True)
class Band:
    """Weights of S outputs over the inputs of one axis, K of them for each output.

    Output s of sample b is the sum over k of `weight[b,s,k]` (float32) times input `index[b,s,k]` (int64).
    """

    index: Tensor
    weight: Tensor

    def part(self, rows: slice) -> "Band":
        """The bands of some samples."""
        return Band(self.index[rows], self.weight[rows])

    def scaled(self, factor: float) -> "Band":
        """The same with all weights times `factor`."""
        return Band(self.index, self.weight * factor)

    def dense(self, length: int) -> Tensor:
        """The same as matrices `[B,S,length]`."""
        batch, size, _ = self.index.shape
        return self.weight.new_zeros(batch, size, length).scatter_add_(2, self.index, self.weight)


def triangle(start: Tensor, extent: Tensor, size: int, length: int, flip: Tensor | None = None) -> Band:
    """Antialiased bilinear weights that resize a stretch of an axis to `size` outputs.

    `start`, `extent`: `[B]`, in pixels; the stretch lies inside the axis of `length` pixels. The triangle's
    half-width is one pixel of the coarser of the two grids. As after cropping, pixels outside the stretch count
    nothing; those that its ends cut count by the share inside. `flip`: `[B]` booleans, outputs in reverse order.
    """
    start, step = start.view(-1, 1, 1), (extent / size).view(-1, 1, 1)
    place = torch.arange(size, device=start.device).view(1, -1, 1) + 0.5
    if flip is not None:
        place = torch.where(flip.view(-1, 1, 1), size - place, place)
    centre = start + step * place
    support = step.clamp(min=1)
    taps = math.ceil(2 * max(1.0, length / size))
    pixel = (centre - support - 0.5).ceil() + torch.arange(taps, device=start.device)
    weight = (1 - (pixel + 0.5 - centre).abs() / support).clamp_(min=0)
    end = start + extent.view(-1, 1, 1)
    weight *= (torch.minimum(pixel + 1, end) - torch.maximum(pixel, start)).clamp_(min=0)
    weight /= weight.sum(2, keepdim=True).clamp_(min=1e-12)
    return Band(pixel.clamp_(0, length - 1).long(), weight)


def gaussian(sigma: Tensor, taps: int, length: int) -> Band:
    """Weights that blur an axis of `length` pixels with reflected ends.

    `sigma`: `[B]`, deviations in pixels; `taps`: width of the window, odd and less than 2 * `length`.
    """
    offset = torch.arange(taps, device=sigma.device) - taps // 2
    kernel = torch.softmax(-0.5 * (offset / sigma.view(-1, 1)) ** 2, dim=1)
    place = (torch.arange(length, device=sigma.device).view(-1, 1) + offset).abs()
    place = length - 1 - (length - 1 - place).abs()
    shape = (len(sigma), length, taps)
    return Band(place.expand(shape), kernel.unsqueeze(1).expand(shape))


def blocks(count: int, floats: int) -> Iterator[slice]:
    """Cut `count` samples of `floats` numbers each into even runs that stay in a CPU's cache."""
    runs = max(1, round(count * floats / CACHE))
    step = max(1, math.ceil(count / runs))
    for first in range(0, count, step):
        yield slice(first, min(count, first + step))


def separable(x: Tensor, rows: Band, columns: Band) -> Tensor:
    """Apply `rows` down and `columns` across `[B,C,H,W]` numbers of any type.

    Returns float32 `[B,C,S,T]` in 0..1: the bands keep pixels in that range but for rounding, which is cut.
    """
    if x.device.type == "cpu":
        return _sums(x, rows, columns)
    kernels = fused(x.device)
    if kernels is None:
        return products(x, rows, columns)
    down: Tensor = kernels.band(x, rows.index, rows.weight, 2)
    across: Tensor = kernels.band(down, columns.index, columns.weight, 3, unit=True)
    return across


def products(x: Tensor, rows: Band, columns: Band) -> Tensor:
    """`separable` as two batched matrix products, in the cheaper order."""
    height, width = x.shape[2:]
    down = rows.dense(height).unsqueeze(1)
    across = columns.dense(width).mT.unsqueeze(1)
    x = x.float()
    rows_first = (height + across.shape[3]) * width * down.shape[2] <= (width + down.shape[2]) * height * across.shape[
        3
    ]
    return (down @ x @ across if rows_first else down @ (x @ across)).clamp_(0, 1)


def _sums(x: Tensor, rows: Band, columns: Band) -> Tensor:
    batch, channels, height, width = x.shape
    out = x.new_empty((batch, channels, rows.index.shape[1], columns.index.shape[1]), dtype=torch.float32)
    for part in blocks(batch, channels * height * width):
        down = _bags(x[part].float(), rows.part(part))
        out[part] = _bags(down.mT.contiguous(), columns.part(part)).clamp_(0, 1).mT
    return out


def _bags(x: Tensor, band: Band) -> Tensor:
    """Weighted sums of the rows of `[n,C,H,W]` numbers: `[n,C,S,W]`."""
    count, channels, height, width = x.shape
    size, taps = band.index.shape[1:]
    first = torch.arange(0, count * channels * height, height).view(count, channels, 1, 1)
    index = (band.index.unsqueeze(1) + first).view(-1, taps)
    weight = band.weight.unsqueeze(1).expand(count, channels, size, taps).reshape(-1, taps)
    sums = F.embedding_bag(index, x.reshape(-1, width), per_sample_weights=weight, mode="sum")
    return sums.view(count, channels, size, width)
