"""Pictures and the changes of views that a GPU's kernels make, for the tests that compare them with the CPU's."""

import torch

from bench import colour
from bench.images import ImageBatch
from bench.views import crop, random_resized_crop


def photographs(count: int, height: int, width: int) -> torch.Tensor:
    """Noise, some of it gray, black, white and saturated, uint8."""
    images = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0))
    images[0] = images[0, :1]
    images[1], images[2, :, :5], images[3, 1:] = 0, 255, 0
    return images.to(torch.uint8)


def plain(x: ImageBatch) -> torch.Tensor:
    return x.pixels.float() / 255


VIEWS = {
    "crop": lambda x, draw: crop(x, random_resized_crop(x.aspect, draw), 20, draw.chance(0.5)),
    "jitter": lambda x, draw: colour.colour_jitter(plain(x), draw, 0.8, 0.8, 0.8, 0.2, 0.8),
    "strong jitter": lambda x, draw: colour.colour_jitter(plain(x), draw, 1.0, 1.0, 1.0, 0.5),
    "gray": lambda x, draw: colour.grayscale(plain(x), draw, 0.5),
    "gamma": lambda x, draw: colour.gamma(plain(x), draw, 0.3, 3.0, 0.7),
    "power of zero": lambda x, draw: colour.gamma(plain(x), draw, 0.0, 0.0),
    "solarize": lambda x, draw: colour.solarize(plain(x), draw, 0.5),
    "blur": lambda x, draw: colour.blur(plain(x), draw, 0.5),
}
