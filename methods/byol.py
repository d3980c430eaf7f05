"""BYOL: predict a momentum network's embedding of the other view.

Grill et al. 2020, "Bootstrap Your Own Latent" (arXiv 2006.07733): loss equation 2, heads and momentum section 3.3,
views appendix B. The views differ: the first is always blurred and never solarised, the second is blurred with
probability 0.1 and solarised with 0.2. Here blur is off by default because views are small.
The target normalises by its own batches, as in the authors' code; its weights are moved and its statistics are not.

The base momentum goes with the length of the run: 0.996 for the paper's 1000 epochs, 0.99 for its 300 and 0.98 or less
for runs of some hundred steps, in which the target would otherwise stay a random network.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bench import colour
from bench.augmentation import Augmentation, Blur, augment
from bench.distributed import gather
from bench.draw import Draw
from bench.encoders import Encoder
from bench.heads import cosine_momentum, follow, mlp, spread, twin
from bench.images import ImageBatch
from bench.method import Method, Views


class BYOLConfig(Augmentation):
    """BYOL's hyperparameters; `blur` is that of the first view."""

    second_blur: float = Field(0.0, ge=0, le=1, description="probability of blur in the second view; 0.1 in the paper")
    solarize: float = Field(0.2, ge=0, le=1, description="probability that the second view is solarised")
    projection: int = Field(256, ge=8, le=8192, description="outputs of projector and predictor")
    hidden: int = Field(0, ge=0, le=16384, description="hidden units of both; 0: twice the encoder's features")
    momentum: float = Field(0.98, ge=0, le=1, description="of the target at the start; rises to 1 along a cosine")


class BYOL(Method):
    """An online network that predicts its own moving average."""

    Config = BYOLConfig
    summary = "predict a momentum encoder's embedding of the other view (BYOL)"
    config: BYOLConfig

    def __init__(self, config: BYOLConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        hidden = config.hidden or 2 * encoder.dim
        self.projector = mlp(encoder.dim, hidden, config.projection, bias_last=False)
        self.predictor = mlp(config.projection, hidden, config.projection, bias_last=False)
        self.target = twin(nn.Sequential(encoder, self.projector))

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """Two views `[B,3,size,size]` in 0..1; only the second may be solarised."""
        config = self.config
        first = augment(images, draw, size, config)
        other = config.model_copy(update={"blur": Blur(probability=config.second_blur)})
        second = augment(images, draw, size, other)
        return first, colour.solarize(second, draw, config.solarize, inplace=True)

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """The symmetric loss, and the spread of all workers' online embeddings."""
        embeddings = [self.projector(self.encoder(view)) for view in views]
        first, second = (self.predictor(embedding).float() for embedding in embeddings)
        with torch.no_grad():
            targets = [self.target(view).float() for view in views]
        with torch.autocast(first.device.type, enabled=False):
            loss = squared_distance(first, targets[1]) + squared_distance(second, targets[0])
            return {"loss": loss, "spread": spread(gather(embeddings[0].detach().float()))}

    def after_step(self, progress: float) -> None:
        """Move the target towards the online network."""
        online = nn.Sequential(self.encoder, self.projector)
        follow(self.target, online, cosine_momentum(self.config.momentum, progress))


def squared_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean of ||p/|p| - z/|z| ||^2 = 2 - 2 cos over rows `[B,D]`, 0..4 (equation 2); no gradient into `target`."""
    return 2 - 2 * F.cosine_similarity(prediction, target.detach(), dim=1).mean()
