"""SimCLR: two random views of one image must find each other among all others of the batch.

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations"
(arXiv 2002.05709): views section 3 and appendix A, projection head section 4.2, NT-Xent equation 1.

The changes of one view are those of arXiv 2107.13973, each a switch of its own: a random gamma curve (exponent 0.5..2.5
there), coarse dropout, swapped patches, a random jigsaw, a jigsaw within the neighbourhood, and a crop of the
most salient region. What is switched on is applied in this order.

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
from bench.patches import coarse_dropout, shuffle_locally, shuffle_tiles, swap_patches
from bench.records import Record
from bench.saliency import salient_crop
from bench.views import ATTEMPTS


class Change(Record):
    """A change of views that can be switched on and off."""

    enabled: bool = Field(False, description="whether any view is changed so")
    views: Literal["one", "both"] = Field("one", description="the second view only, or both, each at random by itself")

    @model_validator(mode="wrap")
    @classmethod
    def _off_is_one_thing(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # What is off has no parameters: all ways to write "no gamma" are one trial.
        change = handler(values)
        return change if change.enabled else handler({"enabled": False})

    def share(self, view: int) -> float:
        """The share of samples whose `view` (0 or 1) is changed."""
        return float(self.enabled and (view == 1 or self.views == "both"))


class Sometimes(Change):
    """A change of some samples only."""

    probability: float = Field(1.0, gt=0, le=1, description="share of samples that are changed; none: switch it off")

    def share(self, view: int) -> float:
        """The share of samples whose `view` (0 or 1) is changed."""
        return self.probability * super().share(view)


class Gamma(Change):
    """Random gamma: pixel ** g with g uniform in low..high."""

    enabled: bool = Field(True, description="whether any view passes through a gamma curve")
    low: float = Field(0.5, gt=0, le=1, description="smallest exponent (brighter)")
    high: float = Field(2.5, ge=1, le=5, description="largest exponent (darker)")


class CoarseDropout(Sometimes):
    """Square holes of one value (DeVries and Taylor 2017)."""

    holes: int = Field(8, ge=1, le=64, description="most holes in a view; their count is uniform in 1..holes")
    low: float = Field(0.1, gt=0, le=1, description="smallest side of a hole, share of the view's")
    high: float = Field(0.25, gt=0, le=1, description="largest side of a hole, share of the view's")
    fill: float = Field(0.0, ge=0, le=1, description="value in the holes; 0: black")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.low, self.high)
        return self


class PatchSwap(Sometimes):
    """Pairs of square patches change places."""

    pairs: int = Field(2, ge=1, le=32, description="pairs of patches")
    size: float = Field(0.25, ge=0.05, le=0.5, description="side of a patch, share of the view's")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        most = int(1 / self.size + 1e-9) ** 2 // 2
        if self.pairs > most:
            raise ValueError(f"pairs ({self.pairs}) of patches of size {self.size} do not fit; at most {most}")
        return self


class Jigsaw(Sometimes):
    """The view cut into grid x grid tiles, in a random order."""

    grid: int = Field(3, ge=2, le=16, description="tiles along each side")


class LocalJigsaw(Sometimes):
    """Tiles shuffled within their neighbourhood (Chen et al. 2019, DCL, section 3.1: grid 7, reach 2)."""

    grid: int = Field(7, ge=2, le=16, description="tiles along each side")
    reach: int = Field(2, ge=1, le=15, description="k: a tile moves less than 2k places along each side")


class SmartCrop(Change):
    """The most salient of some random squares instead of the random crop."""

    low: float = Field(0.2, gt=0, le=1, description="smallest share of the image's area")
    high: float = Field(1.0, gt=0, le=1, description="largest share of the image's area")
    candidates: int = Field(16, ge=1, le=64, description="squares of which the most salient one is taken")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.low, self.high)
        return self


def _check_order(low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"low ({low}) must not exceed high ({high})")


class SimCLRConfig(Augmentation):
    """SimCLR's hyperparameters."""

    temperature: float = Field(0.2, gt=0, le=2, description="of the softmax over similarities")
    projection: int = Field(128, ge=8, le=8192, description="outputs of the projection head")
    hidden: int = Field(0, ge=0, le=8192, description="its hidden units; 0: as many as the encoder has features")
    gamma: Gamma = Gamma()
    coarse_dropout: CoarseDropout = CoarseDropout()
    patch_swap: PatchSwap = PatchSwap()
    jigsaw: Jigsaw = Jigsaw()
    local_jigsaw: LocalJigsaw = LocalJigsaw()
    smart_crop: SmartCrop = SmartCrop()


class SimCLR(Method):
    """Contrastive learning with NT-Xent over the views of all workers."""

    Config = SimCLRConfig
    summary = "contrast two random views of an image (NT-Xent), with the study's changes of one view"
    version = 2
    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.head = mlp(encoder.dim, config.hidden or encoder.dim, config.projection, norm_last=True)

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """Two views `[B,3,size,size]` in 0..1; what is switched on changes the second one, or both."""
        first, second = self._cropped(images, draw, size, 0), self._cropped(images, draw, size, 1)
        # All changes come after both crops, so that configurations do not differ by the random numbers of these.
        second = self._changed(second, draw, 1)
        return self._changed(first, draw, 0), second

    def _cropped(self, images: ImageBatch, draw: Draw, size: int, view: int) -> Tensor:
        smart = self.config.smart_crop
        if not smart.share(view):
            return augment(images, draw, size, self.config)
        boxes = salient_crop(images, draw, (smart.low, smart.high), smart.candidates)
        draw.unit(2 * ATTEMPTS)  # with the two of the salient crop as many as the random crop takes
        return augment(images, draw, size, self.config, boxes)

    def _changed(self, x: Tensor, draw: Draw, view: int) -> Tensor:
        """Apply each change; one that is off takes its random numbers too."""
        gamma, holes, swap = self.config.gamma, self.config.coarse_dropout, self.config.patch_swap
        jigsaw, local = self.config.jigsaw, self.config.local_jigsaw
        x = colour.gamma(x, draw, gamma.low, gamma.high, gamma.share(view), inplace=True)
        x = coarse_dropout(x, draw, holes.holes, (holes.low, holes.high), holes.fill, holes.share(view))
        x = swap_patches(x, draw, swap.pairs, swap.size, swap.share(view))
        x = shuffle_tiles(x, draw, jigsaw.grid, jigsaw.share(view))
        return shuffle_locally(x, draw, local.grid, local.reach, local.share(view))

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
