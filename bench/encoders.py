"""Encoders by name: `[B,3,H,W]` in 0..1 -> `[B,D]`.

Normalisation is the encoder's own first step, so that pretraining, probing and export cannot disagree on it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from bench.errors import BadInput, UnknownName

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """A trunk of stages whose last map is pooled, with the input's normalisation before it.

    `stages` names the children of the trunk that run one after the other, stage by stage; `widths` are the channels
    of each stage's map. Children of the trunk that no stage names are left unused. `see`, where a method sets it, is
    what `forward` does to images first: who uses the encoder gives it any image. `maps` takes images as they are.
    """

    def __init__(self, trunk: nn.Module, stages: Sequence[Sequence[str]], widths: Sequence[int]) -> None:
        super().__init__()
        self.trunk = trunk
        self.stages = tuple(tuple(names) for names in stages)
        self.widths = tuple(widths)
        self.see: Callable[[Tensor], Tensor] | None = None  # a function of a module: it is copied with the encoder
        self.name = ""  # in `ENCODERS`, where it comes from there
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @property
    def dim(self) -> int:
        """How many features `forward` returns."""
        return self.widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Return features `[B,dim]` of float images `[B,3,H,W]` in 0..1."""
        return self.maps(self.seen(images))[-1].mean((2, 3))

    def seen(self, images: Tensor) -> Tensor:
        """The images `[B,3,H,W]` in 0..1 as `see` shows them to the trunk."""
        return images if self.see is None else self.see(images)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the map `[B,C,h,w]` after each stage, `widths` its channels, of float images `[B,3,H,W]` in 0..1."""
        x = (images - self.mean) / self.std
        maps = []
        for names in self.stages:
            for name in names:
                x = getattr(self.trunk, name)(x)
            maps.append(x)
        return maps

    def last_stage(self) -> list[Parameter]:
        """The parameters of the last stage, which `finetune` trains in its variant "last_stage"."""
        return [parameter for name in self.stages[-1] for parameter in getattr(self.trunk, name).parameters()]


class VisionTransformer(Encoder):
    """A plain ViT on torchvision's blocks: fixed sine-cosine positions, no class token (Beyer et al. 2022).

    Fixed positions, as in MoCo v3 and MAE, fit images of any size whose sides are multiples of `patch`; features
    are the mean over the patches' tokens. The blocks are divided into `STAGES` stages.
    """

    STAGES = 4

    def __init__(self, patch: int, width: int, depth: int, heads: int) -> None:
        from torchvision.models import VisionTransformer as Torchvision

        whole = Torchvision(patch, patch, depth, heads, width, 4 * width)
        blocks = list(whole.encoder.layers)
        each = depth // self.STAGES
        trunk = nn.Module()
        trunk.patches = whole.conv_proj
        for number in range(self.STAGES):
            trunk.add_module(f"blocks{number + 1}", nn.Sequential(*blocks[number * each : (number + 1) * each]))
        trunk.norm = whole.encoder.ln
        names = [[f"blocks{number + 1}"] for number in range(self.STAGES)]
        super().__init__(trunk, [*names[:-1], [*names[-1], "norm"]], [width] * self.STAGES)
        self.patch, self.width, self.heads = patch, width, heads

    def embed(self, images: Tensor) -> Tensor:
        """Return the patches' tokens `[B,N,width]` with their positions, row by row.

        Raises BadInput for images whose sides are not whole patches.
        """
        height, width = images.shape[2:]
        if height % self.patch or width % self.patch:
            near = max(1, round(height / self.patch)) * self.patch
            raise BadInput(f"images of {height} x {width} px are not whole patches of {self.patch} px; try {near}")
        grid: Tensor = self.trunk.patches((images - self.mean) / self.std)  # type: ignore[operator]
        positions = sine_positions(grid.shape[2], grid.shape[3], self.width, grid.device)
        return grid.flatten(2).mT + positions

    def blocks(self, tokens: Tensor) -> list[Tensor]:
        """Return the tokens `[B,N,width]` after each stage; any subset of an image's tokens may be given."""
        after = []
        for names in self.stages:
            for name in names:
                tokens = getattr(self.trunk, name)(tokens)
            after.append(tokens)
        return after

    def forward(self, images: Tensor) -> Tensor:
        """Return features `[B,dim]` of float images `[B,3,H,W]` in 0..1."""
        return self.blocks(self.embed(self.seen(images)))[-1].mean(1)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the tokens after each stage as maps `[B,width,H/patch,W/patch]`."""
        side = images.shape[2] // self.patch
        return [tokens.mT.unflatten(2, (side, -1)) for tokens in self.blocks(self.embed(images))]


def sine_positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Fixed 2-D sine-cosine positions `[height*width,channels]`, half of the channels for each axis (MoCo v3)."""
    count = channels // 4
    frequency = 1e-4 ** (torch.arange(count, device=device) / count)
    angles = [torch.arange(side, device=device)[:, None] * frequency for side in (height, width)]
    rows, columns = (torch.cat((angle.sin(), angle.cos()), dim=1) for angle in angles)
    return torch.cat((rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)), dim=2).flatten(0, 1)


@dataclass(frozen=True)
class EncoderCard:
    """How an encoder is built and described; `transformer`: it is a `VisionTransformer`."""

    build: Callable[[], Encoder]
    summary: str
    transformer: bool = False


def _small() -> Encoder:
    """Four strided 3x3 convolutions: most of the work is on few pixels, and a CPU core trains it in seconds."""
    widths = (24, 48, 96, 192)
    trunk = nn.Module()
    for number, (before, width) in enumerate(zip((3, *widths), widths, strict=False), start=1):
        convolution = nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        trunk.add_module(f"stage{number}", nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)))
    return Encoder(trunk, [[f"stage{number}"] for number in range(1, 5)], widths)


def _resnet(name: str) -> Encoder:
    import torchvision

    trunk = torchvision.models.get_model(name, weights=None)
    dim = trunk.fc.in_features
    trunk.fc = nn.Identity()
    stages = [["conv1", "bn1", "relu", "maxpool", "layer1"], ["layer2"], ["layer3"], ["layer4"]]
    return Encoder(trunk, stages, [dim // 8, dim // 4, dim // 2, dim])


OWN = "own"
ENCODERS: dict[str, EncoderCard] = {
    "small": EncoderCard(_small, "4 strided 3x3 convolutions, 0.2 M parameters, 192 features: for CPUs and 64 px"),
    "resnet18": EncoderCard(partial(_resnet, "resnet18"), "torchvision's ResNet-18, 11 M parameters, 512 features"),
    "resnet34": EncoderCard(partial(_resnet, "resnet34"), "torchvision's ResNet-34, 21 M parameters, 512 features"),
    "resnet50": EncoderCard(partial(_resnet, "resnet50"), "torchvision's ResNet-50, 24 M parameters, 2048 features"),
    "vit_micro": EncoderCard(
        partial(VisionTransformer, 8, 96, 4, 3), "ViT, 8 px patches, 0.5 M parameters, 96 features: for CPUs", True
    ),
    "vit_s16": EncoderCard(partial(VisionTransformer, 16, 384, 12, 6), "ViT-S/16, 22 M parameters, 384 features", True),
    OWN: EncoderCard(lambda: Encoder(nn.Module(), [[]], [3]), "of the methods that bring their own, such as srgan"),
}


def build_encoder(name: str, seed: int) -> Encoder:
    """Build an encoder with weights that depend on `seed` alone.

    Raises UnknownName for a name that is not in `ENCODERS`.
    """
    if name not in ENCODERS:
        raise UnknownName("encoder", name, ENCODERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = ENCODERS[name].build()
    encoder.name = name
    return encoder
