"""The finetune protocol: the encoder itself is trained on, with a linear head, by SGD (Kornblith et al. 2019).

SGD with Nesterov momentum 0.9 and a cosine schedule; random resized crops and flips in training, centre crops in
judgement; learning rate and weight decay from a small grid chosen on validation. Random numbers are functions of (seed,
variant, epoch, step) alone, so all points of the grid see the same views.
"""

import math
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal, get_args

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from bench import views
from bench.distributed import SharedBatchNorm
from bench.draw import Draw, mix
from bench.encoders import Encoder
from bench.errors import BadInput, TrialFailed
from bench.evaluation.examples import Examples, Images, device_of
from bench.evaluation.metrics import Scores, judge
from bench.records import Record

VERSION = 1
MOMENTUM = 0.9
STREAM = 7  # of random numbers, apart from those of pretraining

Point = dict[str, float]  # of the grid: lr and weight_decay

Part = Literal["last_stage", "full"]
PARTS: tuple[Part, ...] = get_args(Part)
Rate = Annotated[float, Field(gt=0, le=10)]
Decay = Annotated[float, Field(ge=0, le=1)]


class Finetune(Record):
    """Settings of the finetune protocol; every pair of `lrs` and `weight_decays` is a point of the grid.

    The defaults keep 300 images of 64 px and encoder `small` at about 20 s of one core. Their rates were chosen on
    validation there, from scratch and after SimCLR (one seed, 10 epochs, all of the encoder): 0.06 beats 0.03 and 0.1,
    0.01 is too slow, 0.3 does not settle; decays of 1e-4 to 1e-2 show no trend. Twice the epochs are worth 15 points
    or more, so where time allows: epochs = 20, lrs = [0.03, 0.1]. For a large encoder with good weights, lower rates
    such as [0.003, 0.01, 0.03] are usual.
    """

    variants: tuple[Part, ...] = Field(PARTS, min_length=1, description="train the last stage and head, or everything")
    epochs: int = Field(10, ge=1, le=10_000, description="passes over the training images")
    batch_size: int = Field(32, ge=2, le=65_536, description="images per step at most; an epoch's are of even size")
    lrs: tuple[Rate, ...] = Field((0.02, 0.06), min_length=1, description="peak learning rates to choose from")
    weight_decays: tuple[Decay, ...] = Field((1e-3,), min_length=1, description="L2 pulls to choose from")
    dropout: float = Field(0.0, ge=0, le=0.95, description="share of features that the head does not see in training")
    class_weights: bool = Field(False, description="weigh classes by N / (K n_c) in the loss: rare ones count as much")
    crop_low: float = Field(0.3, gt=0, le=1, description="smallest share of an image's area that a training view shows")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip of a training view")

    @field_validator("variants", "lrs", "weight_decays")
    @classmethod
    def _once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) < len(values):
            raise ValueError("the same value is given twice")
        return values


@dataclass(frozen=True)
class Tuning:
    """One variant of the protocol on one dataset: `part` of the encoder is trained to tell `classes` apart."""

    part: Part
    settings: Finetune
    classes: int
    seed: int

    def choose(self, train: Examples, val: Examples, metric: str) -> tuple[Point, Scores]:
        """Return the first point of the grid that is best by `metric` on `val`, and its scores there.

        A point whose training diverges is worse than any other. Raises TrialFailed where all diverge.
        """
        best: tuple[Point, Scores] | None = None
        for lr, decay in product(self.settings.lrs, self.settings.weight_decays):
            point = {"lr": lr, "weight_decay": decay}
            try:
                scores = judge(predict(self.fit(train, point), val.images), val.labels)
            except TrialFailed:
                continue
            if best is None or scores.value(metric) > best[1].value(metric):
                best = point, scores
        if best is None:
            raise TrialFailed(f"finetune, {self.part}: training diverges at every rate; try lower finetune.lrs")
        return best

    def fit(self, examples: Examples, point: Point) -> "Classifier":
        """Train a copy of the encoder and a head at one point of the grid; TrialFailed where the loss diverges."""
        with torch.random.fork_rng(devices=_gpus(examples.images.device)):
            run = _Run(self, examples, point)
            for epoch in range(self.settings.epochs):
                if not math.isfinite(run.epoch(epoch)):
                    raise TrialFailed(f"finetune, {self.part}: the loss is not finite at a learning rate of {run.lr:g}")
        return run.model

    def stream(self, *place: int) -> int:
        """The seed of the random numbers at one place of this variant's training."""
        return mix(self.seed, STREAM, PARTS.index(self.part), *place)


class Classifier(nn.Module):
    """A copy of an encoder with a linear head; only `part` of the encoder is trained, the rest stays as it is."""

    def __init__(self, encoder: Encoder, part: Part, classes: int) -> None:
        super().__init__()
        self.encoder = deepcopy(encoder)
        self.part = part
        self.head = nn.Linear(encoder.dim, classes).to(device_of(encoder))  # drawn on the CPU: the same on any device

    def forward(self, view: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return logits `[B,K]` of views `[B,3,S,S]`; features `[B,D]` are multiplied by `keep`, if given."""
        features = self.encoder(view)
        return self.head(features if keep is None else features * keep)  # type: ignore[no-any-return]

    def learn(self) -> list[nn.Parameter]:
        """Open what is trained, freeze the rest with its batch statistics, and return the open parameters."""
        opened = trained_part(self.encoder, self.part)
        chosen = set(opened)
        self.eval()
        self.head.train()
        for parameter in self.encoder.parameters():
            parameter.requires_grad_(parameter in chosen)
        for module in self.encoder.modules():
            if isinstance(module, SharedBatchNorm):
                module.__class__ = _OwnBatchNorm
            own = set(module.parameters())
            if own and own <= chosen:
                module.train()
        return [*opened, *self.head.parameters()]


class _OwnBatchNorm(SharedBatchNorm):
    """Batch normalisation over the batch of this process: one worker evaluates, the others have nothing to share."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        return nn.BatchNorm2d.forward(self, input)


class _Run:
    """One training at one point of the grid."""

    def __init__(self, tuning: Tuning, examples: Examples, point: Point) -> None:
        self.tuning, self.settings, self.examples = tuning, tuning.settings, examples
        self.lr, self.device = point["lr"], examples.images.device
        self.steps = -(-len(examples) // self.settings.batch_size)
        torch.manual_seed(tuning.stream())
        self.model = Classifier(examples.images.encoder, tuning.part, tuning.classes)
        self.optimizer = _optimizer(self.model.learn(), point)
        self.weights = class_weights(examples.labels, tuning.classes) if self.settings.class_weights else None

    def epoch(self, number: int) -> float:
        """Train one epoch and return the sum of its losses."""
        torch.manual_seed(self.tuning.stream(number))  # for an encoder that draws by itself
        order = torch.randperm(len(self.examples), generator=torch.Generator().manual_seed(self.tuning.stream(number)))
        total = torch.zeros((), device=self.device)
        for step, index in enumerate(order.tensor_split(self.steps)):
            self._set_rate((number * self.steps + step + 0.5) / (self.settings.epochs * self.steps))
            loss = self._loss(index, Draw(self.tuning.stream(number, step), len(index), device=self.device))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        return float(total)

    def _loss(self, index: Tensor, draw: Draw) -> Tensor:
        images = self.examples.images.batch(index)
        boxes = views.random_resized_crop(images.aspect, draw, (self.settings.crop_low, 1.0))
        view = views.crop(images, boxes, self.examples.images.size, draw.chance(self.settings.flip))
        keep = None
        if self.settings.dropout:
            keep = (draw.unit(self.model.head.in_features) >= self.settings.dropout) / (1 - self.settings.dropout)
        logits = self.model(view.contiguous(memory_format=torch.channels_last), keep)
        return F.cross_entropy(logits, self.examples.labels[index.to(self.device)], self.weights)

    def _set_rate(self, progress: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * progress))


@torch.inference_mode()
def predict(model: Classifier, images: Images) -> Tensor:
    """Return logits `[N,K]` of the test views; TrialFailed where they are not finite."""
    model.eval()
    logits = torch.cat([model(view) for view in images.centred()])
    if not bool(torch.isfinite(logits).all()):
        raise TrialFailed(f"finetune, {model.part}: the classifier's outputs are not finite; try lower finetune.lrs")
    return logits


def trained_part(encoder: Encoder, part: Part) -> list[nn.Parameter]:
    """The encoder's parameters that a variant trains. Raises BadInput where there are none."""
    found = encoder.last_stage() if part == "last_stage" else list(encoder.parameters())
    if not found:
        raise BadInput(
            f"finetune.variants: {part!r} needs trainable parameters there, and the encoder {encoder.name!r} has none"
        )
    return found


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Return N / (K n_c) for each of `classes`, K the classes that occur; 0 for one that does not."""
    counts = torch.bincount(labels, minlength=classes)
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0)


def _optimizer(parameters: list[nn.Parameter], point: Point) -> SGD:
    """Nesterov SGD; biases and normalisation do not decay."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": point["weight_decay"]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return SGD(groups, lr=point["lr"], momentum=MOMENTUM, nesterov=True, fused=True)


def _gpus(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
