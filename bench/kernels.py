"""The views' inner loops as kernels for a GPU: one pass over the pixels where single operations take dozens.

They compute what `resample` and `colour` do on a CPU, up to rounding, from what these prepare: bands, slots, powers.
`fused` imports this module where a device runs it. With TRITON_INTERPRET=1 they run on a CPU, slowly, as in the tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # pixels that one program handles
RED, GREEN, BLUE = tl.constexpr(0.2989), tl.constexpr(0.587), tl.constexpr(0.114)  # as colour.GRAY


def band(x: Tensor, index: Tensor, weight: Tensor, axis: int, *, unit: bool = False) -> Tensor:
    """Weighted sums along `axis` (2 down, 3 across) of `[B,C,H,W]` numbers, float32; cut to 0..1 if `unit`.

    `index`, `weight`: `[B,S,K]`, the inputs of each of the S outputs that take the place of the axis.
    """
    size, taps = index.shape[1:]
    shape = [*x.shape]
    shape[axis] = size
    out = x.new_empty(shape, dtype=torch.float32)
    count = shape[2] * shape[3]
    given = index.contiguous(), weight.contiguous()
    with torch.cuda.device_of(x):
        _band[(shape[0], shape[1], triton.cdiv(count, BLOCK))](
            x, *given, out, count, shape[3], size, taps, *x.stride(), axis == 3, unit, BLOCK
        )
    return out


def jitter(x: Tensor, slots: Tensor, turn: Tensor, place: Tensor, chosen: Tensor) -> Tensor:
    """`colour.jitter` of float32 `[B,3,S,S]`, `slots` `[B,3,3]` being its changes; may overwrite `x`."""
    x = x.contiguous()
    pixels = x.shape[2] * x.shape[3]
    grid = len(x), triton.cdiv(pixels, BLOCK)
    sums = x.new_empty(grid)
    given = slots.contiguous(), turn.contiguous(), place.contiguous(), chosen.contiguous()
    with torch.cuda.device_of(x):
        _lumas[grid](x, *given, sums, pixels, BLOCK)
        means = sums.sum(1).div_(pixels)
        _change[grid](x, *given, means, pixels, "jitter", BLOCK)
    return x


def change(x: Tensor, kind: str, chosen: Tensor, power: Tensor | None = None) -> Tensor:
    """Change the samples `chosen` of float32 `[B,3,S,S]`; may overwrite `x`.

    `kind`: "gray", "solarize", or "gamma" with its `power` `[B]`.
    """
    x = x.contiguous()
    pixels = x.shape[2] * x.shape[3]
    power = x if power is None else power.contiguous()
    with torch.cuda.device_of(x):  # slots, place and means are jitter's: not looked at
        _change[(len(x), triton.cdiv(pixels, BLOCK))](x, x, power, x, chosen.contiguous(), x, pixels, kind, BLOCK)
    return x


@triton.jit
def _band(
    x,
    index,
    weight,
    out,
    count,
    width,
    size,
    taps,
    sb,
    sc,
    sh,
    sw,
    ACROSS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one channel of one sample."""
    sample, channel = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    row, column = place // width, place % width
    if ACROSS:
        output, other, step, stride = column, row, sw, sh
    else:
        output, other, step, stride = row, column, sh, sw
    first = x + sample * sb + channel * sc + other * stride
    entry = (sample * size + output) * taps
    total = tl.zeros([BLOCK], tl.float32)
    for tap in range(taps):
        source = tl.load(index + entry + tap, inside, 0)
        share = tl.load(weight + entry + tap, inside, 0.0)
        total += share * tl.load(first + source * step, inside, 0).to(tl.float32)
    if UNIT:
        total = _unit(total)
    tl.store(out + (sample * tl.num_programs(1) + channel) * count + place, total, inside)


@triton.jit
def _loaded(at, pixels, inside):
    return tl.load(at, inside, 0.0), tl.load(at + pixels, inside, 0.0), tl.load(at + 2 * pixels, inside, 0.0)


@triton.jit
def _luma(red, green, blue):
    return red * RED + green * GREEN + blue * BLUE


@triton.jit
def _unit(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _wave(angle, centre):
    return tl.minimum(tl.maximum(tl.abs(angle - centre), 1.0 / 6), 1.0 / 3)


@triton.jit
def _turned(red, green, blue, turn):
    """colour.turn_hue_."""
    most = tl.maximum(tl.maximum(red, green), blue)
    least = tl.minimum(tl.minimum(red, green), blue)
    chroma = most - least
    angle = (green + blue - red - least) / tl.maximum(chroma, 1e-12) + 1
    angle = tl.where(green < blue, -tl.abs(angle), tl.abs(angle)) / 6 + turn + 2
    angle -= tl.floor(angle)
    base, top, six = least - chroma, most + chroma, chroma * 6
    red = base + _wave(angle, 1.0 / 2) * six
    green = top - _wave(angle, 1.0 / 3) * six
    blue = top - _wave(angle, 2.0 / 3) * six
    return _unit(red), _unit(green), _unit(blue)


@triton.jit
def _jittered(red, green, blue, slots, turn, place, mean):
    """The pixels after the three slots and the hue, and their luma as it is where the contrast is changed."""
    seen = red * 0
    for slot in tl.static_range(3):
        if place == slot:
            red, green, blue = _turned(red, green, blue, turn)
        factor = tl.load(slots + 3 * slot)
        of_mean = tl.load(slots + 3 * slot + 1)
        luma = _luma(red, green, blue)
        target = luma * tl.load(slots + 3 * slot + 2) + mean * of_mean
        seen += luma * of_mean
        red = _unit(target + (red - target) * factor)
        green = _unit(target + (green - target) * factor)
        blue = _unit(target + (blue - target) * factor)
    if place == 3:
        red, green, blue = _turned(red, green, blue, turn)
    return red, green, blue, seen


@triton.jit
def _lumas(x, slots, turn, place, chosen, sums, pixels, BLOCK: tl.constexpr):
    """The sum of the lumas of a block where the contrast is changed; of samples that are chosen."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if tl.load(chosen + sample):
        pixel = part * BLOCK + tl.arange(0, BLOCK)
        inside = pixel < pixels
        at = x + sample * 3 * pixels + pixel
        red, green, blue = _loaded(at, pixels, inside)
        turned, where = tl.load(turn + sample), tl.load(place + sample)
        red, green, blue, luma = _jittered(red, green, blue, slots + 9 * sample, turned, where, 0.0)
        tl.store(sums + sample * tl.num_programs(1) + part, tl.sum(tl.where(inside, luma, 0.0)))


@triton.jit
def _change(x, slots, number, place, chosen, means, pixels, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """Change a block of a sample that is chosen; `number`: the turn of its hue, or its power."""
    sample = tl.program_id(0).to(tl.int64)
    if tl.load(chosen + sample):
        pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = pixel < pixels
        at = x + sample * 3 * pixels + pixel
        red, green, blue = _loaded(at, pixels, inside)
        if KIND == "jitter":
            turn, where, mean = tl.load(number + sample), tl.load(place + sample), tl.load(means + sample)
            red, green, blue, _ = _jittered(red, green, blue, slots + 9 * sample, turn, where, mean)
        elif KIND == "gray":
            red = _luma(red, green, blue)
            green = red
            blue = red
        elif KIND == "gamma":
            power = tl.maximum(tl.load(number + sample), 1e-30)
            red = tl.exp(tl.log(red) * power)
            green = tl.exp(tl.log(green) * power)
            blue = tl.exp(tl.log(blue) * power)
        else:
            red = tl.minimum(red, 1 - red)
            green = tl.minimum(green, 1 - green)
            blue = tl.minimum(blue, 1 - blue)
        tl.store(at, red, inside)
        tl.store(at + pixels, green, inside)
        tl.store(at + 2 * pixels, blue, inside)
