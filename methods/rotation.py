"""Rotation: tell by which multiple of 90 degrees an image was turned.

Gidaris et al. 2018, "Unsupervised Representation Learning by Predicting Image Rotations" (arXiv 1803.07728): section
2.1 the task, section 3.1 all four turns of an image in one batch (it beats one random turn). Multiples of 90 degrees
only: they move pixels and leave no trace of resampling. A network that tells from the light or from a colour cast
which side was up needs no shapes; colour jitter does not move either, gray views remove the second.

One trace is left: a pack stretches its images to one canvas, so that an image of other proportions is finer along one
axis than along the other, which tells quarter turns from half ones. On noise of 3:4 on a canvas of 4:3 (96 px high,
views of 64 px) the accuracy reaches 0.46, where canvas and images have the same proportions 0.25.

Pictures without an upright pose cannot be told apart. The built-in families are such: they are drawn at any angle and
in light from any side, so that the loss stays at chance (1.383 after 10 epochs on leaves, ln 4 = 1.386; validation
accuracy 0.25) and the encoder probes as the untrained one. Photographs of groceries (810, 10 epochs): 1.07 and 0.56.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bench.augmentation import Augmentation, WideCrop, augment
from bench.draw import Draw
from bench.encoders import Encoder
from bench.heads import mlp
from bench.images import ImageBatch
from bench.method import Method, Shown, Views

TURNS = 4


class RotationConfig(Augmentation):
    """Rotation's hyperparameters. Views are gentler than contrastive ones: the shape must stay in the picture."""

    crop: WideCrop = WideCrop()
    hidden: int = Field(0, ge=0, le=8192, description="hidden units of the head; 0: a linear head")


class Rotation(Method):
    """Four-way classification of the turn, with its accuracy beside the loss; chance is ln 4 and 1/4."""

    Config = RotationConfig
    summary = "tell by which multiple of 90 degrees an image was turned"
    config: RotationConfig

    def __init__(self, config: RotationConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.head = mlp(encoder.dim, *([config.hidden] if config.hidden else []), TURNS)

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """One random view of each image in all its turns `[B*4,3,size,size]`, the four of an image together."""
        upright = augment(images, draw, size, self.config)
        return (torch.stack([upright.rot90(turns, (2, 3)) for turns in range(TURNS)], dim=1).flatten(0, 1),)

    def shown(self, views: Views, count: int) -> list[Shown]:
        """One view in all its turns."""
        turned = views[0].float().unflatten(0, (count, TURNS)).unbind(1)
        return [Shown(f"turned by {90 * turns} degrees", view) for turns, view in enumerate(turned)]

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """Cross entropy over the four turns (equation 3), and the accuracy."""
        turned = views[0]
        turns = torch.arange(TURNS, device=turned.device).repeat(len(turned) // TURNS)
        logits = self.head(self.encoder(turned)).float()
        return {"loss": F.cross_entropy(logits, turns), "accuracy": (logits.argmax(1) == turns).float().mean()}

    def separable(self) -> bool:
        """Every turn of an image is a sample by itself."""
        return True

    def validation(self, images: ImageBatch, size: int) -> Mapping[str, Tensor]:
        """Loss and accuracy on one fixed view of each validation image."""
        return self.losses(self.views(images, Draw(0, len(images), device=images.device), size), 0.0)
