"""Several workers on one batch: what they gather, average and normalise together.

With one process every function here is the identity. Two workers of batch b must give the loss and the
gradients of one worker of batch 2b; `tests/test_distributed.py` shows it.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import Parameter


def world_size() -> int:
    """How many workers train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's number, 0 <= rank < world_size()."""
    return dist.get_rank() if world_size() > 1 else 0


class _Gather(Function):
    """All-gather along the first dimension; each worker gets back the gradient that all have for its rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = rows.shape[0]
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather(rows: Tensor) -> Tensor:
    """Return `[world*b,...]`: the `[b,...]` rows of every worker in rank order, with gradient to all of them.

    Each worker's loss covers its own rows only and gradients are averaged over workers afterwards
    (`average_gradients`); then the sum that flows back here gives the gradient of the mean loss.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


class _Normalise(Function):
    """Batch normalisation by the moments of all workers' samples, as many on each (Ioffe and Szegedy 2015, section 3).

    Each pass over the samples is one of torch's own kernels; only two numbers per channel travel, once each way.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        own = torch.stack(_moments(values))
        parts = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(parts, own)
        means, variances = torch.stack(parts).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        ctx.save_for_backward(values, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(values, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        values, weight, mean, variance = ctx.saved_tensors
        form = torch.channels_last if values.dim() == 4 and _is_channels_last(values) else torch.contiguous_format
        gradient = gradients[0].contiguous(memory_format=form)
        _, slope, offset = torch.ops.aten.native_batch_norm_backward(
            gradient, values, weight, mean, variance, None, None, False, ctx.eps, [False, True, True]
        )
        total = torch.stack([slope, offset])
        dist.all_reduce(total)
        total /= values.numel() // values.shape[1] * world_size()
        invstd, shape = torch.rsqrt(variance + ctx.eps), [1, -1] + [1] * (values.dim() - 2)
        rate = weight * invstd
        given = values - mean.view(shape)  # products with the mean would cancel, and leave their rounding
        torch.addcmul((-rate * total[1]).view(shape), given, (-rate * invstd * total[0]).view(shape), out=given)
        given.addcmul_(gradient, rate.view(shape))
        return given, slope, offset, None


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance `[C]` of `[B,C]` or `[B,C,H,W]`."""
    if values.device.type == "cpu":  # var_mean is many times slower there
        mean, variance = torch.ops.aten.batch_norm_update_stats(values, None, None, 0.0)
        return mean, variance
    variance, mean = torch.var_mean(values, [0, *range(2, values.dim())], correction=0)
    return mean, variance


def _is_channels_last(values: Tensor) -> bool:
    return values.is_contiguous(memory_format=torch.channels_last) and not values.is_contiguous()


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batch of all workers, `[B,C]` or `[B,C,H,W]`, on any device.

    torch's SyncBatchNorm is CUDA only in training; this one computes the same from summed moments.
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        if input.dim() not in (2, 4):
            raise ValueError(f"expected [B,C] or [B,C,H,W], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalise each channel by the moments of the global batch."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        values = input.float()
        count = values.numel() // values.shape[1] * world_size()
        weight = self.weight if self.affine else values.new_ones(self.num_features)
        bias = self.bias if self.affine else values.new_zeros(self.num_features)
        normal, mean, variance = _Normalise.apply(values, weight, bias, self.eps)
        self._track(mean, variance * count / max(count - 1, 1))
        normalised: Tensor = normal.to(input.dtype)
        return normalised

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def share_batch_norms(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm in `module` by one over all workers, in place; returns the module."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d) and not isinstance(child, SharedBatchNorm):
            shared = SharedBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            state = child.state_dict()
            shared.to(next(iter(state.values())).device if state else None).train(child.training)
            shared.load_state_dict(state)
            for own, parameter in zip(shared.parameters(), child.parameters(), strict=True):
                own.requires_grad_(parameter.requires_grad)
            setattr(module, name, shared)
        else:
            share_batch_norms(child)
    return module


def average_gradients(parameters: Iterable[Parameter]) -> None:
    """Replace each gradient by its mean over the workers, in one message, of which the gradients are parts then."""
    if world_size() == 1:
        return
    moved = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    if not moved:
        return
    sizes = [parameter.numel() for parameter, _ in moved]
    flat = moved[0][1].new_empty(sum(sizes))
    for (parameter, gradient), part in zip(moved, flat.split(sizes), strict=True):
        parameter.grad = _laid_out(part, parameter).copy_(gradient)
    dist.all_reduce(flat)
    flat /= world_size()


def _laid_out(part: Tensor, like: Tensor) -> Tensor:
    """A view of `[n]` numbers in the shape of a tensor of n, and where its memory has no gaps in its order too."""
    dense = like.is_contiguous() or (like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last))
    return part.as_strided(like.shape, like.stride()) if dense else part.view(like.shape)


def average(value: Tensor) -> Tensor:
    """Return the mean of a tensor over the workers, without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
        value /= world_size()
    return value
