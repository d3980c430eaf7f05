"""Colour operations on views, float32 `[B,3,S,S]` in 0..1, each sample with its own random numbers.

Each has torchvision's definition and takes the same count of numbers from the draw whatever its settings, so that
two configurations differ by what they set and not by their random numbers. `x` is not changed unless `inplace`
allows to overwrite it, which saves a copy; what counts is the tensor returned. No operation waits for the device:
only the samples chosen are computed on a CPU and by the kernels of a GPU (see `fused`), elsewhere all are and the
result is selected.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.draw import Draw
from bench.fused import fused
from bench.resample import blocks, gaussian, separable

GRAY = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue
BRIGHTNESS, CONTRAST, SATURATION = range(3)


def colour_jitter(
    x: Tensor,
    draw: Draw,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    probability: float = 1.0,
    *,
    inplace: bool = False,
) -> Tensor:
    """Change the four in an order random for each sample, as torchvision's ColorJitter.

    The factors of the first three are uniform in [max(0, 1 - strength), 1 + strength]; the hue turns by a share
    of the circle uniform in [-hue, hue], 0 <= hue <= 0.5. `probability` is that of changing a sample at all.
    """
    strengths = (brightness, contrast, saturation)
    factors = torch.stack([draw.uniform(max(0, 1 - strength), 1 + strength) for strength in strengths], dim=1)
    turn = draw.uniform(-hue, hue)
    order = draw.permutation(3)
    place = draw.integers(4)
    chosen = draw.chance(probability)
    if probability <= 0:
        return x
    return jitter(x if inplace else x.clone(), factors, turn, order, place, chosen)


def jitter(x: Tensor, factors: Tensor, turn: Tensor, order: Tensor, place: Tensor, chosen: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of the samples `chosen` (`[B]` booleans); overwrites `x`.

    `factors`: `[B,3]` of brightness, contrast and saturation; `order`: `[B,3]` permutations of these; `turn`: `[B]`
    shares of the hue circle; `place`: `[B]`, how many of the three come before the hue, 0..3.
    """
    slots = _slots(factors, order)
    if x.device.type != "cpu":
        kernels = fused(x.device)
        changed: Tensor = (kernels.jitter if kernels else _jitter_all)(x, slots, turn, place, chosen)
        return changed
    for before in range(4):
        index = (chosen & (place == before)).nonzero()[:, 0]
        for part in blocks(len(index), x[:1].numel()):
            rows = index[part]
            x[rows] = _jitter(x.index_select(0, rows), slots[rows], turn[rows], before)
    return x


def grayscale(x: Tensor, draw: Draw, probability: float, *, inplace: bool = False) -> Tensor:
    """Replace the samples chosen with `probability` by their luma in all three channels."""
    return _sometimes(x, draw, probability, inplace, lambda x: luma(x).expand_as(x), kernel="gray")


def gamma(x: Tensor, draw: Draw, low: float, high: float, probability: float = 1.0, *, inplace: bool = False) -> Tensor:
    """Raise to a power uniform in [low, high], 0 <= low <= high, the same for all pixels of a sample."""
    power = draw.uniform(low, high)
    return _sometimes(x, draw, probability, inplace, raise_to, power, kernel="gamma")


def solarize(x: Tensor, draw: Draw, probability: float, *, inplace: bool = False) -> Tensor:
    """Invert the values of at least a half in the samples chosen (BYOL, appendix B)."""
    return _sometimes(x, draw, probability, inplace, lambda x: torch.minimum(x, 1 - x), kernel="solarize")


def blur(
    x: Tensor,
    draw: Draw,
    probability: float,
    kernel: float = 0.1,
    sigma: tuple[float, float] = (0.1, 2.0),
    *,
    inplace: bool = False,
) -> Tensor:
    """Blur by a Gaussian with a deviation uniform in `sigma` pixels, edges reflected (SimCLR, appendix A).

    `kernel`: its window as a share of the side, made odd and at least 3 pixels.
    """
    side = x.shape[-1]
    taps = min(max(3, int(kernel * side) | 1), 2 * side - 1)
    deviation = draw.uniform(*sigma)
    return _sometimes(x, draw, probability, inplace, lambda x, s: blur_by(x, s, taps), deviation)


def luma(x: Tensor) -> Tensor:
    """Weighted mean of the channels of `[B,3,H,W]`: `[B,1,H,W]`."""
    red, green, blue = x.unbind(1)
    return red.mul(GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2]).unsqueeze(1)


def raise_to(x: Tensor, power: Tensor) -> Tensor:
    """`x ** power` with powers `[B]`; zero stays zero."""
    # Four times faster than pow on a CPU; the least power keeps log(0) * 0 from being NaN.
    return x.log().mul_(power.clamp(min=1e-30).view(-1, 1, 1, 1)).exp_()


def blur_by(x: Tensor, sigma: Tensor, taps: int) -> Tensor:
    """Gaussian blur with deviations `sigma` `[B]` over `taps` pixels each way (odd)."""
    rows, columns = (gaussian(sigma, taps, side) for side in x.shape[2:])
    return separable(x, rows, columns)


def turn_hue_(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of `[B,3,H,W]` by `turn` `[B]`, shares of the circle in -1..1, in place.

    With w = (x - min) / (max - min), the hue lies 1 + w_green + w_blue - w_red from red on the circle of length 6,
    on green's side where green > blue. Each channel is then a clamped triangle wave of the turned hue. There is
    no comparison in it: on a CPU those cost ten times what arithmetic does.
    """
    red, green, blue = x.unbind(1)
    most = torch.maximum(red, green)
    torch.maximum(most, blue, out=most)
    least = torch.minimum(red, green)
    torch.minimum(least, blue, out=least)
    chroma = most - least
    spare = chroma.clamp(min=1e-12)
    angle = (green + blue).sub_(red).sub_(least).div_(spare).add_(1)
    torch.copysign(angle, torch.sub(green, blue, out=spare), out=angle)
    angle.mul_(1 / 6).add_((turn + 2).view(-1, 1, 1)).frac_()  # in 0..1: 0 red, 1/3 green, 2/3 blue
    base, top = least.sub_(chroma), most.add_(chroma)
    chroma.mul_(6)
    for channel, (centre, start, sign) in enumerate([(1 / 2, base, 1), (1 / 3, top, -1), (2 / 3, top, -1)]):
        torch.sub(angle, centre, out=spare).abs_().clamp_(1 / 6, 1 / 3)
        torch.addcmul(start, spare, chroma, value=sign, out=x[:, channel])
    return x.clamp_(0, 1)


def _slots(factors: Tensor, order: Tensor) -> Tensor:
    """`[B,3,3]`: factor, share of the sample's mean luma and share of the pixel's luma, for each of 3 slots.

    Brightness, contrast and saturation all mix the image with a target: black, mean luma, luma.
    """
    return torch.stack([factors.gather(1, order), order == CONTRAST, order == SATURATION], dim=2)


def _mix(x: Tensor, slot: Tensor) -> Tensor:
    """Apply to each sample its change `slot` `[B,3]`, in place."""
    factor, mean, pixel = slot.view(-1, 3, 1, 1, 1).unbind(1)
    gray = luma(x)
    level = gray.mean((1, 2, 3), keepdim=True) * mean
    return torch.lerp(gray.mul_(pixel).add_(level), x, factor, out=x).clamp_(0, 1)


def _jitter(x: Tensor, slots: Tensor, turn: Tensor, before: int) -> Tensor:
    """Apply the slots `[B,n,3]` in turn with the hue after the first `before` of them; `x` is overwritten."""
    for slot in slots[:, :before].unbind(1):
        _mix(x, slot)
    turn_hue_(x, turn)
    for slot in slots[:, before:].unbind(1):
        _mix(x, slot)
    return x


def _jitter_all(x: Tensor, slots: Tensor, turn: Tensor, place: Tensor, chosen: Tensor) -> Tensor:
    """`jitter` of all samples at once: three slots before the hue and three after, half of them idle."""
    early = torch.arange(3, device=x.device) < place.view(-1, 1)
    idle = torch.zeros_like(slots)
    idle[:, :, 0] = 1
    both = [torch.where(active.unsqueeze(2), slots, idle) for active in (early, ~early)]
    out = _jitter(x.clone(), torch.cat(both, dim=1), turn, before=3)
    return torch.where(chosen.view(-1, 1, 1, 1), out, x)


def _sometimes(
    x: Tensor,
    draw: Draw,
    probability: float,
    inplace: bool,
    change: Callable[..., Tensor],
    *parameters: Tensor,
    kernel: str = "",
) -> Tensor:
    """Replace samples with `probability` by `change(samples, *parameters)`, parameters `[B]` each.

    `kernel`: the GPU's kernel that does the same, where there is one.
    """
    chosen = draw.chance(probability)
    if probability <= 0:
        return x
    if kernel and (kernels := fused(x.device)):
        changed: Tensor = kernels.change(x if inplace else x.clone(), kernel, chosen, *parameters)
        return changed
    if x.device.type != "cpu":
        return torch.where(chosen.view(-1, 1, 1, 1), change(x, *parameters), x)
    x = x if inplace else x.clone()
    index = chosen.nonzero()[:, 0]
    for part in blocks(len(index), x[:1].numel()):
        rows = index[part]
        x[rows] = change(x.index_select(0, rows), *(parameter[rows] for parameter in parameters))
    return x
