"""Multi-crop: two global views and several small local ones of each image (SwAV, section 3.4; DINO, section 3.1)."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Self

import torch
from pydantic import Field, ModelWrapValidatorHandler, model_validator
from torch import Tensor

from bench.augmentation import Augmentation, Crop, augment
from bench.draw import Draw
from bench.encoders import Encoder, VisionTransformer
from bench.images import ImageBatch
from bench.records import Record
from bench.views import random_resized_crop

GLOBAL = 2  # global views of an image; they come first


class Local(Record):
    """Local views: smaller crops of smaller parts of the image.

    The papers' 5 % of a 64 px image is a blur of 20 px that seldom shows what tells classes apart: colour and light
    then predict the other view best.
    """

    views: int = Field(2, ge=0, le=12, description="local views of each image, 6 in SwAV and 8 in DINO; 0: none")
    size: float = Field(0.5, ge=0.2, le=1, description="side of a local view as a share of the global one's")
    low: float = Field(0.2, gt=0, le=1, description="smallest share of the image's area; 0.05 in the papers")
    high: float = Field(0.6, gt=0, le=1, description="largest share of the image's area")

    @model_validator(mode="wrap")
    @classmethod
    def _none_is_one_thing(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        local = handler(values)
        if local.low > local.high:
            raise ValueError(f"low ({local.low}) must not exceed high ({local.high})")
        return local if local.views or local.model_fields_set == {"views"} else handler({"views": 0})


class GlobalCrop(Crop):
    """Random resized crop of a global view."""

    low: float = Field(0.3, gt=0, le=1, description="smallest share of the image's area")


class MultiCrop(Augmentation):
    """The fields that the Config of a method with local views inherits; `crop` is that of the global views."""

    crop: GlobalCrop = GlobalCrop()
    local: Local = Local()


def multi_crop(images: ImageBatch, draw: Draw, size: int, settings: MultiCrop, encoder: Encoder) -> list[Tensor]:
    """Return `GLOBAL` views `[B,3,size,size]` and then the local ones `[B,3,s,s]`, each with its own random numbers.

    s is the local share of `size`, as near as the encoder takes it: a ViT takes whole patches.
    """
    views = [augment(images, draw, size, settings) for _ in range(GLOBAL)]
    step = encoder.patch if isinstance(encoder, VisionTransformer) else 1
    small = max(1, round(settings.local.size * size / step)) * step
    for _ in range(settings.local.views):
        boxes = random_resized_crop(images.aspect, draw, (settings.local.low, settings.local.high))
        views.append(augment(images, draw, small, settings, boxes))
    return views


def encode(encoder: Encoder, views: Sequence[Tensor]) -> Tensor:
    """Features `[V*B,dim]` of V views `[B,3,s,s]` in turn, with one pass of the encoder for each size.

    So a batch norm sees each size by itself, as in the authors' code.
    """
    sizes = groupby(views, key=lambda view: view.shape[-1])
    return torch.cat([encoder(torch.cat(list(alike))) for _, alike in sizes])
