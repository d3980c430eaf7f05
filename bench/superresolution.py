"""Networks of x4 super-resolution and how its results are judged.

Generator and discriminator of Ledig et al. 2017 (SRGAN, arXiv 1609.04802, figure 4), each cut into an encoder and what
comes after it, so that either encoder can go on alone; PSNR; SSIM of Wang et al. 2004 (equation 13).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import colour
from bench.encoders import IMAGENET_MEAN, IMAGENET_STD, Encoder
from bench.weights import imagenet_weights, load_weights

FACTOR = 4  # two upsamplings by 2
MOST_PSNR = 100.0  # dB, what equal images get
CONTENT_WEIGHTS = ("vgg19", "IMAGENET1K_V1")
VGG_5_4 = 36  # layers of torchvision's VGG-19 up to the fourth convolution of block 5 and its activation


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, PReLU between them, added to the input `[B,C,h,w]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _normed(channels, channels)
        self.activation = nn.PReLU(channels)
        self.second = _normed(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map, of the same shape."""
        out: Tensor = x + self.second(self.activation(self.first(x)))
        return out


class Restorer(nn.Module):
    """What comes after the generator's encoder: the residual blocks left, the long skip and two upsamplings by 2.

    `kernel`: side of the last convolution, odd; 9 in the paper, where it is two thirds of a CPU's work.
    """

    def __init__(self, channels: int, blocks: int, kernel: int = 9) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.skip = _normed(channels, channels)
        self.enlarge = nn.Sequential(*(_upsampling(channels) for _ in range(int(math.log2(FACTOR)))))
        self.image = nn.Conv2d(channels, 3, kernel, padding=kernel // 2)

    def forward(self, stem: Tensor, last: Tensor) -> Tensor:
        """Return images `[B,3,4h,4w]`, nominally in -1..1, of the encoder's first and last map `[B,C,h,w]`."""
        images: Tensor = self.image(self.enlarge(stem + self.skip(self.blocks(last))))
        return images


def generator_encoder(channels: int, blocks: int) -> Encoder:
    """SRResNet's 9x9 stem and its first `blocks` residual blocks, all at full resolution, `channels` wide.

    Three stages (stem, blocks, last block; two where there is one block), because each stage's map is held in memory.
    """
    trunk = nn.Module()
    trunk.stem = nn.Sequential(nn.Conv2d(3, channels, 9, padding=4), nn.PReLU(channels))
    for number in range(1, blocks + 1):
        trunk.add_module(f"block{number}", ResidualBlock(channels))
    names = [f"block{number}" for number in range(1, blocks + 1)]
    stages = [stage for stage in (["stem"], names[:-1], names[-1:]) if stage]
    return Encoder(trunk, stages, [channels] * len(stages))


def discriminator_encoder(channels: int) -> Encoder:
    """Eight 3x3 convolutions, every second one strided: `channels` to 8 x `channels` (64 to 512 in the paper)."""
    widths = [channels, 2 * channels, 4 * channels, 8 * channels]
    trunk = nn.Module()
    before = 3
    for number, width in enumerate(widths, start=1):
        first = nn.Conv2d(3, width, 3, padding=1) if number == 1 else _normed(before, width)
        layers = (first, nn.LeakyReLU(0.2), _normed(width, width, stride=2), nn.LeakyReLU(0.2))
        trunk.add_module(f"stage{number}", nn.Sequential(*layers))
        before = width
    return Encoder(trunk, [[f"stage{number}"] for number in range(1, 5)], widths)


def verdict(features: int) -> nn.Sequential:
    """The discriminator's dense part: pooled features `[B,F]` to one logit `[B,1]` that the image is a real one.

    The paper flattens the last map; pooling it lets images of any size be judged.
    """
    return nn.Sequential(nn.Linear(features, 2 * features), nn.LeakyReLU(0.2), nn.Linear(2 * features, 1))


class ContentFeatures:
    """Frozen VGG-19 features of images in 0..1, relu5_4 (section 2.2.1: after the activation, before the last pooling).

    No nn.Module, so that a network that holds it neither trains nor saves it. Raises TrialFailed where the weights
    are not at hand: they are never downloaded here.
    """

    def __init__(self) -> None:
        from torchvision.models import vgg19

        with torch.device("meta"):  # the classifier, 0.5 GB, is never made
            layers = vgg19(init_weights=False).features
        state = load_weights(imagenet_weights(*CONTENT_WEIGHTS), download=False)
        kept = {name.removeprefix("features."): v for name, v in state.items() if name.startswith("features.")}
        layers.load_state_dict(kept, assign=True)
        self._layers = layers[:VGG_5_4].eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def __call__(self, images: Tensor) -> Tensor:
        """Return `[B,512,H/16,W/16]` of images `[B,3,H,W]`."""
        if self._mean.device != images.device:  # once: a copy in every step would wait for the device
            self._layers.to(images.device)
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
        features: Tensor = self._layers((images - self._mean) / self._std)
        return features


def reduce(images: Tensor) -> Tensor:
    """Antialiased bicubic reduction by 4 of `[B,3,H,W]` in 0..1 (section 3.1); the sides are multiples of 4."""
    return F.interpolate(images, scale_factor=1 / FACTOR, mode="bicubic", antialias=True).clamp(0, 1)


def enlarge(images: Tensor) -> Tensor:
    """Bicubic enlargement by 4 of `[B,3,h,w]` in 0..1: what super-resolution has to beat."""
    # Where nothing is reduced `antialias` only selects the usual kernel (Keys, a = -0.5) in place of torch's -0.75.
    return F.interpolate(images, scale_factor=FACTOR, mode="bicubic", antialias=True).clamp(0, 1)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio `[B]` in dB of the lumas of two `[B,3,H,W]` in 0..1; at most 100, for equal images."""
    error = (colour.luma(first) - colour.luma(second)).square().mean((1, 2, 3))
    return -10 * error.clamp(min=10 ** (-MOST_PSNR / 10)).log10()


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity `[B]` of the lumas of two `[B,3,H,W]` in 0..1, H and W at least 11 (Wang et al. 2004).

    Windows are 11x11 Gaussians of deviation 1.5 that lie inside the image; K1 = 0.01, K2 = 0.03, dynamic range 1.
    """
    x, y = colour.luma(first), colour.luma(second)
    mean_x, mean_y, xx, yy, xy = _windows(torch.cat((x, y, x * x, y * y, x * y), 1)).unbind(1)
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * cov + c2) / (var_x + var_y + c2)).mean((1, 2))


def _windows(x: Tensor) -> Tensor:
    """Gaussian means `[B,C,H-10,W-10]` over all 11x11 windows inside `[B,C,H,W]`."""
    offset = torch.arange(-5.0, 6.0, device=x.device)
    kernel = torch.softmax(-0.5 * (offset / 1.5) ** 2, 0).expand(x.shape[1], 1, 1, 11)
    across = F.conv2d(x, kernel, groups=x.shape[1])
    return F.conv2d(across, kernel.mT, groups=x.shape[1])


def _normed(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution and batch norm, which makes a bias of the convolution's superfluous."""
    convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after))


def _upsampling(channels: int) -> nn.Sequential:
    """Twice the height and width: a convolution to 4 x `channels`, rearranged (pixel shuffle), and PReLU."""
    return nn.Sequential(nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(channels))
