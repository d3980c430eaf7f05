"""What joint-embedding methods put on an encoder: projection heads and momentum twins."""

import copy
import itertools
import math

import torch
from torch import Tensor, nn


def mlp(*widths: int, norm_last: bool = False, bias_last: bool = True, affine_last: bool = True) -> nn.Sequential:
    """A projection head `[B,widths[0]] -> [B,widths[-1]]`: linear, batch norm and ReLU, ending in a linear layer.

    `norm_last`: the last layer is followed by a batch norm too; `bias_last`: it has a bias of its own;
    `affine_last`: the last batch norm scales and shifts.
    """
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=bias_last and not norm_last))
    return nn.Sequential(*layers, *([nn.BatchNorm1d(widths[-1], affine=affine_last)] if norm_last else []))


def twin(module: nn.Module) -> nn.Module:
    """A copy of `module` that no gradient reaches, to be moved by `follow` (a momentum or teacher network)."""
    copied = copy.deepcopy(module)
    copied.requires_grad_(False)
    return copied


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float, *, buffers: bool = False) -> None:
    """Move `target` to momentum x target + (1 - momentum) x online, in place; 0 <= momentum <= 1.

    `buffers`: floating buffers (statistics of batch norms) are moved in the same way.
    """
    pairs = list(zip(target.parameters(), online.parameters(), strict=True))
    if buffers:
        moving = zip(target.buffers(), online.buffers(), strict=True)
        pairs += [(mine, theirs) for mine, theirs in moving if mine.is_floating_point()]  # type: ignore[misc]
    for mine, theirs in pairs:
        mine.lerp_(theirs.to(mine.dtype), 1 - momentum)


def cosine_momentum(base: float, progress: float) -> float:
    """The momentum at `progress` 0..1: from `base` up to 1 along half a cosine (BYOL, section 3.3)."""
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


def spread(embeddings: Tensor) -> Tensor:
    """How far `[B,D]` embeddings are from collapse: the mean deviation of their unit vectors times sqrt(D), 0..about 1.

    It is logged, not optimised (SimSiam, section 4.1).
    """
    unit = nn.functional.normalize(embeddings.detach().float(), dim=1)
    return unit.std(0).mean() * math.sqrt(embeddings.shape[1])
