"""Optimisers by name, LARS, and the learning-rate schedule as a pure function of progress."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer

from bench.trial import Training


class LARS(Optimizer):
    """SGD with momentum whose rate follows each layer's weight-to-gradient norm (You et al. 2017, algorithm 1).

    As in Barlow Twins' code, the gradient's norm is taken with the weight decay in it, and the schedule's rate
    multiplies the momentum instead of being part of it.

    Groups with `adapt` false (biases, normalisation) are updated by plain momentum SGD, as in SimCLR. As in torch's SGD
    the rate multiplies the momentum and not what enters it: the two differ while the rate changes.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; closures are not supported."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if group["adapt"]:
            gradient = gradient + group["weight_decay"] * parameter
            weight, slope = parameter.norm(), gradient.norm()
            usable = (weight > 0) & (slope > 0)
            rate = torch.where(usable, group["trust"] * weight / slope.clamp(min=1e-12), 1.0)
            gradient = gradient * rate
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        parameter.sub_(group["lr"] * state["momentum_buffer"])


def build_optimizer(training: Training, parameters: Sequence[Parameter]) -> Optimizer:
    """Build the optimiser that `training` names; biases and normalisation get no weight decay."""
    weights, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": training.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    match training.optimizer:
        case "sgd":
            return _begun(SGD(groups, lr=training.lr, momentum=training.momentum, fused=True))
        case "adam":
            return Adam(groups, lr=training.lr, fused=True)
        case "adamw":
            return AdamW(groups, lr=training.lr, fused=True)
        case "lars":
            for group in groups:
                group["adapt"] = group["params"] is weights
            return LARS(groups, lr=training.lr, momentum=training.momentum)


def _begun(optimizer: SGD) -> SGD:
    """Give every parameter its momentum, at zero: the fused SGD fails where one gets its first gradient later."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def rate(training: Training, progress: float) -> float:
    """Return the learning rate at `progress` (0..1): linear warm-up, then half a cosine down to 0."""
    if progress < training.warmup:
        return training.lr * progress / training.warmup
    if training.warmup >= 1:
        return training.lr
    share = (progress - training.warmup) / (1 - training.warmup)
    return training.lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def set_rate(optimizer: Optimizer, value: float) -> None:
    """Give every group of `optimizer` the learning rate `value`."""
    for group in optimizer.param_groups:
        group["lr"] = value
