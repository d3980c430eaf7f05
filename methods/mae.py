"""MAE: an encoder that sees a quarter of an image's patches, and a light decoder that restores the others.

He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377): masking, encoder and decoder
section 3, normalised pixels as targets section 3 ("Reconstruction target"), mask ratio figure 5, settings appendix A.1.
The augmentation is a random crop and a flip only: colour jitter makes it worse (table 1e).
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bench.augmentation import Crop
from bench.draw import Draw
from bench.encoders import ENCODERS, Encoder, VisionTransformer, sine_positions
from bench.errors import BadInput
from bench.images import ImageBatch
from bench.method import Method, Shown, Views
from bench.records import Record
from bench.views import centre_crop, crop, random_resized_crop

FIXED = 0  # the seed of the masks of validation images


class Decoder(Record):
    """What restores the patches; it is thrown away after pretraining."""

    width: int = Field(64, ge=32, le=1024, multiple_of=32, description="channels, 32 to each head")
    depth: int = Field(2, ge=1, le=12, description="transformer blocks")


class MAECrop(Crop):
    """Random resized crop of larger parts of the image (appendix A.1)."""

    low: float = Field(0.2, gt=0, le=1, description="smallest share of the image's area")


class MAEConfig(Record):
    """MAE's hyperparameters."""

    crop: MAECrop = MAECrop()
    mask: float = Field(0.75, ge=0.05, le=0.95, description="share of the patches that the encoder does not see")
    normalise: bool = Field(True, description="restore each patch's pixels less their mean, over their deviation")
    decoder: Decoder = Decoder()


class MAE(Method):
    """Masked autoencoding of patches, on a ViT."""

    Config = MAEConfig
    summary = "restore masked patches from the few that a ViT sees"
    config: MAEConfig
    encoder: VisionTransformer

    def __init__(self, config: MAEConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        if not isinstance(encoder, VisionTransformer):
            raise BadInput("mae needs an encoder that is a bench.encoders.VisionTransformer")
        width = config.decoder.width
        self.narrow = nn.Linear(encoder.dim, width)
        self.unseen = nn.Parameter(0.02 * torch.randn(width))
        self.blocks = nn.Sequential(*(_block(width) for _ in range(config.decoder.depth)), nn.LayerNorm(width))
        self.pixels = nn.Linear(width, 3 * encoder.patch**2)

    @classmethod
    def check(cls, config: MAEConfig, backbone: str) -> None:
        """Raise BadInput for an encoder that is no transformer."""
        fitting = [name for name, card in ENCODERS.items() if card.transformer]
        if backbone not in fitting:
            raise BadInput(f"pretrain.backbone {backbone!r}: mae masks patches and needs {' or '.join(fitting)}")

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """One random crop `[B,3,size,size]` in 0..1 and a random order `[B,N]` of its N patches: the first are seen."""
        settings = self.config.crop
        boxes = random_resized_crop(images.aspect, draw, (settings.low, settings.high))
        view = crop(images, boxes, size, flip=draw.chance(settings.flip))
        return view, draw.permutation((size // self.encoder.patch) ** 2)

    def shown(self, views: Views, count: int) -> list[Shown]:
        """The whole view, and what of it the encoder sees."""
        view, order = views
        return [Shown("the view", view.float()), Shown("what the encoder sees of it", self._masked(view, order))]

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """The mean squared error over the masked patches of this worker's images (section 3)."""
        images, order = views
        return {"loss": masked_error(self.restore(images, order), self.targets(images), self._hidden(order))}

    def separable(self) -> bool:
        """All images have as many masked patches: the mean over these is one over images."""
        return True

    def encode(self, images: Tensor, order: Tensor) -> Tensor:
        """Return the latent tokens `[B,V,dim]` of the V patches that come first in `order` `[B,N]`."""
        seen = visible(order.shape[1], self.config.mask)
        return self.encoder.blocks(take(self.encoder.embed(images), order[:, :seen]))[-1]

    def restore(self, images: Tensor, order: Tensor) -> Tensor:
        """Return the decoder's patches `[B,N,3*patch*patch]`, of which only the first in `order` were seen."""
        latent = self.narrow(self.encode(images, order))
        unseen = self.unseen.to(latent.dtype).expand(len(latent), order.shape[1] - latent.shape[1], -1)
        tokens = take(torch.cat((latent, unseen), dim=1), order.argsort(1))
        side = images.shape[2] // self.encoder.patch
        positions = sine_positions(side, order.shape[1] // side, tokens.shape[2], tokens.device)
        restored: Tensor = self.pixels(self.blocks(tokens + positions))
        return restored

    def targets(self, images: Tensor) -> Tensor:
        """What is to be restored, `[B,N,3*patch*patch]`: pixels as the encoder normalises them, or each patch's own."""
        patches = patchify((images - self.encoder.mean) / self.encoder.std, self.encoder.patch)
        if not self.config.normalise:
            return patches
        mean, deviation = _moments(patches)
        return (patches - mean) / deviation

    def validation(self, images: ImageBatch, size: int) -> Mapping[str, Tensor]:
        """The loss on validation images, always with the same masks."""
        return {"restoration": self.losses(self._fixed(images, size), 0.0)["loss"]}

    def pictures(self, images: ImageBatch, size: int) -> Mapping[str, Tensor]:
        """Rows of what the encoder saw, what came of it and the originals, an image to each column."""
        from torchvision.utils import make_grid

        view, order = self._fixed(images, size)
        patch, hidden = self.encoder.patch, self._hidden(order)
        true = patchify((view - self.encoder.mean) / self.encoder.std, patch)
        drawn = self.restore(view, order).float()
        if self.config.normalise:  # the decoder does not give means and deviations: the true ones show its part
            mean, deviation = _moments(true)
            drawn = drawn * deviation + mean
        drawn = unpatchify(torch.where(hidden[:, :, None], drawn, true), patch, size)
        rows = torch.cat((self._masked(view, order), drawn * self.encoder.std + self.encoder.mean, view)).clamp(0, 1)
        return {"masked_restored_original": make_grid(rows, nrow=len(images))}

    def _fixed(self, images: ImageBatch, size: int) -> tuple[Tensor, Tensor]:
        view = crop(images, centre_crop(images.aspect), size)
        draw = Draw(FIXED, len(images), device=images.device)
        return view, draw.permutation((size // self.encoder.patch) ** 2)

    def _masked(self, view: Tensor, order: Tensor) -> Tensor:
        """Views `[B,3,S,S]` with gray in place of the masked patches."""
        patches = patchify(view.float(), self.encoder.patch).masked_fill(self._hidden(order)[:, :, None], 0.5)
        return unpatchify(patches, self.encoder.patch, view.shape[2])

    def _hidden(self, order: Tensor) -> Tensor:
        """Booleans `[B,N]` in the order of the patches: which are masked."""
        return order.argsort(1) >= visible(order.shape[1], self.config.mask)


def _block(width: int) -> nn.Module:
    # Blocks as the encoder's: norms first, no dropout.
    return nn.TransformerEncoderLayer(
        width, width // 32, 4 * width, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True
    )


def _moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation `[B,N,1]` of the pixels of each patch, all channels together."""
    return patches.mean(2, keepdim=True), (patches.var(2, keepdim=True) + 1e-6).sqrt()


def visible(patches: int, mask: float) -> int:
    """How many of `patches` the encoder sees: at least one, and never all."""
    return min(max(1, round(patches * (1 - mask))), patches - 1)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Return `[B,V,D]`: of each image's tokens `[B,N,D]` those at `index` `[B,V]`, in that order."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut `[B,C,H,W]` into patches `[B,N,C*patch*patch]`, row by row."""
    return F.unfold(images, patch, stride=patch).mT


def unpatchify(patches: Tensor, patch: int, height: int) -> Tensor:
    """Put patches `[B,N,C*patch*patch]` together to `[B,C,height,W]`."""
    width = patches.shape[1] * patch * patch // height
    return F.fold(patches.mT, (height, width), patch, stride=patch)


def masked_error(restored: Tensor, targets: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean squared error of patches `[B,N,P]` over those that are `hidden` (`[B,N]` booleans)."""
    with torch.autocast(restored.device.type, enabled=False):
        error = (restored.float() - targets).square().mean(2)
        return (error * hidden).sum() / hidden.sum()
