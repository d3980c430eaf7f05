"""CIE Lab of sRGB pictures, batched, and the cells of its ab plane that sRGB reaches.

L is 0..100, a and b about -108..98 inside sRGB; white point D65, observer of 2 degrees (IEC 61966-2-1). There is no
matrix product in the conversions, so that neither autocast nor TF32 rounds them, and no comparison: on a CPU those
cost more than what they would save. Each curve is its straight part up to the knee plus its power part from the
knee on. Both ways have gradients.
"""

from functools import lru_cache

import torch
from torch import Tensor

from bench.resample import blocks

# Linear sRGB to XYZ / white: each row adds up to one, so that gray is a = b = 0.
_PRIMARIES = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
TO_XYZ = torch.tensor([[part / sum(row) for part in row] for row in _PRIMARIES], dtype=torch.float64)
FROM_XYZ = torch.linalg.inv(TO_XYZ)

SLOPE, OFFSET, POWER = 12.92, 0.055, 2.4  # of sRGB's curve
DARK, BRIGHT = 0.0031308, 0.04045  # its knee: linear light and code value
KNEE = 6 / 29  # of CIE's cube root: f = KNEE where t = KNEE**3


def srgb_to_lab(images: Tensor) -> Tensor:
    """Return Lab `[B,3,H,W]` of sRGB `[B,3,H,W]` in 0..1; the type is kept."""
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    for part in _parts(images):
        x, y, z = (_root(xyz) for xyz in _mix(_linear(images[part]), TO_XYZ))
        out[part] = torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)
    return out


def lightness(images: Tensor) -> Tensor:
    """Return L alone `[B,1,H,W]` of sRGB `[B,3,H,W]` in 0..1, for half the cost."""
    out = torch.empty_like(images[:, :1], memory_format=torch.contiguous_format)
    for part in _parts(images):
        (y,) = _mix(_linear(images[part]), TO_XYZ[1:2])
        out[part, 0] = _root(y).mul_(116).sub_(16)
    return out


def lab_to_srgb(lab: Tensor) -> Tensor:
    """Return sRGB `[B,3,H,W]` in 0..1 of Lab `[B,3,H,W]`; what sRGB has not is cut channel by channel."""
    level, a, b = lab.unbind(1)
    y = (level + 16) / 116
    xyz = torch.stack((y + a / 500, y, y - b / 200), dim=1)
    light = xyz.clamp(min=KNEE) ** 3 + (xyz.clamp(max=KNEE) - KNEE) * (3 * KNEE**2)
    linear = torch.stack(_mix(light, FROM_XYZ), dim=1).clamp(0, 1)
    bright = _raise(linear.clamp(min=DARK), 1 / POWER).sub(DARK ** (1 / POWER)).mul_(1 + OFFSET)
    return bright.add_(linear.clamp(max=DARK), alpha=SLOPE).clamp(0, 1)


@lru_cache(maxsize=16)
def bins(grid: int) -> Tensor:
    """Return the centres float32 `[Q,2]` (a, b) of the square cells of side `grid` that sRGB reaches, a before b.

    The cells are centred at multiples of `grid`, so that gray is a centre. A cell counts if a colour of the surface
    of the 8-bit sRGB cube falls into it: every line of one (a, b) through the solid meets the surface. Counts:
    969 at grid 5, 261 at 10, 77 at 20, 23 at 40; only 225 of the 261 centres are sRGB colours themselves.
    Zhang et al. (2016) use 313 at grid 10, a list published without its rule; no rule on sRGB that was tried gives it.
    """
    ab = srgb_to_lab(_surface().view(1, -1, 3).mT.unsqueeze(3))[0, 1:, :, 0]
    row, column = ((part / grid).round().long() for part in ab)
    width = 1000
    cells = torch.unique((row + width // 2) * width + column + width // 2)
    return torch.stack((cells // width - width // 2, cells % width - width // 2), dim=1).float() * grid


def _surface() -> Tensor:
    """The colours `[N,3]` on the six faces of the 8-bit sRGB cube, float64 in 0..1."""
    level = torch.arange(256, dtype=torch.float64) / 255
    face = torch.cartesian_prod(level, level)
    ends = [torch.full((len(face), 1), end, dtype=torch.float64) for end in (0.0, 1.0)]
    return torch.cat([torch.cat((face, end), dim=1).roll(axis, 1) for axis in range(3) for end in ends])


def _linear(x: Tensor) -> Tensor:
    """Linear light of sRGB's code values."""
    power = _raise(x.clamp(min=BRIGHT).add_(OFFSET).mul_(1 / (1 + OFFSET)), POWER)
    knee = ((BRIGHT + OFFSET) / (1 + OFFSET)) ** POWER
    return power.sub(knee).add_(x.clamp(max=BRIGHT), alpha=1 / SLOPE)


def _root(t: Tensor) -> Tensor:
    """CIE's f: a cube root with a straight part near black."""
    root = _raise(t.clamp(min=KNEE**3), 1 / 3)
    return root.add(t.clamp(max=KNEE**3).sub_(KNEE**3), alpha=1 / (3 * KNEE**2))


def _raise(x: Tensor, power: float) -> Tensor:
    """Positive `x ** power`, in place: much faster on a CPU than pow, and right to 1e-6."""
    return x.log_().mul_(power).exp_()


def _mix(x: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
    """One weighted sum `[B,H,W]` of the channels of `[B,3,H,W]` for each row of `matrix`."""
    first, second, third = x.unbind(1)
    rows: list[list[float]] = matrix.tolist()
    return tuple(first.mul(r).add_(second, alpha=g).add_(third, alpha=b) for r, g, b in rows)


def _parts(x: Tensor) -> list[slice]:
    """Blocks of samples that stay in a CPU's cache; elsewhere one."""
    return list(blocks(len(x), x[:1].numel())) if x.device.type == "cpu" else [slice(0, len(x))]
