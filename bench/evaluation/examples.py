"""What a protocol is given: one split of a dataset as the encoder under judgement sees it, and nothing of the rest."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bench import views
from bench.data.pack import Pack
from bench.data.source import Split
from bench.encoders import Encoder
from bench.evaluation.linear import Features
from bench.images import ImageBatch

BATCH = 256  # images per forward pass


class Images:
    """The images of some rows of a pack, without labels: numbers 0..N-1 here, no other row can be reached.

    `encoder` is the encoder under judgement: who wants to train it takes a copy. `size`: side of its views, pixels.
    """

    def __init__(self, encoder: Encoder, pack: Pack, rows: Tensor, size: int) -> None:
        self.encoder, self.size = encoder, size
        self._pack, self._rows = pack, rows
        self._parts: tuple[Images, ...] = ()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def device(self) -> torch.device:
        """Where the encoder is, and where batches and features go."""
        return device_of(self.encoder)

    def batch(self, index: Tensor) -> ImageBatch:
        """The whole images of `index`, int64 `[B]` on the CPU."""
        return self._pack.batch(self._rows[index], self.device)

    def centred(self) -> Iterator[Tensor]:
        """Batches of test views `[B,3,size,size]` in order: resize and centre crop, no augmentation."""
        for index in torch.arange(len(self)).split(BATCH):
            images = self.batch(index)
            view = views.crop(images, views.centre_crop(images.aspect), self.size)
            yield view.contiguous(memory_format=torch.channels_last)

    @cached_property
    def features(self) -> Tensor:
        """Frozen features `[N,D]` of the test views in full precision, extracted once."""
        if self._parts:
            return torch.cat([part.features for part in self._parts])
        modes = {module: module.training for module in self.encoder.modules()}
        self.encoder.eval()
        with torch.inference_mode():
            features = torch.cat([self.encoder(view) for view in self.centred()])
        for module, mode in modes.items():
            module.training = mode
        return features

    def join(self, other: "Images") -> "Images":
        """Return the images of both, these first; what was extracted is not extracted again."""
        both = Images(self.encoder, self._pack, torch.cat([self._rows, other._rows]), self.size)
        both._parts = (self, other)
        return both


@dataclass(frozen=True)
class Examples:
    """The labelled images of a split: `labels` int64 `[N]`, on the encoder's device."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def features(self) -> Features:
        """Frozen features with labels; TrialFailed where they are not finite, BadData for an empty split."""
        return Features(self.images.features, self.labels)

    def join(self, other: "Examples") -> "Examples":
        """Return the examples of both, these first."""
        return Examples(self.images.join(other.images), torch.cat([self.labels, other.labels]))


def split_examples(encoder: Encoder, pack: Pack, split: Split, size: int) -> Examples:
    """The examples of one split, for views of `size` pixels."""
    rows = pack.rows(split)
    return Examples(Images(encoder, pack, rows, size), pack.labels[rows].to(device_of(encoder)))


def device_of(encoder: Encoder) -> torch.device:
    """Where an encoder's parameters are."""
    return next(encoder.parameters()).device
