"""SimCLR: two random views of one image must find each other among all others of the batch.

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations"
(arXiv 2002.05709): views section 3 and appendix A, projection head section 4.2, NT-Xent equation 1.
The random gamma view is that of arXiv 2107.13973: a gamma curve instead of strong colour distortion, applied
to one view of the pair. Its exponent there is uniform in 0.5..2.5.

Small batches do well with a temperature of 0.2 to 0.5 (SimCLR appendix B.9 sweeps it against batch size).
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, ModelWrapValidatorHandler, model_validator
from torch import Tensor
from torch.nn import functional as F

from bench import colour
from bench.augmentation import Augmentation, augment
from bench.distributed import gather, rank
from bench.draw import Draw
from bench.encoders import Encoder
from bench.heads import mlp
from bench.images import ImageBatch
from bench.method import Method, Views
from bench.records import Record


class Gamma(Record):
    """Random gamma: pixel ** g with g uniform in low..high."""

    enabled: bool = Field(True, description="whether any view passes through a gamma curve")
    low: float = Field(0.5, gt=0, le=1, description="smallest exponent (brighter)")
    high: float = Field(2.5, ge=1, le=5, description="largest exponent (darker)")
    views: Literal["one", "both"] = Field("one", description="the second view only, or both with own exponents")

    @model_validator(mode="wrap")
    @classmethod
    def _off_is_one_thing(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # What is off has no range: all ways to write "no gamma" are one trial.
        gamma = handler(values)
        return gamma if gamma.enabled else handler({"enabled": False})


class SimCLRConfig(Augmentation):
    """SimCLR's hyperparameters."""

    temperature: float = Field(0.2, gt=0, le=2, description="of the softmax over similarities")
    projection: int = Field(128, ge=8, le=8192, description="outputs of the projection head")
    hidden: int = Field(0, ge=0, le=8192, description="its hidden units; 0: as many as the encoder has features")
    gamma: Gamma = Gamma()


class SimCLR(Method):
    """Contrastive learning with NT-Xent over the views of all workers."""

    Config = SimCLRConfig
    summary = "contrast two random views of an image (NT-Xent), with the study's random gamma view"
    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.head = mlp(encoder.dim, config.hidden or encoder.dim, config.projection, norm_last=True)

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """Two views `[B,3,size,size]` in 0..1; by default only the second one passes through gamma."""
        both = self.config.gamma.views == "both"
        return self._view(images, draw, size, gamma=both), self._view(images, draw, size, gamma=True)

    def _view(self, images: ImageBatch, draw: Draw, size: int, *, gamma: bool) -> Tensor:
        config = self.config
        view = augment(images, draw, size, config)
        if gamma and config.gamma.enabled:
            view = colour.gamma(view, draw, config.gamma.low, config.gamma.high)
        return view

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """NT-Xent of this worker's pairs against the views of all workers."""
        first, second = self.head(self.encoder(torch.cat(views))).float().chunk(2)
        with torch.autocast(first.device.type, enabled=False):  # similarities / temperature need full precision
            return {"loss": nt_xent(first, second, self.config.temperature)}


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return the normalised temperature-scaled cross entropy of paired embeddings `[B,D]` (equation 1).

    Each of this worker's 2B embeddings must find its partner among the 2B x workers - 1 others; the mean is
    over this worker's rows, so that the mean over workers is the loss of the whole batch.
    """
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    mine = torch.cat((first, second))
    everyone = torch.cat((gather(first), gather(second)))
    local, total = len(first), len(everyone) // 2
    own = torch.arange(local, device=first.device) + rank() * local
    itself, partner = torch.cat((own, own + total)), torch.cat((own + total, own))
    logits = (mine @ everyone.T) / temperature
    logits = logits.scatter(1, itself[:, None], float("-inf"))
    return F.cross_entropy(logits, partner)
