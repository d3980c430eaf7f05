"""Encoders by name: `[B,3,H,W]` in 0..1 -> `[B,D]`.

Normalisation is the encoder's own first step, so that pretraining, probing and export cannot disagree on it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.errors import UnknownName

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """A trunk that ends in pooled features, with the input's normalisation before it."""

    def __init__(self, trunk: nn.Module, dim: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.dim = dim
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Return features `[B,dim]` of float images `[B,3,H,W]` in 0..1."""
        features: Tensor = self.trunk((images - self.mean) / self.std)
        return features


@dataclass(frozen=True)
class EncoderCard:
    """How an encoder is built and described."""

    build: Callable[[], Encoder]
    summary: str


def _small() -> Encoder:
    """Four strided 3x3 convolutions: most of the work is on few pixels, and a CPU core trains it in seconds."""
    widths = (24, 48, 96, 192)
    layers: list[nn.Module] = []
    before = 3
    for width in widths:
        layers += [
            nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        before = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    trunk = nn.Sequential(*layers)
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return Encoder(trunk, widths[-1])


def _resnet(name: str) -> Callable[[], Encoder]:
    def build() -> Encoder:
        import torchvision

        trunk = torchvision.models.get_model(name, weights=None)
        dim = trunk.fc.in_features
        trunk.fc = nn.Identity()
        return Encoder(trunk, dim)

    return build


ENCODERS: dict[str, EncoderCard] = {
    "small": EncoderCard(_small, "4 strided 3x3 convolutions, 0.2 M parameters, 192 features: for CPUs and 64 px"),
    "resnet18": EncoderCard(_resnet("resnet18"), "torchvision's ResNet-18, 11 M parameters, 512 features"),
    "resnet34": EncoderCard(_resnet("resnet34"), "torchvision's ResNet-34, 21 M parameters, 512 features"),
    "resnet50": EncoderCard(_resnet("resnet50"), "torchvision's ResNet-50, 24 M parameters, 2048 features"),
}


def build_encoder(name: str, seed: int) -> Encoder:
    """Build an encoder with weights that depend on `seed` alone.

    Raises UnknownName for a name that is not in `ENCODERS`.
    """
    if name not in ENCODERS:
        raise UnknownName("encoder", name, ENCODERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ENCODERS[name].build()
