"""A batch of images as it leaves a pack and enters a method's views."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageBatch:
    """Whole images of one pack.

    `pixels`: uint8 `[B,3,H,W]`, RGB. Every image of a pack is stretched to the pack's one canvas, so that a
    batch is dense; `aspect`: float32 `[B]`, width / height of each image before that. Crops are drawn in the
    true proportions and the resampling of the crop undoes the stretch. `labels`: int64 `[B]`, for methods that learn
    from labels only.
    """

    pixels: Tensor
    aspect: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self.pixels.device
