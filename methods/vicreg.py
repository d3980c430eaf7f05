"""VICReg: two views' embeddings agree, keep their variance and are decorrelated.

Bardes et al. 2022, "VICReg: Variance-Invariance-Covariance Regularization" (arXiv 2105.04906): equations 1 to 6,
coefficients 25, 25 and 1 and the expander (three layers of 8192, four times the encoder's 2048) section 4.2. As in the
authors' code, the invariance is the mean over the columns too, and the variance term the mean of the two views' terms
while the covariance term is their sum.

The paper's views are BYOL's; here both are SimCLR's without blur and solarisation.
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

EPSILON = 1e-4  # inside the root of the variance


class VICRegConfig(Augmentation):
    """VICReg's hyperparameters."""

    invariance: float = Field(25.0, ge=0, le=1000, description="lambda: weight of the distance between the views")
    variance: float = Field(25.0, ge=0, le=1000, description="mu: weight of the hinge on the standard deviation")
    covariance: float = Field(1.0, ge=0, le=1000, description="nu: weight of the squared covariances")
    projection: int = Field(0, ge=0, le=16384, description="outputs of the expander; 0: four times the encoder's")
    hidden: int = Field(0, ge=0, le=16384, description="its hidden units; 0: as many as outputs")


class VICReg(Method):
    """Invariance, variance and covariance over the embeddings of all workers."""

    Config = VICRegConfig
    summary = "views agree, with a floor on variance and no covariance (VICReg)"
    config: VICRegConfig

    def __init__(self, config: VICRegConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        width = config.projection or 4 * encoder.dim
        hidden = config.hidden or width
        # Only differences of embeddings count, so that a bias would have no gradient.
        self.projector = mlp(encoder.dim, hidden, hidden, width, bias_last=False)

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """Two views `[B,3,size,size]` in 0..1 of one distribution."""
        return augment(images, draw, size, self.config), augment(images, draw, size, self.config)

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """The loss of the whole batch, the same on every worker; its three terms and the spread are logged."""
        first, second = (gather(self.projector(self.encoder(view)).float()) for view in views)
        with torch.autocast(first.device.type, enabled=False):
            invariance, variance, covariance = terms(first, second)
            config = self.config
            loss = config.invariance * invariance + config.variance * variance + config.covariance * covariance
        logged = {"invariance": invariance, "variance": variance, "covariance": covariance}
        return {"loss": loss, **{name: value.detach() for name, value in logged.items()}, "spread": spread(first)}


def terms(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Invariance (equation 5), variance (1) and covariance (4) of embeddings `[B,D]`, not yet weighted."""
    both = first, second
    variance = torch.stack([variance_term(rows) for rows in both]).mean()
    covariance = torch.stack([covariance_term(rows) for rows in both]).sum()
    return F.mse_loss(first, second), variance, covariance


def variance_term(rows: Tensor) -> Tensor:
    """The mean over columns of max(0, 1 - deviation), 0..1 (equations 1 and 2)."""
    return F.relu(1 - (rows.var(0) + EPSILON).sqrt()).mean()


def covariance_term(rows: Tensor) -> Tensor:
    """The sum of squared off-diagonal covariances over D (equations 3 and 4)."""
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / (len(rows) - 1)
    others = covariance.square().sum() - covariance.diagonal().square().sum()
    return others / rows.shape[1]
