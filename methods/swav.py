"""SwAV: the cluster that one view of an image is assigned to must be predicted from its other views.

Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments"
(arXiv 2006.09882): swapped prediction equation 2, codes by Sinkhorn-Knopp section 3.1 and equations 3 to 5,
multi-crop section 3.4, settings appendix A.

The authors use 3000 prototypes for 1.3 million images and a queue for batches that are smaller than the prototypes
are many. Sinkhorn spreads a batch evenly over the prototypes: with far more of them than samples the codes say
little, so that here they are few and there is no queue.
"""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bench.distributed import gather, rank
from bench.draw import Draw
from bench.encoders import Encoder
from bench.heads import mlp, spread
from bench.images import ImageBatch
from bench.method import Method, Views
from bench.multicrop import GLOBAL, MultiCrop, encode, multi_crop


class SwAVConfig(MultiCrop):
    """SwAV's hyperparameters."""

    prototypes: int = Field(64, ge=2, le=65_536, description="clusters; no more than images in a batch")
    projection: int = Field(64, ge=2, le=8192, description="outputs of the projection head")
    hidden: int = Field(0, ge=0, le=8192, description="its hidden units; 0: as many as the encoder has features")
    norm: bool = Field(True, description="batch norm after the head's last layer too; the authors have none")
    temperature: float = Field(0.1, gt=0, le=2, description="of the softmax that predicts the codes")
    epsilon: float = Field(0.03, gt=0, le=1, description="how soft the codes are; too soft, and all become equal")
    iterations: int = Field(3, ge=1, le=20, description="of Sinkhorn-Knopp")
    freeze: float = Field(0.05, ge=0, le=1, description="share of training in which the prototypes stay as drawn")


class SwAV(Method):
    """Swapped prediction of cluster assignments, balanced over the samples of all workers."""

    Config = SwAVConfig
    summary = "predict a view's cluster from the image's other views, clusters of even size (multi-crop)"
    config: SwAVConfig

    def __init__(self, config: SwAVConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.head = mlp(encoder.dim, config.hidden or encoder.dim, config.projection, norm_last=config.norm)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(config.prototypes, config.projection), dim=1))

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """Two global views `[B,3,size,size]` and the smaller local ones, in 0..1."""
        return tuple(multi_crop(images, draw, size, self.config, self.encoder))

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """The swapped prediction of this worker's rows; `spread` of the global views' embeddings is logged."""
        config = self.config
        embeddings = self.head(encode(self.encoder, views))
        with torch.autocast(embeddings.device.type, enabled=False):  # similarities / temperature need full precision
            unit = F.normalize(embeddings.float(), dim=1)
            scores = (unit @ self.prototypes.T).chunk(len(views))
            loss = swapped_prediction(scores, config.temperature, config.epsilon, config.iterations)
        losses = {"loss": loss, "spread": spread(gather(unit[: len(views[0])].detach()))}
        if not self._frozen(progress):
            losses["prototypes"] = loss - loss.detach()  # the loss's gradient; worth 0, as the loss counts once
        return losses

    def objectives(self) -> dict[str, list[nn.Parameter]]:
        """The prototypes have an objective of their own, absent from the losses while they are frozen.

        A zero gradient would not do: momentum and weight decay move what has one.
        """
        rest = [parameter for parameter in super().objectives()["loss"] if parameter is not self.prototypes]
        return {"prototypes": [self.prototypes], "loss": rest}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Put the prototypes back on the unit sphere."""
        if not self._frozen(progress):
            self.prototypes.copy_(F.normalize(self.prototypes, dim=1))

    def _frozen(self, progress: float) -> bool:
        return progress < self.config.freeze


def swapped_prediction(scores: Sequence[Tensor], temperature: float, epsilon: float, iterations: int) -> Tensor:
    """Return the cross entropy between each global view's codes and every other view's prediction (equation 2).

    `scores`: `[b,K]` of each view, similarities of its embeddings with the prototypes, global views first. The mean
    is over pairs of views and this worker's rows.
    """
    predictions = [F.log_softmax(score / temperature, dim=1) for score in scores]
    terms = []
    for view in range(GLOBAL):
        target = codes(scores[view], epsilon, iterations)
        terms += [-(target * other).sum(1).mean() for number, other in enumerate(predictions) if number != view]
    return torch.stack(terms).mean()


@torch.no_grad()
def codes(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return this worker's rows `[b,K]` of the codes of all workers' samples, without gradient."""
    everyone = sinkhorn(gather(scores.detach()), epsilon, iterations)
    return everyone[rank() * len(scores) :][: len(scores)]


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return codes `[B,K]` of scores `[B,K]`: each row sums to 1 and, about, each column to B/K (equations 3 to 5).

    The authors scale exp(scores / epsilon) by turns so that every prototype has mass 1/K and every sample 1/B. The
    constants cancel, and in logarithms nothing overflows, however small epsilon is.
    """
    logs = scores / epsilon
    for _ in range(iterations):
        logs = logs - logs.logsumexp(0, keepdim=True)
        logs = logs - logs.logsumexp(1, keepdim=True)
    return logs.exp()
