"""DINO: a student predicts from any view what its own moving average, the teacher, says of the global views.

Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers" (arXiv 2104.14294): loss and
multi-crop section 3.1, head section 3.2 and appendix C, centring equation 4, settings appendix A. What keeps both from
collapsing is the balance of centring (no output dominates) and sharpening (the teacher's low temperature).

The authors report the teacher's features; here the encoder is the student, which the teacher, whose momentum ends
at 1, meets at the end of the schedule. The authors' momentum 0.996 and 65536 outputs are for 100 epochs and more.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from pydantic import Field, ModelWrapValidatorHandler, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from bench import colour
from bench.distributed import average, gather
from bench.draw import Draw
from bench.encoders import Encoder
from bench.heads import cosine_momentum, follow, spread, twin
from bench.images import ImageBatch
from bench.method import Method, Views
from bench.multicrop import GLOBAL, MultiCrop, encode, multi_crop
from bench.records import Record

WARMUP = 0.3


class Teacher(Record):
    """How the teacher moves and how sharp it is."""

    momentum: float = Field(0.95, ge=0, le=1, description="of its weights at the start; it rises to 1 at the end")
    start: float = Field(0.04, gt=0, le=1, description="its temperature at the start")
    end: float = Field(0.04, gt=0, le=1, description="its temperature after the warm-up; higher ones go uniform soon")
    warmup: float = Field(WARMUP, ge=0, le=1, description="share of training in which its temperature moves")
    centre: float = Field(0.9, ge=0, lt=1, description="momentum of the centre of its outputs")

    @model_validator(mode="wrap")
    @classmethod
    def _constant_is_one_thing(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # What has no effect is one trial: a warm-up between equal temperatures, a start that is left at once.
        teacher = handler(values)
        moves = teacher.warmup and teacher.start != teacher.end
        constant = {"start": teacher.end, "warmup": WARMUP}
        return teacher if moves or constant.items() <= vars(teacher).items() else teacher.model_copy(update=constant)


class DINOConfig(MultiCrop):
    """DINO's hyperparameters."""

    outputs: int = Field(1024, ge=2, le=262_144, description="outputs of the head, the classes of no name")
    hidden: int = Field(512, ge=8, le=8192, description="hidden units of the head")
    norm: bool = Field(
        True, description="batch norms in the head; the authors' ViTs have none, on short runs they help"
    )
    bottleneck: int = Field(128, ge=2, le=4096, description="units before the head's last layer")
    temperature: float = Field(0.1, gt=0, le=2, description="the student's")
    freeze: float = Field(0.05, ge=0, le=1, description="share of training in which the last layer stays as drawn")
    solarize: float = Field(0.2, ge=0, le=1, description="probability of a solarised second global view")
    teacher: Teacher = Teacher()


class DINO(Method):
    """Self-distillation with no labels, on convolutional networks and ViTs."""

    Config = DINOConfig
    summary = "a student matches its momentum teacher's centred, sharpened output (multi-crop)"
    config: DINOConfig
    centre: Tensor

    def __init__(self, config: DINOConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.head = Head(encoder.dim, config.hidden, config.bottleneck, config.outputs, config.norm)
        self.teacher, self.teacher_head = twin(encoder), twin(self.head)
        self.register_buffer("centre", torch.zeros(config.outputs))

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """Two global views `[B,3,size,size]` and the smaller local ones, in 0..1."""
        views = multi_crop(images, draw, size, self.config, self.encoder)
        views[1] = colour.solarize(views[1], draw, self.config.solarize, inplace=True)
        return tuple(views)

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """The cross entropy of this worker's rows; `spread` of the student's global features is logged."""
        features = encode(self.encoder, views)
        student = self.head(features)
        with torch.no_grad():
            teacher = self.teacher_head(encode(self.teacher, views[:GLOBAL]))  # type: ignore[arg-type]
        temperatures = self.config.temperature, teacher_temperature(self.config.teacher, progress)
        loss = distillation(student.chunk(len(views)), teacher.chunk(GLOBAL), self.centre, *temperatures)
        if self.training:  # the centre that a step uses is that of the steps before it
            self.centre.lerp_(average(teacher.mean(0)), 1 - self.config.teacher.centre)
        losses = {"loss": loss, "spread": spread(gather(features[: len(views[0])].detach()))}
        if progress >= self.config.freeze:
            losses["last"] = loss - loss.detach()  # the loss's gradient; worth 0, as the loss counts once
        return losses

    def objectives(self) -> dict[str, list[nn.Parameter]]:
        """The last layer has an objective of its own, absent from the losses while it is frozen.

        A zero gradient would not do: momentum and weight decay move what has one.
        """
        (last,) = self.head.last.parameters()
        return {"last": [last], "loss": [each for each in super().objectives()["loss"] if each is not last]}

    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student (section 3.1)."""
        momentum = cosine_momentum(self.config.teacher.momentum, progress)
        follow(self.teacher, self.encoder, momentum)
        follow(self.teacher_head, self.head, momentum)


class Head(nn.Module):
    """Three layers with GELU, a bottleneck on the unit sphere, and a last layer whose weights have norm 1.

    Fixed norms are the authors' weight normalisation with its gain held at 1, which steadies training (appendix C).
    """

    def __init__(self, features: int, hidden: int, bottleneck: int, outputs: int, norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (features, hidden):
            layers += [nn.Linear(width, hidden), *([nn.BatchNorm1d(hidden)] if norm else []), nn.GELU()]
        self.body = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.last = nn.Linear(bottleneck, outputs, bias=False)
        for layer in self.body:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return float32 `[B,outputs]` in -1..1 of `[B,features]`."""
        hidden = self.body(features)
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(F.normalize(hidden.float(), dim=1), F.normalize(self.last.weight, dim=1))


def teacher_temperature(teacher: Teacher, progress: float) -> float:
    """The teacher's temperature at `progress` 0..1: a straight line over the warm-up, constant after it."""
    share = min(progress / teacher.warmup, 1.0) if teacher.warmup else 1.0
    return teacher.start + (teacher.end - teacher.start) * share


def distillation(
    student: Sequence[Tensor], teacher: Sequence[Tensor], centre: Tensor, student_temp: float, teacher_temp: float
) -> Tensor:
    """Return the cross entropy of the student's views under the teacher's, never of a view with itself (equation 3).

    `student`, `teacher`: outputs `[B,K]` of each view, those that both see first; `centre`: `[K]`. No gradient goes
    to the teacher. The mean is over pairs of views and rows.
    """
    with torch.autocast(centre.device.type, enabled=False):  # outputs / temperature need full precision
        targets = [F.softmax((out.detach().float() - centre) / teacher_temp, dim=1) for out in teacher]
        logs = [F.log_softmax(out.float() / student_temp, dim=1) for out in student]
        pairs = [(t, s) for t in range(len(targets)) for s in range(len(logs)) if t != s]
        return torch.stack([-(targets[t] * logs[s]).sum(1).mean() for t, s in pairs]).mean()
