"""Supervised training from scratch on the labels of the training split: the baseline that pretext tasks are held to.

The usual views (random resized crop, Szegedy et al. 2015, arXiv 1409.4842, section 6; flip; optional colour jitter),
cross entropy with label smoothing (Szegedy et al. 2016, arXiv 1512.00567, section 7), dropout before the classifier
(the 2021 study, arXiv 2107.13973, sweeps 0.5 to 0.9 for its srgan rows) and class weights for unbalanced data.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bench.augmentation import Augmentation, Crop, NoJitter, augment
from bench.distributed import gather
from bench.draw import Draw
from bench.encoders import Encoder
from bench.images import ImageBatch
from bench.method import SupervisedMethod, Views
from bench.patches import numbers


class SupervisedCrop(Crop):
    """Random resized crop of a training view."""

    low: float = Field(0.3, gt=0, le=1, description="smallest share of the image's area")


class SupervisedConfig(Augmentation):
    """Settings of plain supervised training."""

    crop: SupervisedCrop = SupervisedCrop()
    jitter: NoJitter = NoJitter()
    grayscale: float = Field(0.0, ge=0, le=1, description="probability of a gray view")
    smoothing: float = Field(
        0.0, ge=0, lt=1, description="label smoothing: share of the target spread over all classes"
    )
    dropout: float = Field(0.0, ge=0, le=0.95, description="share of features dropped before the classifier")
    weighting: Literal["none", "balanced"] = Field(
        "none", description="balanced: a sample weighs as the inverse of how often its class was seen so far"
    )


class Supervised(SupervisedMethod):
    """A linear classifier on the encoder, both trained from scratch."""

    Config = SupervisedConfig
    summary = "control: supervised from scratch on the training labels"
    config: SupervisedConfig

    def __init__(self, config: SupervisedConfig, encoder: Encoder, classes: int) -> None:
        super().__init__(config, encoder, classes)
        self.head = nn.Linear(encoder.dim, classes)
        self.register_buffer("seen", torch.ones(classes))  # samples of each class over all workers, and one
        self.seen: Tensor

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """One view `[B,3,size,size]`, the labels `[B]`, and the dropout's factor of each feature `[B,D]`.

        The mask comes from the draw and not from torch's generator, so that it is the same on any number of workers.
        """
        if images.labels is None:
            raise ValueError("a supervised method needs images with labels")
        view = augment(images, draw, size, self.config)
        kept = numbers(draw, self.encoder.dim) >= self.config.dropout
        return view, images.labels, kept / (1 - self.config.dropout)

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """Cross entropy, and the accuracy on the training views."""
        view, labels, factors = views
        logits = self.head(self.encoder(view) * factors).float()
        each = F.cross_entropy(logits, labels, label_smoothing=self.config.smoothing, reduction="none")
        if self.config.weighting == "balanced":
            self._count(labels)
            each = each * self._weights()[labels]
        return {"loss": each.mean(), "accuracy": (logits.argmax(1) == labels).float().mean()}

    def separable(self) -> bool:
        """Unless classes are weighted by how often they were seen."""
        return self.config.weighting == "none"

    @torch.no_grad()
    def _count(self, labels: Tensor) -> None:
        """Add the labels `[B]` of all workers to the classes' counts."""
        self.seen += gather(F.one_hot(labels, self.classes).float()).sum(0)

    def _weights(self) -> Tensor:
        """Weights `[K]` that are inverse to the classes' frequencies, with mean 1 over samples."""
        return self.seen.sum() / (self.classes * self.seen)
