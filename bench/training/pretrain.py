"""One pretraining run: the same function in a lone process and in each of several workers.

Nothing here depends on the number of workers: the global batches, their order and their random numbers
are functions of (seed, epoch, step), and each worker takes its rows of them.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from bench.data.pack import Pack
from bench.distributed import average, average_gradients, rank, share_batch_norms, world_size
from bench.draw import Draw, mix
from bench.errors import BadInput, TrialFailed
from bench.method import Method
from bench.training import checkpoint
from bench.training.optimisers import build_optimizer, rate, set_rate
from bench.trial import Training

ORDER, VIEWS = 1, 2  # separate streams of random numbers


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: the mean of each loss, and images per second of training over all workers."""

    number: int  # 1..epochs
    epochs: int
    losses: dict[str, float]
    seconds: float
    images_per_second: float


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
        self.rows = pack.pretraining_rows()
        self.steps = steps_per_epoch(len(self.rows), training.batch_size)
        self.share = training.batch_size // world_size()
        self.objectives = method.objectives()
        self.optimizers = {name: build_optimizer(training, own) for name, own in self.objectives.items()}

    def epoch(self, number: int) -> Epoch:
        """Train one epoch and return its means."""
        self.method.train()
        torch.manual_seed(mix(self.seed, number, rank()))
        order = self.rows[torch.randperm(len(self.rows), generator=_generator(self.seed, number, ORDER))]
        sums: dict[str, Tensor] = {}
        start = time.perf_counter()
        for step in range(self.steps):
            for name, value in self._step(order, number, step).items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value.detach()
        losses = {name: float(average(total)) / self.steps for name, total in sums.items()}
        seconds = time.perf_counter() - start
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        if bad:
            raise TrialFailed(f"the loss {bad[0]!r} is not finite in epoch {number}: try a lower learning rate")
        images = self.steps * self.training.batch_size
        return Epoch(number, self.training.epochs, losses, seconds, images / seconds)

    def _step(self, order: Tensor, number: int, step: int) -> Mapping[str, Tensor]:
        batch = self.training.batch_size
        mine = slice(rank() * self.share, (rank() + 1) * self.share)
        rows = order[step * batch : (step + 1) * batch][mine]
        draw = Draw(mix(self.seed, number, step, VIEWS), batch, rows=mine, device=self.device)
        with torch.no_grad():
            views = self.method.views(self.pack.batch(rows, self.device), draw, self.training.image_size)
        views = tuple(_channels_last(view) for view in views)
        progress = ((number - 1) * self.steps + step) / (self.training.epochs * self.steps)
        with autocast(self.training.precision, self.device):
            losses = self.method.losses(views, progress)
        self._update(losses, progress)
        self.method.after_step(progress)
        return losses

    def _update(self, losses: Mapping[str, Tensor], progress: float) -> None:
        # The rate of a step is taken at its middle: neither the first step of a warm-up nor the last one is lost.
        now = progress + 0.5 / (self.training.epochs * self.steps)
        for index, (name, parameters) in enumerate(self.objectives.items()):
            for parameter in parameters:
                parameter.grad = None
            losses[name].backward(inputs=parameters, retain_graph=index + 1 < len(self.objectives))
            average_gradients(parameters)
        for optimizer in self.optimizers.values():
            set_rate(optimizer, rate(self.training, now))
            optimizer.step()

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
