"""Crops: whole images of a pack to square views, each sample with its own box.

Boxes are `[B,4]` float32 fractions (top, left, height, width) of the canvas. A pack stretches every image to one
canvas, so a box that is square in the image is not square in fractions; the resampling undoes the stretch.
"""

import math

import torch
from torch import Tensor

from bench.draw import Draw
from bench.images import ImageBatch
from bench.resample import separable, triangle

ATTEMPTS = 10  # as torchvision's RandomResizedCrop


def random_resized_crop(
    aspect: Tensor,
    draw: Draw,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Draw boxes as torchvision's RandomResizedCrop does, without its rounding to pixels (Szegedy et al. 2015).

    `aspect`: `[B]`, width / height of the images. `scale`: bounds of the box's share of the image's area, uniform;
    `ratio`: bounds of its width / height, log-uniform. The first of 10 attempts that lies inside the image counts,
    else the largest central box whose ratio is within bounds.
    """
    unit = draw.unit(2 * ATTEMPTS)
    area = scale[0] + (scale[1] - scale[0]) * unit[:, :ATTEMPTS]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = (low + (high - low) * unit[:, ATTEMPTS:]).exp()  # width / height
    aspect = aspect.view(-1, 1)
    height, width = (area * aspect / shape).sqrt(), (area * shape / aspect).sqrt()
    fits = (height <= 1) & (width <= 1)
    first = fits.byte().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1, keepdim=True)
    height = torch.where(found, height.gather(1, first), (aspect / ratio[0]).clamp(max=1))
    width = torch.where(found, width.gather(1, first), (ratio[1] / aspect).clamp(max=1))
    place = torch.where(found, draw.unit(2), 0.5)
    return torch.cat([place[:, :1] * (1 - height), place[:, 1:] * (1 - width), height, width], dim=1)


def centre_crop(aspect: Tensor, share: float = 7 / 8) -> Tensor:
    """Boxes of the central square whose side is `share` of the image's short side.

    With 7/8 it is the usual test view: short side resized to 8/7 of the size, centre cropped. `aspect`: `[B]`.
    """
    height = share * aspect.clamp(max=1)
    width = height / aspect
    return torch.stack([(1 - height) / 2, (1 - width) / 2, height, width], dim=1)


def crop(images: ImageBatch, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Crop, flip and resize in one antialiased bilinear resampling: float32 `[B,3,size,size]` in 0..1.

    `boxes`: `[B,4]` fractions inside the canvas; `flip`: `[B]` booleans, mirror left to right. Boxes of whole
    pixels give torchvision's `resized_crop(antialias=True)`.
    """
    height, width = images.pixels.shape[2:]
    top, left, tall, wide = boxes.unbind(1)
    rows = triangle(top * height, tall * height, size, height)
    columns = triangle(left * width, wide * width, size, width, flip)
    return separable(images.pixels, rows.scaled(1 / 255), columns)
