"""The control with labels of another dataset: an encoder trained on ImageNet's classes, from torchvision.

It needs 1.28 million labelled photographs that the pretext tasks do not see: an upper mark, not a rival. Some
fine-grained datasets (Stanford Dogs) hold images of ImageNet itself.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from bench.draw import Draw
from bench.encoders import Encoder
from bench.errors import BadInput
from bench.images import ImageBatch
from bench.method import Method, Views
from bench.records import Record
from bench.weights import imagenet_weights, load_weights

ENCODERS = ("resnet18", "resnet34", "resnet50")  # those whose trunk is torchvision's


class ImageNetConfig(Record):
    """Which ImageNet weights."""

    weights: Literal["IMAGENET1K_V1", "IMAGENET1K_V2"] = Field(
        "IMAGENET1K_V1", description="torchvision's version; V2 (a longer recipe) for resnet50 only"
    )


class ImageNet(Method):
    """An encoder with torchvision's weights, not trained further."""

    Config = ImageNetConfig
    summary = "control: torchvision's weights of supervised ImageNet training"
    trains = False
    config: ImageNetConfig

    def __init__(self, config: ImageNetConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.check(config, encoder.name)
        state = load_weights(imagenet_weights(encoder.name, config.weights), download=True)
        encoder.trunk.load_state_dict({name: value for name, value in state.items() if not name.startswith("fc.")})

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """No views are needed."""
        return ()

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """There is nothing to minimise."""
        return {}

    @classmethod
    def check(cls, config: Any, backbone: str) -> None:
        """Raise BadInput for an encoder that has no such weights."""
        super().check(config, backbone)
        if backbone not in ENCODERS:
            raise BadInput(
                f"pretrain.backbone {backbone!r} has no ImageNet weights; those that have: {', '.join(ENCODERS)}"
            )
        imagenet_weights(backbone, config.weights)
