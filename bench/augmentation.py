"""The random views that contrastive and other joint-embedding methods share, as one record of settings."""

from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from bench import colour
from bench.draw import Draw
from bench.images import ImageBatch
from bench.records import Record
from bench.views import crop, random_resized_crop


class Crop(Record):
    """Random resized crop, in the true proportions of the whole image."""

    low: float = Field(0.08, gt=0, le=1, description="smallest share of the image's area")
    high: float = Field(1.0, gt=0, le=1, description="largest share of the image's area")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self


class WideCrop(Crop):
    """A crop in which most of the picture stays, for tasks on its shape."""

    low: float = Field(0.5, gt=0, le=1, description="smallest share of the image's area")


class Jitter(Record):
    """Colour jitter: brightness, contrast, saturation 0.8 x strength and hue 0.2 x strength, in random order."""

    strength: float = Field(0.5, ge=0, le=1.25, description="1.0 is SimCLR's ImageNet setting, 0.5 its CIFAR one")
    probability: float = Field(0.8, ge=0, le=1, description="share of samples that are jittered")


class NoJitter(Jitter):
    """Colour jitter that is left out unless it is asked for."""

    probability: float = Field(0.0, ge=0, le=1, description="share of samples that are jittered")


class Blur(Record):
    """Gaussian blur with a kernel of 10 % of the side and sigma 0.1 to 2.0 pixels."""

    probability: float = Field(0.0, ge=0, le=1, description="0.5 in SimCLR at 224 px; none in the 2021 study")


class Augmentation(Record):
    """SimCLR's views (Chen et al. 2020, section 3 and appendix A): the fields that a method's Config inherits.

    Other defaults within a part are those of a class of its own (`crop: WideCrop = WideCrop()`): an instance with other
    values (`Crop(low=0.5)`) would lose them as soon as another field of the part is set.
    """

    crop: Crop = Crop()
    jitter: Jitter = Jitter()
    grayscale: float = Field(0.2, ge=0, le=1, description="probability of a gray view")
    blur: Blur = Blur()


def augment(images: ImageBatch, draw: Draw, size: int, settings: Augmentation, boxes: Tensor | None = None) -> Tensor:
    """Return one random view `[B,3,size,size]` in 0..1 of each image: crop, flip, colour jitter, gray, blur.

    `boxes`: `[B,4]` as in `bench.views`, where the crop is not to be the settings' own random one.
    """
    if boxes is None:
        boxes = random_resized_crop(images.aspect, draw, (settings.crop.low, settings.crop.high))
    view = crop(images, boxes, size, flip=draw.chance(settings.crop.flip))
    full, hue = 0.8 * settings.jitter.strength, 0.2 * settings.jitter.strength
    view = colour.colour_jitter(view, draw, full, full, full, hue, settings.jitter.probability, inplace=True)
    view = colour.grayscale(view, draw, settings.grayscale, inplace=True)
    return colour.blur(view, draw, settings.blur.probability, inplace=True)
