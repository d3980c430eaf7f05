"""The contract of a pretext task."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torch.nn import Parameter

from bench.draw import Draw
from bench.encoders import OWN, Encoder
from bench.errors import BadInput
from bench.images import ImageBatch
from bench.records import Record

Views = tuple[Tensor, ...]


class Shown(NamedTuple):
    """What a person is shown of a batch's views: its name, pictures `[B,3,h,w]` in 0..1, a caption for each or none."""

    name: str
    pictures: Tensor
    captions: tuple[str, ...] = ()


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
    backbone: ClassVar[str] = ""  # the one encoder that it can be built on, if there is only one

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

    def separable(self) -> bool:
        """Whether every loss is the mean of what each sample gives by itself, in this configuration.

        Then a batch that does not fit into memory is taken in parts, with the same result. Not so where samples are
        compared with each other, counted, kept in a queue or drawn for from torch's generator; batch normalisation
        is looked for by the engine.
        """
        return False

    def steps(self, views: Views) -> Iterable[Views]:
        """The views of each optimiser step that one batch gives, in order; by default one step with all of them."""
        return (views,)

    def objectives(self) -> dict[str, list[Parameter]]:
        """Name each loss and the parameters that it updates; a GAN has two, whose parameters must not overlap.

        An objective that a step's losses lack is not updated in that step.
        """
        return {"loss": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def after_step(self, progress: float) -> None:
        """Update what no gradient updates (a momentum encoder, a queue), after each optimiser step."""

    def validation(self, images: ImageBatch, size: int) -> Mapping[str, Tensor]:
        """Figures of the pretext task on images that are not trained on, logged after each epoch; by default none.

        Called in evaluation mode, without gradients, on one worker.
        """
        return {}

    def pictures(self, images: ImageBatch, size: int) -> Mapping[str, Tensor]:
        """Pictures `[3,H,W]` in 0..1 by name, to be kept beside the encoder; called as `validation` is."""
        return {}

    def shown(self, views: Views, count: int) -> list[Shown]:
        """What a person is shown of the views of `count` images: those that are pictures, as the network gets them.

        A method whose views are not pictures, or which hides a part of them later, says here how they look.
        """
        pictures = [view.float() for view in views if view.dim() == 4 and view.shape[1] == 3 and not len(view) % count]
        parts = [part for view in pictures for part in view.unflatten(0, (count, -1)).unbind(1)]
        return [Shown(f"view {number}" if len(parts) > 1 else "the view", part) for number, part in enumerate(parts, 1)]

    @classmethod
    def check(cls, config: Any, backbone: str) -> None:
        """Raise BadInput where `config` and the encoder named `backbone` do not go together."""
        if backbone == OWN != cls.backbone:
            raise BadInput(f"pretrain.backbone {OWN!r} is for methods that bring their own encoder")


class SupervisedMethod(Method):
    """A method that learns from the labels of the training split: `views` is given `images.labels`.

    An epoch of it has as many steps as one of a pretext task on the same dataset, so that the budget is the same.
    """

    def __init__(self, config: Any, encoder: Encoder, classes: int) -> None:
        super().__init__(config, encoder)
        self.classes = classes
