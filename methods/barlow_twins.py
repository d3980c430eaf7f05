"""Barlow Twins: the cross-correlation of two views' embeddings is to be the identity.

Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction" (arXiv 2103.03230): loss
equations 1 and 2 and algorithm 1, heads and lambda section 2.2. As in the authors' code, embeddings are standardised by
the biased variance of the whole batch (a batch norm without scale and shift, epsilon 1e-5) and the matrix is divided by
the batch size. The paper has three layers of 8192, four times the encoder's 2048, and lambda 0.005.

The off-diagonal sum grows with the square of the width, the diagonal one with the width: a narrower head wants a larger
lambda. The sum is of the order of the width, so that the authors' first code scales it by 0.024 for LARS; without that
plain SGD leaps. The paper's views are BYOL's; here both are SimCLR's without blur and solarisation.
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


class BarlowTwinsConfig(Augmentation):
    """Barlow Twins' hyperparameters."""

    redundancy: float = Field(0.005, gt=0, le=1, description="lambda: weight of the off-diagonal sum")
    scale: float = Field(0.024, gt=0, le=1, description="factor of the whole loss, for SGD and LARS; Adam ignores it")
    projection: int = Field(0, ge=0, le=16384, description="outputs of the projector; 0: four times the encoder's")
    hidden: int = Field(0, ge=0, le=16384, description="its hidden units; 0: as many as outputs")


class BarlowTwins(Method):
    """Redundancy reduction over the embeddings of all workers."""

    Config = BarlowTwinsConfig
    summary = "make the cross-correlation of two views' embeddings the identity (Barlow Twins)"
    config: BarlowTwinsConfig

    def __init__(self, config: BarlowTwinsConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        width = config.projection or 4 * encoder.dim
        hidden = config.hidden or width
        # The loss subtracts the mean, so that a bias would have no gradient.
        self.projector = mlp(encoder.dim, hidden, hidden, width, bias_last=False)

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """Two views `[B,3,size,size]` in 0..1 of one distribution."""
        return augment(images, draw, size, self.config), augment(images, draw, size, self.config)

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """The loss of the whole batch, the same on every worker, and the spread of the embeddings."""
        first, second = (gather(self.projector(self.encoder(view)).float()) for view in views)
        with torch.autocast(first.device.type, enabled=False):
            loss = barlow_twins(first, second, self.config.redundancy)
            return {"loss": self.config.scale * loss, "spread": spread(first)}


def barlow_twins(first: Tensor, second: Tensor, redundancy: float) -> Tensor:
    """Sum of (1 - C_ii)^2 and `redundancy` x sum of C_ij^2, C `[D,D]` the cross-correlation over rows `[B,D]`."""
    correlation = standardised(first).T @ standardised(second) / len(first)
    diagonal = correlation.diagonal()
    others = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + redundancy * others


def standardised(rows: Tensor) -> Tensor:
    """`[B,D]` with mean 0 and biased variance 1 in each column."""
    return F.batch_norm(rows, None, None, training=True)
