"""Colorization: tell the colours of a picture from its lightness.

Zhang, Isola and Efros 2016, "Colorful Image Colorization" (arXiv 1603.08511): the ab plane in cells, each pixel
soft-encoded over its nearest ones, rare colours weighted up (equations 2 to 4), colours read back as the annealed mean
(equation 5). The simple mode regresses ab (equation 1). The decoder is a hypercolumn (Larsson et al. 2017, arXiv
1703.04044, section 3): every stage tells, at the resolution of the target.

The encoder sees gray pictures only, L / 100 in all three channels, and by default it does so downstream too: one that
was never shown colours reads them worse than an untrained one does.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, ModelWrapValidatorHandler, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import make_grid

from bench.augmentation import Crop
from bench.distributed import average
from bench.draw import Draw
from bench.encoders import Encoder
from bench.images import ImageBatch
from bench.lab import bins, lab_to_srgb, lightness, srgb_to_lab
from bench.method import Method, Shown, Views
from bench.records import Record
from bench.views import centre_crop, crop, random_resized_crop

SCALE = 110.0  # ab are divided by it in the regression
TEMPERATURE = 0.38  # of the annealed mean (section 2.3); it shapes pictures and figures, not the training
SHOWN = 8  # pictures drawn
BINS_ONLY = {"bin", "neighbours", "sigma", "uniform"}


class ColorizationCrop(Crop):
    """Random resized crop of the picture that is told."""

    low: float = Field(0.3, gt=0, le=1, description="smallest share of the image's area")


class ColorizationConfig(Record):
    """Colorization's hyperparameters; those of the bins have no effect on the regression."""

    crop: ColorizationCrop = ColorizationCrop()
    mode: Literal["bins", "regression"] = Field("bins", description="classes of ab cells, or ab itself")
    target: int = Field(4, ge=1, le=32, description="pixels of the view for one pixel of the target, each way")
    hidden: int = Field(64, ge=4, le=4096, description="channels of the hypercolumn")
    downstream: Literal["lightness", "colours"] = Field(
        "lightness", description="what the encoder sees when it is used: gray as in training, or the colours"
    )
    gray: float = Field(5.0, ge=0, le=100, description="pictures whose |a| and |b| stay below it do not count")
    bin: int = Field(10, ge=5, le=40, description="side of the ab cells")
    neighbours: int = Field(10, ge=1, le=16, description="cells over which a colour is encoded; the paper says 5")
    sigma: float = Field(5.0, gt=0, le=100, description="deviation of that encoding, in units of ab")
    uniform: float = Field(0.5, gt=0, le=1, description="lambda: share of 1/Q in the class weights; 1: no rebalancing")

    @model_validator(mode="wrap")
    @classmethod
    def _regression_has_no_bins(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        config = handler(values)
        return config if config.mode == "bins" else handler(config.model_dump(exclude=BINS_ONLY))


class Colorization(Method):
    """Predict ab, in cells or as numbers, from L."""

    Config = ColorizationConfig
    summary = "tell colours from lightness: rebalanced ab cells (Zhang 2016) or Lab regression"
    config: ColorizationConfig

    def __init__(self, config: ColorizationConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        if config.downstream == "lightness":
            encoder.see = gray_picture  # in `forward`; `maps`, which training calls, is given gray pictures
        self.codec = SoftBins(config.bin, config.neighbours, config.sigma) if config.mode == "bins" else None
        classes = len(self.codec.centres) if self.codec else 2
        self.decoder = Hypercolumn(encoder.widths, config.hidden, classes)
        # Sum over the batches so far of their mean encoded colours: the data's distribution, smoothed.
        self.register_buffer("seen", torch.zeros(classes if self.codec else 0))
        self.seen: Tensor

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """Gray pictures `[B,3,size,size]` in 0..1 and their ab `[B,2,T,T]`, T the side of the target."""
        low, high = self.config.crop.low, self.config.crop.high
        boxes = random_resized_crop(images.aspect, draw, (low, high))
        return self._split(crop(images, boxes, size, flip=draw.chance(self.config.crop.flip)))

    def shown(self, views: Views, count: int) -> list[Shown]:
        """What the encoder sees, and the colours that it is to tell: of each pixel those of its nearest cell."""
        gray, ab = views
        name = "the colours to tell"
        if self.codec:
            ab, name = self.codec.centres[self.codec(ab)[0][:, 0]].movedim(-1, 1), f"{name}, in cells"
        size = gray.shape[2:]
        told = lab_to_srgb(torch.cat((100 * gray[:, :1], F.interpolate(ab, size=size)), dim=1))
        return [Shown("what the encoder sees", gray.float()), Shown(name, told)]

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """The mean over all pixels, those of near-gray pictures as zero."""
        gray, ab = views
        out = self._predict(gray, ab.shape[2])
        with torch.autocast(gray.device.type, enabled=False):
            mask = colourful(ab, self.config.gray)
            losses = self._bins_losses(out, ab, mask) if self.codec else self._regression_losses(out, ab, mask)
        return losses | {"colourful": mask.mean()}

    def separable(self) -> bool:
        """In the regression; cells are weighted by how often they were seen."""
        return self.codec is None

    def _bins_losses(self, logits: Tensor, ab: Tensor, mask: Tensor) -> dict[str, Tensor]:
        assert self.codec is not None
        index, share = self.codec(ab)
        if self.training:
            self._count(index, share * mask)
        weight = class_weights(self.seen, self.config.uniform)[index[:, 0]]
        cross = soft_cross_entropy(logits, index, share) * mask[:, 0]
        return {"loss": (cross * weight).mean(), "unweighted": cross.detach().mean()}

    def _regression_losses(self, out: Tensor, ab: Tensor, mask: Tensor) -> dict[str, Tensor]:
        target = ab / SCALE
        loss = 0.5 * ((out - target).square() * mask).sum(1).mean()  # equation 1
        return {"loss": loss, "loss_of_gray": 0.5 * (target.square() * mask).sum(1).mean()}

    @torch.no_grad()
    def _count(self, index: Tensor, share: Tensor) -> None:
        """Add the mean encoded colour of the whole batch to `seen`, the same on all workers."""
        mass = torch.zeros_like(self.seen).index_add_(0, index.flatten(), share.flatten())
        self.seen += average(mass / index[:, 0].numel())

    def _predict(self, gray: Tensor, side: int) -> Tensor:
        """Logits `[B,Q,side,side]` or ab / SCALE `[B,2,side,side]`, in full precision."""
        out: Tensor = self.decoder(self.encoder.maps(gray), side)
        return out.float()

    def _split(self, view: Tensor) -> Views:
        """The gray picture of RGB views, and the ab of their mean colours over each pixel of the target."""
        side = max(1, view.shape[2] // self.config.target)
        small = F.adaptive_avg_pool2d(view, side)
        return gray_picture(view), srgb_to_lab(small)[:, 1:].contiguous()

    def validation(self, images: ImageBatch, size: int) -> Mapping[str, Tensor]:
        """RMSE of ab (in its units), beside that of predicting gray, and the share of pixels in the right cell."""
        gray, ab = self._split(crop(images, centre_crop(images.aspect), size))
        out = self._predict(gray, ab.shape[2])
        figures = {"ab_rmse": _rmse(self._colours(out) - ab), "ab_rmse_of_gray": _rmse(ab)}
        if self.codec:
            nearest = self.codec(ab)[0][:, 0]
            commonest = torch.bincount(nearest.flatten()).max() / nearest.numel()
            right = (out.argmax(1) == nearest).float().mean()
            figures |= {"bin_accuracy": right, "bin_accuracy_of_commonest": commonest}
        return figures

    def pictures(self, images: ImageBatch, size: int) -> Mapping[str, Tensor]:
        """Three rows: what the encoder sees, the colours it tells, the original."""
        some = ImageBatch(images.pixels[:SHOWN], images.aspect[:SHOWN])
        original = crop(some, centre_crop(some.aspect), size)
        gray, ab = self._split(original)
        told = F.interpolate(self._colours(self._predict(gray, ab.shape[2])), size=(size, size), mode="bilinear")
        coloured = lab_to_srgb(torch.cat((lightness(original), told), dim=1))
        rows = torch.cat((gray, coloured, original))
        return {"gray_coloured_original": make_grid(rows, nrow=len(original), padding=2)}

    def _colours(self, out: Tensor) -> Tensor:
        """ab `[B,2,T,T]` of what the decoder says."""
        return annealed_mean(out, self.codec.centres, TEMPERATURE) if self.codec else out * SCALE


class Hypercolumn(nn.Module):
    """A 1x1 convolution of every stage's map, resized and summed, ReLU, and a 1x1 convolution to the classes."""

    def __init__(self, widths: tuple[int, ...], hidden: int, classes: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(width, hidden, 1) for width in widths)
        self.tell = nn.Conv2d(hidden, classes, 1)

    def forward(self, maps: list[Tensor], side: int) -> Tensor:
        """Return `[B,classes,side,side]` of maps `[B,C,h,w]`."""
        first, *rest = (_at(side, project, x) for project, x in zip(self.project, maps, strict=True))
        out: Tensor = self.tell(F.relu(sum(rest, first)))
        return out


def _at(side: int, project: nn.Module, x: Tensor) -> Tensor:
    """`project` of `x` at side x side; both are linear, so that the cheaper one comes first."""
    if x.shape[2] > side:
        return project(F.adaptive_avg_pool2d(x, side))  # type: ignore[no-any-return]
    x = project(x)
    return x if x.shape[2] == side else F.interpolate(x, size=(side, side), mode="bilinear")


class SoftBins(nn.Module):
    """Encode colours over the nearest of the ab cells (section 2.2: soft encoding).

    The search is among a few candidates of the cell that a colour lies in, exact within the cell: with d the distance
    from its centre to the last neighbour and r half its diagonal, no neighbour is farther from the centre than d + 2r.
    """

    def __init__(self, grid: int, neighbours: int, sigma: float) -> None:
        super().__init__()
        centres = bins(grid)
        self.grid, self.neighbours, self.sigma = grid, min(neighbours, len(centres)), sigma
        distance, order = torch.cdist(centres, centres).sort(dim=1, stable=True)
        reach = distance[:, self.neighbours - 1 : self.neighbours] + 2**0.5 * grid + 1e-3
        first = centres.min(0).values
        rows, columns = ((centres.max(0).values - first) / grid).long() + 1
        lattice = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)) * grid + first
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("candidates", order[:, : (distance <= reach).sum(1).max()], persistent=False)
        self.register_buffer("cell", torch.cdist(lattice, centres).argmin(1).view(rows, columns), persistent=False)
        self.centres: Tensor
        self.candidates: Tensor
        self.cell: Tensor

    @torch.no_grad()
    def forward(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cells `[B,K,H,W]` nearest to ab `[B,2,H,W]`, nearest first, and their shares (sum 1)."""
        colours = ab.permute(0, 2, 3, 1)
        place = ((colours - self.centres.min(0).values) / self.grid).round().long()
        row, column = (part.clamp(0, most - 1) for part, most in zip(place.unbind(3), self.cell.shape, strict=True))
        near = self.candidates[self.cell[row, column]]
        square = (colours.unsqueeze(3) - self.centres[near]).square().sum(4)
        least, which = square.topk(self.neighbours, dim=3, largest=False)
        share = torch.softmax(least / (-2 * self.sigma**2), dim=3)
        return near.gather(3, which).permute(0, 3, 1, 2), share.permute(0, 3, 1, 2)


def gray_picture(images: Tensor) -> Tensor:
    """L / 100 of RGB `[B,3,H,W]` in 0..1 in all three channels, in 0..1."""
    return lightness(images).div(100).clamp(0, 1).expand_as(images).contiguous()


def soft_cross_entropy(logits: Tensor, index: Tensor, share: Tensor) -> Tensor:
    """Cross entropy `[B,H,W]` of logits `[B,Q,H,W]` with shares `[B,K,H,W]` (sum 1) of the classes `index`."""
    return logits.logsumexp(1) - (share * logits.gather(1, index)).sum(1)


def class_weights(seen: Tensor, uniform: float) -> Tensor:
    """Weights `[Q]`: 1 / ((1 - uniform) p + uniform / Q), scaled to a mean of 1 under p (equation 4).

    `seen`: how often each class was met, in any unit; p is its share. Where nothing was met all weights are 1.
    """
    total = seen.sum()
    share = torch.where(total > 0, seen / total.clamp(min=1e-12), 1 / len(seen))
    weight = 1 / ((1 - uniform) * share + uniform / len(seen))
    return weight / (share * weight).sum()


def annealed_mean(logits: Tensor, centres: Tensor, temperature: float) -> Tensor:
    """Mean `[B,2,H,W]` of the `centres` `[Q,2]` under softmax(logits / temperature), `[B,Q,H,W]` (equation 5)."""
    return torch.einsum("bqhw,qc->bchw", torch.softmax(logits / temperature, dim=1), centres)


def colourful(ab: Tensor, threshold: float) -> Tensor:
    """`[B,1,1,1]`: 1 for pictures of which a pixel has |a| or |b| of at least `threshold`, else 0."""
    return (ab.abs().amax((1, 2, 3), keepdim=True) >= threshold).float()


def _rmse(error: Tensor) -> Tensor:
    return error.square().mean().sqrt()
