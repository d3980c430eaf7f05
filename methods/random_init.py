"""The control: an encoder as it is initialised, never trained."""

from collections.abc import Mapping

from torch import Tensor

from bench.draw import Draw
from bench.images import ImageBatch
from bench.method import Method, Views
from bench.records import Record


class RandomInitConfig(Record):
    """A random encoder has nothing to set."""


class RandomInit(Method):
    """An untrained encoder: what the architecture alone gives."""

    Config = RandomInitConfig
    summary = "control: the encoder as initialised, no training"
    trains = False

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """No views are needed."""
        return ()

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """There is nothing to minimise."""
        return {}
