"""SRGAN: restore an image from a sixteenth of its pixels, so well that a discriminator takes it for real.

Ledig et al. 2017, "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network" (arXiv
1609.04802): networks figure 4, content loss section 2.2.1, adversarial loss equation 6, training section 3.2. As a
pretext task with either network as the encoder, and with the last blocks removed: arXiv 2107.13973.

The paper trains 16 blocks of 64 channels with Adam at 1e-4: 1e6 steps on pixels, then 2e5 against a discriminator of 64
channels. The defaults here are lighter: a CPU core trains them at 64 px.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, ModelWrapValidatorHandler, model_validator
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from bench import superresolution as sr
from bench.augmentation import Crop
from bench.draw import Draw
from bench.encoders import OWN, Encoder
from bench.errors import BadInput
from bench.images import ImageBatch
from bench.method import Method, Shown, Views
from bench.records import Record
from bench.views import centre_crop, crop, random_resized_crop
from bench.weights import imagenet_weights, weights_file

# Section 3.2: VGG features are scaled by 1/12.75, so that their loss is of the size of the pixels'.
CONTENT_SCALE = 0.006
GAP = 2  # white pixels between pictures


class HighCrop(Crop):
    """The high-resolution crop. Small ones are enlarged to the view and have no detail left to restore."""

    low: float = Field(0.5, gt=0, le=1, description="smallest share of the image's area")


class SRGANConfig(Record):
    """SRGAN's hyperparameters. What has no effect is set to one value, so that it makes no second trial."""

    encoder: Literal["generator", "discriminator"] = Field("generator", description="the network judged downstream")
    blocks: int = Field(4, ge=1, le=64, description="residual blocks of the generator; 16 in the paper")
    channels: int = Field(32, ge=4, le=512, description="width of the generator; 64 in the paper")
    kernel: Literal[3, 5, 7, 9] = Field(3, description="side of the generator's last convolution; 9 in the paper")
    removed: int = Field(
        0, ge=0, le=63, description="last residual blocks left out of the encoder; 0, 2, 8 in the study"
    )
    judge_channels: int = Field(16, ge=2, le=256, description="first width of the discriminator; 64 in the paper")
    pixel_share: float = Field(0.5, ge=0, le=1, description="share of training on pixels alone, before the GAN stage")
    content: Literal["auto", "vgg19", "mse"] = Field(
        "auto",
        description="content loss of the GAN stage; auto: VGG-19 features if its weights are at hand, else pixels",
    )
    adversarial: float = Field(1e-3, ge=0, le=10, description="weight of the adversarial loss in the GAN stage")
    crop: HighCrop = HighCrop()

    @model_validator(mode="wrap")
    @classmethod
    def _settle(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        config = handler(values)
        settled = config.model_dump() | config._settled()
        return config if settled == config.model_dump() else handler(settled)

    def _settled(self) -> dict[str, Any]:
        """The fields that follow from the others. Raises ValueError where they contradict each other."""
        settled: dict[str, Any] = {}
        if self.encoder == "discriminator":
            settled["removed"] = 0
            if self.pixel_share == 1:
                raise ValueError("pixel_share 1 never trains the discriminator; encoder = 'generator' goes with it")
        elif self.removed >= self.blocks:
            raise ValueError(f"removed ({self.removed}) must be less than blocks ({self.blocks})")
        if self.pixel_share == 1:
            settled |= {"content": "mse", "adversarial": 0.0}
        elif self.content == "auto":
            at_hand = weights_file(imagenet_weights(*sr.CONTENT_WEIGHTS)).is_file()
            settled["content"] = "vgg19" if at_hand else "mse"
        return settled


class SRGAN(Method):
    """x4 super-resolution: first by pixels, then by content and against a discriminator."""

    Config = SRGANConfig
    summary = "restore images from a x4 reduction, against a discriminator (SRGAN)"
    backbone = OWN
    config: SRGANConfig

    def __init__(self, config: SRGANConfig, encoder: Encoder) -> None:
        generator = sr.generator_encoder(config.channels, config.blocks - config.removed)
        discriminator = sr.discriminator_encoder(config.judge_channels)
        mine = config.encoder == "generator"
        super().__init__(config, generator if mine else discriminator)
        self.encoder.name = encoder.name
        self.other = discriminator if mine else generator
        self.restorer = sr.Restorer(config.channels, config.removed, config.kernel)
        self.verdict = sr.verdict(discriminator.dim)
        self.content = sr.ContentFeatures() if config.content == "vgg19" else None

    @property
    def generator(self) -> Encoder:
        """The first part of the generator; `restorer` is the rest."""
        return self.encoder if self.config.encoder == "generator" else self.other

    @property
    def discriminator(self) -> Encoder:
        """The first part of the discriminator; `verdict` is the rest."""
        return self.other if self.config.encoder == "generator" else self.encoder

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """A random crop `[B,3,size,size]` and its reduction `[B,3,size/4,size/4]`, both in 0..1."""
        settings = self.config.crop
        boxes = random_resized_crop(images.aspect, draw, (settings.low, settings.high), (1.0, 1.0))
        return _pair(crop(images, boxes, size, flip=draw.chance(settings.flip)))

    def shown(self, views: Views, count: int) -> list[Shown]:
        """The reduction, its pixels enlarged, and what it is to be restored to."""
        high, low = views
        reduced = Shown(f"reduced to {low.shape[-1]} px", F.interpolate(low.float(), scale_factor=sr.FACTOR))
        return [reduced, Shown("what it is to be restored to", high.float())]

    def restore(self, low: Tensor) -> Tensor:
        """Return images `[B,3,4h,4w]`, nominally in 0..1, of `[B,3,h,w]` in 0..1."""
        maps = self.generator.maps(low)
        images: Tensor = self.restorer(maps[0], maps[-1])
        return images.float().add(1).div(2)

    def judge(self, images: Tensor) -> Tensor:
        """Return logits `[B]` that images `[B,3,H,W]` in 0..1 are real."""
        logits: Tensor = self.verdict(self.discriminator(images))
        return logits[:, 0].float()

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """Pixels alone until `pixel_share`, then content, and each network against the other."""
        high, low = views
        restored = self.restore(low)
        pixel = 4 * F.mse_loss(restored, high)  # as in the paper, of intensities in -1..1
        if progress < self.config.pixel_share:
            return {"generator": pixel, "pixel": pixel.detach()}
        real, fake = self.judge(high), self.judge(restored)
        content = pixel if self.content is None else self._content(restored, high)
        adversarial = F.softplus(-fake).mean()  # -log D(G(x)), equation 6
        return {
            "generator": content + self.config.adversarial * adversarial,
            "discriminator": F.softplus(-real).mean() + F.softplus(fake).mean(),
            "pixel": pixel.detach(),
            "content": content.detach(),
            "adversarial": adversarial.detach(),
        }

    def _content(self, restored: Tensor, high: Tensor) -> Tensor:
        """Equation 5, rescaled: squared distance of VGG-19 features."""
        assert self.content is not None
        with torch.no_grad():
            wanted = self.content(high).float()
        return CONTENT_SCALE * F.mse_loss(self.content(restored).float(), wanted)

    def objectives(self) -> dict[str, list[Parameter]]:
        """The generator's loss and, where there is a GAN stage, the discriminator's."""
        networks = {"generator": (self.generator, self.restorer), "discriminator": (self.discriminator, self.verdict)}
        if self.config.pixel_share == 1:
            del networks["discriminator"]
        return {name: list(nn.ModuleList(parts).parameters()) for name, parts in networks.items()}

    def validation(self, images: ImageBatch, size: int) -> Mapping[str, Tensor]:
        """Mean PSNR (dB) and SSIM of the luma of central crops: restored, and enlarged by bicubic interpolation."""
        high, low = _pair(crop(images, centre_crop(images.aspect), size))
        figures = {}
        for name, result in (("", self.restore(low).clamp(0, 1)), ("_bicubic", sr.enlarge(low))):
            figures[f"psnr{name}"] = sr.psnr(result, high).mean()
            figures[f"ssim{name}"] = sr.ssim(result, high).mean()
        return figures

    def pictures(self, images: ImageBatch, size: int) -> Mapping[str, Tensor]:
        """One grid, a row for each image: reduced (pixels enlarged), restored, original."""
        from torchvision.utils import make_grid

        high, low = _pair(crop(images, centre_crop(images.aspect), size))
        columns = (F.interpolate(low, scale_factor=sr.FACTOR), self.restore(low).clamp(0, 1), high)
        rows = torch.stack(columns, 1).flatten(0, 1)
        return {"restored": make_grid(rows, nrow=len(columns), padding=GAP, pad_value=1.0)}


def _pair(high: Tensor) -> Views:
    """The images and their reductions. Raises BadInput where the side is no multiple of 4."""
    size = high.shape[-1]
    if size % sr.FACTOR:
        near = max(sr.FACTOR, round(size / sr.FACTOR) * sr.FACTOR)
        raise BadInput(f"pretrain.image_size {size}: srgan reduces by 4 and needs a multiple of it; try {near}")
    return high, sr.reduce(high)
