"""One pretraining run: the same function in a lone process and in each of several workers.

Nothing here depends on the number of workers: the global batches, their order and their random numbers
are functions of (seed, epoch, step), and each worker takes its rows of them.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from bench.data.pack import Pack
from bench.distributed import average, average_gradients, rank, share_batch_norms, world_size
from bench.draw import Draw, mix
from bench.errors import BadInput, TrialFailed
from bench.images import ImageBatch
from bench.method import Method, SupervisedMethod
from bench.training import checkpoint
from bench.training.optimisers import build_optimizer, rate, set_rate
from bench.trial import Training

ORDER, VIEWS = 1, 2  # separate streams of random numbers
VALIDATED = 256  # validation images at most that a method's own figures are taken on


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: the mean of each loss, images per second of training over all workers, and the method's
    own figures on validation images.
    """

    number: int  # 1..epochs
    epochs: int
    losses: dict[str, float]
    seconds: float
    images_per_second: float
    validation: dict[str, float] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """Losses and validation figures together, the latter as "val NAME"."""
        return self.losses | {f"val {name}": value for name, value in self.validation.items()}


@dataclass
class History:
    """All epochs of a run, also those before an interruption."""

    epochs: list[Epoch] = field(default_factory=list)
    peak_memory_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Seconds spent in training, without evaluation and checkpoints."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def images_per_second(self) -> float:
        """Images per second over the run, the first epoch (warm-up of caches) left out where there are more."""
        epochs = self.epochs[1:] or self.epochs
        seconds = sum(epoch.seconds for epoch in epochs)
        return sum(epoch.images_per_second * epoch.seconds for epoch in epochs) / seconds if seconds else 0.0


def pretrain(
    method: Method,
    pack: Pack,
    training: Training,
    seed: int,
    *,
    state: Path,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> History:
    """Train `method` on the pretraining rows of `pack`; resume from `state` where it exists.

    `on_epoch` is called after each epoch, once its checkpoint is on disk; it may raise to stop. Every rank
    must call this with the same arguments. Raises BadInput where a batch does not fit the data, TrialFailed
    when a loss is not finite.
    """
    if not type(method).trains or training.epochs == 0:
        return History()
    share_batch_norms(method).to(memory_format=torch.channels_last)
    run = _Run(method, pack, training, seed)
    history = run.restore(state)
    for number in range(len(history.epochs) + 1, training.epochs + 1):
        history.epochs.append(run.epoch(number))
        history.peak_memory_bytes = max(history.peak_memory_bytes, peak_memory(run.device))
        if rank() == 0:
            run.save(state, history)
        on_epoch(history.epochs[-1])
    return history


class _Run:
    """A method in training, with its optimisers and its data."""

    def __init__(self, method: Method, pack: Pack, training: Training, seed: int) -> None:
        self.method, self.pack, self.training, self.seed = method, pack, training, seed
        self.device = next(method.parameters()).device
        self.labelled = isinstance(method, SupervisedMethod)
        self.rows = pack.rows("train") if self.labelled else pack.pretraining_rows()
        self.images = len(pack.pretraining_rows())
        self.steps = steps_per_epoch(self.images, training.batch_size)
        self.share = training.batch_size // world_size()
        self.optimizers = build_optimizers(method, training)

    def epoch(self, number: int) -> Epoch:
        """Train one epoch and return its means."""
        self.method.train()
        torch.manual_seed(mix(self.seed, number, rank()))
        order = self._order(number)
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        start = time.perf_counter()
        for step in range(self.steps):
            for losses in self._batch(order, number, step):
                for name, value in losses.items():
                    sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value.detach()
                    counts[name] = counts.get(name, 0) + 1
        means = {name: float(average(total)) / counts[name] for name, total in sums.items()}
        seconds = time.perf_counter() - start
        images = self.steps * self.training.batch_size
        epoch = Epoch(number, self.training.epochs, means, seconds, images / seconds, self._validation())
        bad = [name for name, value in epoch.figures.items() if not math.isfinite(value)]
        if bad:
            raise TrialFailed(f"the loss {bad[0]!r} is not finite in epoch {number}: try a lower learning rate")
        return epoch

    def _order(self, number: int) -> Tensor:
        """The rows of an epoch; labelled ones come round again until the epoch is as long as an unlabelled one."""
        generator = _generator(self.seed, number, ORDER)
        rounds = -(-self.images // len(self.rows)) if self.labelled else 1
        return torch.cat([self.rows[torch.randperm(len(self.rows), generator=generator)] for _ in range(rounds)])

    def _batch(self, order: Tensor, number: int, step: int) -> Iterator[Mapping[str, Tensor]]:
        batch = self.training.batch_size
        mine = slice(rank() * self.share, (rank() + 1) * self.share)
        rows = order[step * batch : (step + 1) * batch][mine]
        draw = Draw(mix(self.seed, number, step, VIEWS), batch, rows=mine, device=self.device)
        images = self.pack.batch(rows, self.device, labelled=self.labelled)
        progress = ((number - 1) * self.steps + step) / (self.training.epochs * self.steps)
        # The rate of a step is taken at its middle: neither the first step of a warm-up nor the last one is lost.
        now = rate(self.training, progress + 0.5 / (self.training.epochs * self.steps))
        return train_batch(self.method, self.optimizers, self.training, images, draw, progress, now)

    @torch.no_grad()
    def _validation(self) -> dict[str, float]:
        if type(self.method).validation is Method.validation or rank() > 0:
            return {}
        rows = self.pack.rows("val")[:VALIDATED]
        if not len(rows):
            return {}
        self.method.eval()
        found = self.method.validation(self.pack.batch(rows, self.device), self.training.image_size)
        return {name: float(value) for name, value in found.items()}

    def save(self, path: Path, history: History) -> None:
        """Write everything that the next epoch depends on."""
        tensors = checkpoint.module_tensors(self.method) | checkpoint.optimizer_tensors(self.optimizers)
        facts = {
            "epochs": [vars(epoch) for epoch in history.epochs],
            "peak_memory_bytes": history.peak_memory_bytes,
        }
        checkpoint.save(path, tensors, facts)

    def restore(self, path: Path) -> History:
        """Continue from `path` where it exists; return the history until then."""
        if not path.exists():
            return History()
        tensors, facts = checkpoint.load(path, str(self.device))
        checkpoint.restore_module(self.method, tensors)
        checkpoint.restore_optimizers(self.optimizers, tensors)
        return History([Epoch(**epoch) for epoch in facts["epochs"]], facts["peak_memory_bytes"])


def train_batch(
    method: Method,
    optimizers: Mapping[str, Optimizer],
    training: Training,
    images: ImageBatch,
    draw: Draw,
    progress: float,
    learning_rate: float,
) -> Iterator[Mapping[str, Tensor]]:
    """Take the optimiser steps that one batch gives; yields the losses of each."""
    with torch.no_grad():
        views = method.views(images, draw, training.image_size)
    for part in method.steps(tuple(_channels_last(view) for view in views)):
        with autocast(training.precision, images.device):
            losses = method.losses(part, progress)
        _update(optimizers, losses, learning_rate)
        method.after_step(progress)
        yield losses


def _update(optimizers: Mapping[str, Optimizer], losses: Mapping[str, Tensor], learning_rate: float) -> None:
    """Step every objective that has a loss, with gradients that were all taken before the first step."""
    active = {name: optimizer for name, optimizer in optimizers.items() if name in losses}
    for index, (name, optimizer) in enumerate(active.items()):
        optimizer.zero_grad(set_to_none=True)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        losses[name].backward(inputs=parameters, retain_graph=index + 1 < len(active))
        average_gradients(parameters)
    for optimizer in active.values():
        set_rate(optimizer, learning_rate)
        optimizer.step()


def build_optimizers(method: Method, training: Training) -> dict[str, Optimizer]:
    """An optimiser for each of the method's objectives."""
    return {name: build_optimizer(training, parameters) for name, parameters in method.objectives().items()}


def steps_per_epoch(images: int, batch: int) -> int:
    """Return how many whole batches an epoch has. Raises BadInput where there is none."""
    if images < batch:
        fitting = 2 ** int(math.log2(max(images, 2)))
        raise BadInput(
            f"pretrain.batch_size {batch} is more than the {images} pretraining images; "
            f"try --set pretrain.batch_size={fitting}"
        )
    return images // batch


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The arithmetic of a forward pass: "fp32", or "bf16" autocast."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of this run on a GPU, of the process (whatever it ran before) on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(*parts))


def _channels_last(view: Tensor) -> Tensor:
    return view.contiguous(memory_format=torch.channels_last) if view.ndim == 4 else view
