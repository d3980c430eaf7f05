"""PMG: progressive multi-granularity training, supervised (the 2021 study's best row, 88 %).

Du et al. 2020, "Fine-Grained Visual Classification via Progressive Multi-Granularity Training of Jigsaw Patches"
(arXiv 2003.03836). A batch gives four optimiser steps, from fine to coarse: the maps of the stages L-2, L-1 and L
classify the image cut into 8 x 8, 4 x 4 and 2 x 2 shuffled patches (section 3.3), then their concatenation
classifies the whole image (section 3.2), whose loss weighs twice in the authors' code. A head is a block of two
convolutions, global max pooling and a classifier of two layers with ELU. What takes no part in a step stays as it is
in it; in the authors' torch its momentum and decay went on. They shuffle all images of a batch in one way; here each
has its own. They train a pretrained trunk at a tenth of the rate; here it starts from scratch.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bench.augmentation import Augmentation, Crop, NoJitter, augment
from bench.draw import Draw
from bench.encoders import ENCODERS, OWN, Encoder
from bench.errors import BadInput
from bench.images import ImageBatch
from bench.method import Shown, SupervisedMethod, Views
from bench.patches import shuffle_tiles

LEVELS = 3  # stages with a head of their own; the step after them takes their concatenation


class PMGCrop(Crop):
    """Random resized crop; 0.66 is the area of 448 in 550 px."""

    low: float = Field(0.66, gt=0, le=1, description="smallest share of the image's area")


class PMGConfig(Augmentation):
    """PMG's hyperparameters; views by default as the authors': crop 448 of 550 px, flip, no colour."""

    crop: PMGCrop = PMGCrop()
    jitter: NoJitter = NoJitter()
    grayscale: float = Field(0.0, ge=0, le=1, description="probability of a gray view")
    finest: Literal[1, 2, 4, 8, 16] = Field(
        8, description="patches per side in the first step, halved in each of the next two; 1: nothing is shuffled"
    )
    channels: int = Field(
        0, ge=0, le=4096, description="of each stage's convolution block; 0: half the encoder's features"
    )
    hidden: int = Field(
        0, ge=0, le=4096, description="units of each classifier; 0: a quarter of the encoder's features"
    )
    whole_weight: float = Field(2.0, gt=0, le=10, description="weight of the loss of the concatenation")
    smoothing: float = Field(
        0.0, ge=0, lt=1, description="label smoothing: share of the target spread over all classes"
    )


class PMG(SupervisedMethod):
    """Three heads on the last three stages and one on all, each trained in a step of its own."""

    Config = PMGConfig
    version = 2
    summary = "supervised, from shuffled fine patches to the whole image (PMG)"
    config: PMGConfig

    def __init__(self, config: PMGConfig, encoder: Encoder, classes: int) -> None:
        super().__init__(config, encoder, classes)
        channels = config.channels or encoder.dim // 2
        hidden = config.hidden or encoder.dim // 4
        self.blocks = nn.ModuleList(block(width, hidden, channels) for width in encoder.widths[-LEVELS:])
        widths = (*[channels] * LEVELS, channels * LEVELS)
        self.classifiers = nn.ModuleList(classifier(width, hidden, classes) for width in widths)

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """The view shuffled as each of the three levels asks, the whole view (all `[B,3,size,size]`), labels `[B]`."""
        if images.labels is None:
            raise ValueError("a supervised method needs images with labels")
        if size % self.config.finest:
            nearest = max(1, round(size / self.config.finest)) * self.config.finest
            raise BadInput(
                f"pretrain.image_size {size} does not divide into finest = {self.config.finest} patches; "
                f"the nearest that does is {nearest}"
            )
        whole = augment(images, draw, size, self.config)
        return (*(shuffle_tiles(whole, draw, patches) for patches in self.patches()), whole, images.labels)

    def patches(self) -> list[int]:
        """Patches per side at each of the three levels."""
        return [max(1, self.config.finest >> level) for level in range(LEVELS)]

    def shown(self, views: Views, count: int) -> list[Shown]:
        """What each of the four steps sees."""
        names = [*(f"{patches} x {patches} patches" for patches in self.patches()), "the whole view"]
        return [Shown(name, view.float()) for name, view in zip(names, views, strict=False)]

    def steps(self, views: Views) -> Iterable[Views]:
        """Yield (view, labels, level) of each step; the level 0..3 lies on the CPU, no one waits to read it."""
        *pictures, labels = views
        for level, picture in enumerate(pictures):
            yield picture, labels, torch.tensor(level)

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """Cross entropy of one step, also logged under its level; the accuracy is that of the concatenation."""
        view, labels, number = views
        level = int(number)
        logits = self.logits(view, level).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.smoothing)
        if level < LEVELS:
            return {"loss": loss, f"loss_level{level + 1}": loss.detach()}
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"loss": self.config.whole_weight * loss, "loss_whole": loss.detach(), "accuracy": accuracy}

    def logits(self, view: Tensor, level: int) -> Tensor:
        """Scores `[B,K]` by the head of one level, 3: by that of all."""
        maps = self.encoder.maps(view)[-LEVELS:]
        levels = range(LEVELS) if level == LEVELS else (level,)
        features = torch.cat([self.blocks[i](maps[i]).amax((2, 3)) for i in levels], dim=1)
        scores: Tensor = self.classifiers[level](features)
        return scores

    @classmethod
    def check(cls, config: Any, backbone: str) -> None:
        """Raise BadInput for encoders that are not convolutional."""
        fitting = [name for name, card in ENCODERS.items() if not card.transformer and name != OWN]
        if backbone not in fitting:
            raise BadInput(
                f"pretrain.backbone {backbone!r}: pmg needs maps of several resolutions; "
                f"convolutional encoders are {', '.join(fitting)}"
            )


def block(width: int, hidden: int, channels: int) -> nn.Sequential:
    """The convolutions over a stage's map: `[B,width,h,w] -> [B,channels,h,w]`."""
    return nn.Sequential(
        nn.Conv2d(width, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def classifier(width: int, hidden: int, classes: int) -> nn.Sequential:
    """The classifier of pooled features: `[B,width] -> [B,classes]`.

    The authors normalise its input too. That is left out: a block ends in a normalisation, and a second one, over
    the maxima, blows up channels that hardly vary in a small batch, so that rounding decides how training goes on.
    """
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ELU(inplace=True),
        nn.Linear(hidden, classes),
    )
