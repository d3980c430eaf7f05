"""MoCo: find the other view's embedding by a momentum encoder, among those of other images.

- v2: He et al. 2020 (arXiv 1911.05722) algorithm 1, with the head and temperature 0.2 of Chen et al. 2020 (arXiv
  2003.04297). Negatives are a queue of earlier keys.
- v3: Chen et al. 2021 (arXiv 2104.02057) algorithm 1: negatives are the batch's own keys, a predictor follows the
  queries, the loss is symmetric and multiplied by 2 x temperature (section 5); the momentum rises to 1 along a cosine.
  The heads are those of the authors' code for ResNets: a 2-layer projector that ends in a batch norm without scale and
  shift, a 2-layer predictor.

Batch norm gives v2 away: a key that is normalised by the moments of its batch tells which batch it came from, and the
negatives come from others (He et al., section 3.3). The authors shuffle samples between GPUs. Here batch norms are
shared by all workers, where a shuffle changes nothing; so keys are normalised by the key encoder's own running
statistics, which move with the same momentum as its weights (EMAN, Cai et al. 2021, arXiv 2101.08482). In v3 queries
and keys are of one batch, and keys are normalised by its moments, as in the authors' code.

The authors' momentum is 0.999 and their queue 65,536, 5 % of ImageNet, for 200 epochs of 5,000 steps. A run of some
hundred steps needs a faster key encoder: its statistics begin at mean 0 and variance 1, with which all keys are alike
(cosine 0.94 between images, 0.34 by the batch's moments), and 0.99 keeps a third of that for 110 steps. A queue near
the dataset's size holds each image's own earlier keys as negatives. It begins with random directions, which are easy
to tell from keys, so that v2's loss rises until keys have replaced them.

The views are SimCLR's. Those of v2 are crops from 0.2 and blur; those of v3 are BYOL's.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, ModelWrapValidatorHandler, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from bench.augmentation import Augmentation, augment
from bench.distributed import gather, rank
from bench.draw import Draw
from bench.encoders import Encoder
from bench.heads import cosine_momentum, follow, mlp, twin
from bench.images import ImageBatch
from bench.method import Method, Views

QUEUE = 512


class MoCoConfig(Augmentation):
    """MoCo's hyperparameters."""

    variant: Literal["v2", "v3"] = Field("v2", description="v2: a queue of negatives; v3: those of the batch")
    temperature: float = Field(
        0.2, gt=0, le=2, description="of the softmax over similarities; v3's code has 1.0 for ResNets"
    )
    momentum: float = Field(0.9, ge=0, le=1, description="of the key encoder; v3: at the start, it rises to 1")
    queue: int = Field(QUEUE, ge=1, le=1_000_000, description="v2: keys kept as negatives, any number")
    projection: int = Field(128, ge=8, le=8192, description="outputs of projector and predictor")
    hidden: int = Field(0, ge=0, le=16384, description="hidden units of both; 0: twice the encoder's features")

    @model_validator(mode="wrap")
    @classmethod
    def _v3_has_no_queue(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # What has no effect is one trial, however it is written.
        config = handler(values)
        return config if config.variant == "v2" else config.model_copy(update={"queue": QUEUE})


class MoCo(Method):
    """Contrastive learning with a momentum encoder for the keys."""

    Config = MoCoConfig
    summary = "contrast a view with a momentum encoder's keys: queue (MoCo v2) or batch (v3)"
    config: MoCoConfig
    queue: Tensor
    oldest: Tensor

    def __init__(self, config: MoCoConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        v3 = config.variant == "v3"
        hidden, width = config.hidden or 2 * encoder.dim, config.projection
        self.projector = mlp(encoder.dim, hidden, width, norm_last=v3, affine_last=not v3)
        self.predictor = mlp(width, hidden, width) if v3 else nn.Identity()
        self.key = twin(nn.Sequential(encoder, self.projector))
        self._fresh: Tensor | None = None  # keys of the step under way
        if not v3:
            self.register_buffer("queue", F.normalize(torch.randn(config.queue, width), dim=1))
            self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the key encoder of v2 always uses its running statistics."""
        super().train(mode)
        if self.config.variant == "v2":
            self.key.eval()
        return self

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """Two views `[B,3,size,size]` in 0..1 of one distribution."""
        return augment(images, draw, size, self.config), augment(images, draw, size, self.config)

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """InfoNCE of this worker's queries."""
        return {"loss": self._queue_loss(*views) if self.config.variant == "v2" else self._batch_loss(views)}

    def _queue_loss(self, first: Tensor, second: Tensor) -> Tensor:
        query = self.projector(self.encoder(first)).float()
        with torch.no_grad():
            key = self.key(second).float()
        with torch.autocast(query.device.type, enabled=False):
            self._fresh = gather(F.normalize(key, dim=1))
            return queue_info_nce(query, key, self.queue, self.config.temperature)

    def _batch_loss(self, views: Views) -> Tensor:
        first, second = (self.predictor(self.projector(self.encoder(view))).float() for view in views)
        with torch.no_grad():
            keys = [self.key(view).float() for view in views]
        temperature = self.config.temperature
        with torch.autocast(first.device.type, enabled=False):
            return batch_info_nce(first, keys[1], temperature) + batch_info_nce(second, keys[0], temperature)

    def after_step(self, progress: float) -> None:
        """Move the key encoder; put this step's keys of all workers into the queue."""
        v2, momentum = self.config.variant == "v2", self.config.momentum
        online = nn.Sequential(self.encoder, self.projector)
        follow(self.key, online, momentum if v2 else cosine_momentum(momentum, progress), buffers=v2)
        if self._fresh is not None:
            enqueue(self.queue, self.oldest, self._fresh)
            self._fresh = None


def queue_info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE (equation 1 of v1): each query `[B,D]` must tell its key `[B,D]` from the queue's unit rows `[K,D]`.

    The mean over rows; no gradient flows into keys and queue.
    """
    query, key = F.normalize(query, dim=1), F.normalize(key.detach(), dim=1)
    positive = (query * key).sum(1, keepdim=True)
    logits = torch.cat((positive, query @ queue.T), dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))


def batch_info_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """2 x temperature x InfoNCE (algorithm 1 of v3): each query `[B,D]` must find its key among those of all workers.

    The mean over this worker's rows; no gradient flows into keys.
    """
    keys = gather(F.normalize(key.detach(), dim=1))
    logits = F.normalize(query, dim=1) @ keys.T / temperature
    own = torch.arange(len(query), device=query.device) + rank() * len(query)
    return 2 * temperature * F.cross_entropy(logits, own)


@torch.no_grad()
def enqueue(queue: Tensor, oldest: Tensor, keys: Tensor) -> None:
    """Replace the oldest rows of `queue` `[K,D]` by `keys` `[n,D]`, first in first out, in place.

    `oldest`: int64 scalar, the row to be replaced next; it wraps round at K, so that K need not be a multiple of n.
    Of more than K keys the last K are kept.
    """
    size = len(queue)
    kept = keys[-size:]
    start = oldest + len(keys) - len(kept)
    rows = (start + torch.arange(len(kept), device=queue.device)) % size
    queue[rows] = kept
    oldest.copy_((start + len(kept)) % size)
