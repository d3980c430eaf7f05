"""One batch: its views, its losses, its gradients and the steps of its optimisers; whole, or in parts for memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from bench.distributed import average_gradients, world_size
from bench.draw import Draw
from bench.errors import TrialFailed
from bench.images import ImageBatch
from bench.method import Method, Views
from bench.training.optimisers import set_rate
from bench.trial import Training


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
    for part in method.steps(_views(method, images, draw, training)):
        _clear(optimizers)
        losses = _backward(method, optimizers, training, part, progress)
        _move(optimizers, losses, learning_rate)
        method.after_step(progress)
        yield {name: value.detach() for name, value in losses.items()}


def train_in_parts(
    method: Method,
    optimizers: Mapping[str, Optimizer],
    training: Training,
    pieces: Iterable[tuple[ImageBatch, Draw]],
    count: int,
    progress: float,
    learning_rate: float,
) -> Mapping[str, Tensor]:
    """Take the one optimiser step that a batch cut into `count` equal `pieces` gives; returns its losses."""
    _clear(optimizers)
    means: dict[str, Tensor] = {}
    for images, draw in pieces:
        views = _views(method, images, draw, training)
        for name, value in _backward(method, optimizers, training, views, progress, 1 / count).items():
            means[name] = means.get(name, torch.zeros_like(value)) + value.detach() / count
    _move(optimizers, means, learning_rate)
    method.after_step(progress)
    return means


@torch.no_grad()
def _views(method: Method, images: ImageBatch, draw: Draw, training: Training) -> Views:
    return tuple(_channels_last(view) for view in method.views(images, draw, training.image_size))


def _clear(optimizers: Mapping[str, Optimizer]) -> None:
    for optimizer in optimizers.values():
        optimizer.zero_grad(set_to_none=True)


def _backward(
    method: Method,
    optimizers: Mapping[str, Optimizer],
    training: Training,
    views: Views,
    progress: float,
    weight: float = 1.0,
) -> Mapping[str, Tensor]:
    """Add the gradients of every objective that has a loss, `weight` times; all before any optimiser's step."""
    with autocast(training.precision, views[0].device):
        losses = method.losses(views, progress)
    active = [name for name in optimizers if name in losses]
    for index, name in enumerate(active):
        loss = losses[name] if weight == 1 else losses[name] * weight
        loss.backward(inputs=_parameters(optimizers[name]), retain_graph=index + 1 < len(active))
    return losses


def _move(optimizers: Mapping[str, Optimizer], losses: Mapping[str, Tensor], learning_rate: float) -> None:
    """Step every optimiser whose objective has a loss, with the gradients of all workers."""
    active = [optimizer for name, optimizer in optimizers.items() if name in losses]
    for optimizer in active:
        average_gradients(_parameters(optimizer))
    try:
        for optimizer in active:
            set_rate(optimizer, learning_rate)
            optimizer.step()
    except torch.OutOfMemoryError as error:  # some parameters may have moved: the step cannot be taken again
        raise TrialFailed(f"out of memory in the optimiser's step: {str(error).splitlines()[0]}") from None


def _parameters(optimizer: Optimizer) -> Sequence[Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def is_separable(method: Method) -> bool:
    """Whether a batch taken in parts, gradients summed, is the same training: no sample sees another one.

    Up to rounding, that is. Batch normalisation couples the samples of any method.
    """
    coupled = any(isinstance(module, _BatchNorm) for module in method.modules())
    return method.separable() and not coupled and type(method).steps is Method.steps


def out_of_memory(training: Training, method: Method) -> str:
    """What to do where a batch does not fit into memory."""
    why = "" if is_separable(method) else ", and its samples depend on each other: it cannot be taken in parts"
    return (
        f"out of memory: a batch of {training.batch_size} images of {training.image_size} px does not fit{why}; "
        f"more workers share it and give the same result (--workers {2 * world_size()}), a smaller "
        "pretrain.batch_size, pretrain.image_size or pretrain.backbone needs less"
    )


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The arithmetic of a forward pass: "fp32", or "bf16" autocast."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _channels_last(view: Tensor) -> Tensor:
    return view.contiguous(memory_format=torch.channels_last) if view.ndim == 4 else view
