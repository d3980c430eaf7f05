"""One pretraining run: the same function in a lone process and in each of several workers.

Nothing here depends on the number of workers: the global batches, their order and their random numbers
are functions of (seed, epoch, step), and each worker takes its rows of them.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from bench import mirror
from bench.data.pack import Pack
from bench.distributed import average, rank, share_batch_norms, world_size
from bench.draw import Draw, mix
from bench.errors import BadInput, TrialFailed
from bench.images import ImageBatch
from bench.method import Method, SupervisedMethod
from bench.training import checkpoint
from bench.training.optimisers import build_optimizer, rate
from bench.training.step import is_separable, out_of_memory, train_in_parts
from bench.training.step import train_batch as train_batch
from bench.trial import Training

ORDER, VIEWS = 1, 2  # separate streams of random numbers
CHECKED = 50  # steps between two looks whether the losses are finite; each look waits for the device once
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
    parts: int = 1  # in which each worker takes its share of a batch, one after the other, for want of memory

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
    on_note: Callable[[str], None] = lambda _: None,
) -> History:
    """Train `method` on the pretraining rows of `pack`; resume from `state`, or from the one before it.

    `on_epoch` is called after each epoch, once its checkpoint is on disk, and again with the last one where training
    resumes, for the process may have ended before it was heard; it may raise to stop. `on_note` hears in a
    line what did not go as planned. Every rank must call this with the same arguments. Raises BadInput where a
    batch does not fit the data, TrialFailed when a loss is not finite or the memory does not suffice, OSError where
    a checkpoint cannot be written.
    """
    if not type(method).trains or training.epochs == 0:
        return History()
    share_batch_norms(method).to(memory_format=torch.channels_last)
    run = _Run(method, pack, training, seed, on_note)
    history = run.restore(state)
    if history.epochs:
        on_epoch(history.epochs[-1])
    for number in range(len(history.epochs) + 1, training.epochs + 1):
        history.epochs.append(run.epoch(number))
        history.peak_memory_bytes = max(history.peak_memory_bytes, peak_memory(run.device))
        history.parts = run.parts
        if rank() == 0:
            run.save(state, history)
        on_epoch(history.epochs[-1])
    return history


class _Run:
    """A method in training, with its optimisers and its data."""

    def __init__(self, method: Method, pack: Pack, training: Training, seed: int, note: Callable[[str], None]) -> None:
        self.method, self.pack, self.training, self.seed, self.note = method, pack, training, seed, note
        self.parts = 1
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
            for losses in self._fitting(order, number, step):
                for name, value in losses.items():
                    sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value
                    counts[name] = counts.get(name, 0) + 1
            if (step + 1) % CHECKED == 0:
                self._check(sums, number, step + 1)
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

    def _check(self, sums: Mapping[str, Tensor], number: int, step: int) -> None:
        """Raise TrialFailed, on every rank alike, if a loss of an epoch's first `step` steps was not finite."""
        finite = torch.isfinite(average(torch.stack(list(sums.values())))).tolist()
        bad = [name for name, good in zip(sums, finite, strict=True) if not good]
        if bad:
            raise TrialFailed(
                f"the loss {bad[0]!r} is not finite in epoch {number}, by step {step} of {self.steps}: "
                "try a lower learning rate"
            )

    def _fitting(self, order: Tensor, number: int, step: int) -> list[Mapping[str, Tensor]]:
        """The losses of a batch's optimiser steps; where the memory does not suffice, the batch is taken in parts."""
        while True:
            try:
                return list(self._batch(order, number, step))
            except torch.OutOfMemoryError:
                pass  # outside of this block nothing holds the frames, and the memory, of what failed
            self._take_in_more_parts(number)

    def _take_in_more_parts(self, number: int) -> None:
        if not is_separable(self.method) or self.parts == self.share:
            raise TrialFailed(out_of_memory(self.training, self.method))
        self.parts = next(n for n in range(2 * self.parts, self.share + 1) if self.share % n == 0)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        size = self.share // self.parts
        self.note(f"out of memory in epoch {number}: gradients are summed over {self.parts} parts of {size} images")

    def _batch(self, order: Tensor, number: int, step: int) -> Iterator[Mapping[str, Tensor]]:
        progress = ((number - 1) * self.steps + step) / (self.training.epochs * self.steps)
        # The rate of a step is taken at its middle: neither the first step of a warm-up nor the last one is lost.
        now = rate(self.training, progress + 0.5 / (self.training.epochs * self.steps))
        given = (self.method, self.optimizers, self.training)
        if self.parts == 1:
            return train_batch(*given, *self._piece(order, number, step, 0), progress, now)
        pieces = (self._piece(order, number, step, part) for part in range(self.parts))
        return iter([train_in_parts(*given, pieces, self.parts, progress, now)])

    def _piece(self, order: Tensor, number: int, step: int, part: int) -> tuple[ImageBatch, Draw]:
        """The images of one part of this worker's share of a batch, and their random numbers."""
        batch, size = self.training.batch_size, self.share // self.parts
        first = rank() * self.share + part * size
        mine = slice(first, first + size)
        rows = order[step * batch : (step + 1) * batch][mine]
        draw = Draw(mix(self.seed, number, step, VIEWS), batch, rows=mine, device=self.device)
        return self.pack.batch(rows, self.device, labelled=self.labelled), draw

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
            "parts": history.parts,
        }
        checkpoint.save(path, tensors, facts, keep=True)

    def restore(self, path: Path) -> History:
        """Continue from `path`, or from the checkpoint before it; return the history until then.

        The first worker says which one is whole: all of them go on from the same.
        """
        found = checkpoint.newest(path, str(self.device)) if rank() == 0 else None
        number = _from_first(found.number if found else 0, self.device)
        for file, problem in found.problems.items() if found else ():
            self.note(f"{problem}; training {_GOES_ON[number]}")
            mirror.remove(file)  # else it would become the one before the next
        if number == len(checkpoint.versions(path)):
            return History()
        if found:
            tensors, facts = found.tensors, found.facts
        else:
            tensors, facts = checkpoint.load(checkpoint.versions(path)[number], str(self.device))
        checkpoint.restore_module(self.method, tensors)
        checkpoint.restore_optimizers(self.optimizers, tensors)
        self.parts = facts.get("parts", 1)
        return History([Epoch(**epoch) for epoch in facts["epochs"]], facts["peak_memory_bytes"], self.parts)


_GOES_ON = ("goes on", "goes on from the checkpoint before it", "starts anew")


def _from_first(value: int, device: torch.device) -> int:
    """The `value` that the first worker gives."""
    if world_size() == 1:
        return value
    held = torch.tensor(value, device=device)
    dist.broadcast(held, 0)
    return int(held)


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


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of this run on a GPU, of the process (whatever it ran before) on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(*parts))
