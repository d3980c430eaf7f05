"""Per-sample randomness: one stream of numbers per (seed, step), the same on every device and worker count.

A step's numbers are drawn on the CPU for the whole *global* batch and each worker keeps the columns of its
own samples. So two workers with 64 images each see exactly the views that one worker with 128 sees, a
resumed run needs no generator state, and a GPU run draws what a CPU run draws. The numbers travel to the
device in blocks: one copy per `BLOCK` draws, no synchronisation.
"""

import math

import torch
from torch import Tensor

BLOCK = 64  # draws per copy to the device


def mix(*parts: int) -> int:
    """Fold integers into one 63-bit seed (splitmix64 finaliser over each part)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 27
        state = state * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


class Draw:
    """Random parameters for the samples `rows` of a global batch.

    Every method returns tensors on `device` whose first dimension is the number of local samples. The
    stream advances by each call, so the same calls in the same order give the same numbers.
    """

    def __init__(self, seed: int, batch: int, *, rows: slice | None = None, device: torch.device | str = "cpu"):
        self.batch = batch
        self.device = torch.device(device)
        self._rows = rows if rows is not None else slice(0, batch)
        self._generator = torch.Generator().manual_seed(seed)
        self._columns = torch.empty(0)
        self._next = 0

    def __len__(self) -> int:
        return len(range(*self._rows.indices(self.batch)))

    def unit(self, count: int = 1) -> Tensor:
        """Return `[B,count]` numbers uniform in [0, 1)."""
        taken = []
        while count:
            if self._next == self._columns.shape[0]:
                self._columns = self._block()
                self._next = 0
            take = min(count, self._columns.shape[0] - self._next)
            taken.append(self._columns[self._next : self._next + take])
            self._next += take
            count -= take
        return torch.cat(taken).T

    def uniform(self, low: float, high: float) -> Tensor:
        """Return `[B]` numbers uniform in [low, high)."""
        return low + (high - low) * self.unit()[:, 0]

    def log_uniform(self, low: float, high: float) -> Tensor:
        """Return `[B]` numbers whose logarithm is uniform; 0 < low <= high."""
        return self.uniform(math.log(low), math.log(high)).exp()

    def chance(self, probability: float) -> Tensor:
        """Return `[B]` booleans, each true with `probability`."""
        return self.unit()[:, 0] < probability

    def integers(self, count: int) -> Tensor:
        """Return `[B]` int64 numbers uniform in 0..count-1."""
        return (self.unit()[:, 0] * count).long().clamp_(max=count - 1)

    def permutation(self, count: int) -> Tensor:
        """Return `[B,count]` int64: a random order of 0..count-1 for each sample."""
        return self.unit(count).argsort(dim=1)

    def normal(self) -> Tensor:
        """Return `[B]` standard normal numbers."""
        # The unit interval is half open; keep off 0, where the inverse is infinite.
        return math.sqrt(2.0) * torch.erfinv(2 * self.unit()[:, 0].clamp(min=1e-7) - 1)

    def _block(self) -> Tensor:
        block = torch.rand((BLOCK, self.batch), generator=self._generator)[:, self._rows].contiguous()
        if self.device.type == "cuda":
            return block.pin_memory().to(self.device, non_blocking=True)
        return block
