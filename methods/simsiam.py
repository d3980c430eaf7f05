"""SimSiam: predict one view's embedding from the other's, with a stopped gradient and nothing else against collapse.

Chen and He 2021, "Exploring Simple Siamese Representation Learning" (arXiv 2011.10566): algorithm 1, heads section 3
("Baseline settings"): a 3-layer projector with batch norm on its output too and without ReLU there, as wide as the
encoder; a 2-layer predictor with a bottleneck of a quarter. In the authors' code the output's norm has neither scale
nor shift. Without the stopped gradient everything collapses to one point at once: the loss is then -1 and `spread` 0
(section 4.1 and figure 2), so watch `spread`.

The paper keeps the predictor's learning rate constant (section 4.2, table 1: 68.1 against 67.7 %); here it decays with
the encoder's.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bench.augmentation import Augmentation, augment
from bench.distributed import gather
from bench.draw import Draw
from bench.encoders import Encoder
from bench.heads import mlp, spread
from bench.images import ImageBatch
from bench.method import Method, Views


class SimSiamConfig(Augmentation):
    """SimSiam's hyperparameters."""

    projection: int = Field(0, ge=0, le=8192, description="projector's width; 0: as many as the encoder has features")
    bottleneck: int = Field(0, ge=0, le=8192, description="predictor's hidden units; 0: a quarter of the projector's")


class SimSiam(Method):
    """Siamese networks that predict each other, with a stopped gradient."""

    Config = SimSiamConfig
    summary = "predict the embedding of the other view, gradient stopped (SimSiam)"
    config: SimSiamConfig

    def __init__(self, config: SimSiamConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        width = config.projection or encoder.dim
        self.projector = mlp(encoder.dim, width, width, width, norm_last=True, affine_last=False)
        self.predictor = mlp(width, config.bottleneck or max(1, width // 4), width)

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """Two views `[B,3,size,size]` in 0..1 of one distribution."""
        return augment(images, draw, size, self.config), augment(images, draw, size, self.config)

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """The symmetric loss, and the spread of all workers' embeddings."""
        first, second = (self.projector(self.encoder(view)) for view in views)
        predictions = self.predictor(first).float(), self.predictor(second).float()
        first, second = first.float(), second.float()
        with torch.autocast(first.device.type, enabled=False):
            loss = (negative_cosine(predictions[0], second) + negative_cosine(predictions[1], first)) / 2
            return {"loss": loss, "spread": spread(gather(first.detach()))}


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean of -cos over rows `[B,D]`, in -1..1 (equation 1); no gradient flows into `target` (equation 3)."""
    return -F.cosine_similarity(prediction, target.detach(), dim=1).mean()
