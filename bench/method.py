"""The contract of a pretext task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import Parameter

from bench.draw import Draw
from bench.encoders import Encoder
from bench.images import ImageBatch
from bench.records import Record

Views = tuple[Tensor, ...]


class Method(nn.Module, ABC):
    """A pretext task built on an encoder.

    A subclass has a `Config` (its hyperparameters, each with bounds and a default: anything in it can be
    swept), a one-line `summary`, and a `version` that is raised whenever the same configuration would give
    other results. It knows nothing of Ray, files or the command line. The conformance suite in
    `tests/test_methods.py` runs over every method.
    """

    Config: ClassVar[type[Record]]
    summary: ClassVar[str]
    version: ClassVar[int] = 1
    trains: ClassVar[bool] = True  # False: the encoder is used as it is built

    encoder: Encoder

    def __init__(self, config: Any, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder

    @abstractmethod
    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """Turn a batch of whole images into the method's input, each sample with its own random numbers.

        Views are floats `[B,3,size,size]` in 0..1 (or what the task needs) on the images' device. Called
        without gradients. All randomness comes from `draw`.
        """

    @abstractmethod
    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """Return one scalar per name in `objectives`: the mean over this worker's samples.

        `progress` is the share of training done, 0 <= progress < 1. Scalars under other names are logged and not
        optimised. What compares samples with each other must see those of all workers: use
        `bench.distributed.gather`.
        """

    def objectives(self) -> dict[str, list[Parameter]]:
        """Name each loss and the parameters that it updates; a GAN has two."""
        return {"loss": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def after_step(self, progress: float) -> None:
        """Update what no gradient updates (a momentum encoder, a queue), after each optimiser step."""
