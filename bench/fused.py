"""Whether a device runs the kernels of `kernels`; where not, torch's own operations do the same in more passes."""

import importlib
import logging
from functools import cache
from typing import Any

import torch

_log = logging.getLogger(__name__)


@cache
def fused(device: torch.device) -> Any:
    """The module `kernels` where `device` runs it, else None; tried once, by a sum whose result is known.

    Triton needs a C compiler to start a kernel, and a GPU that it knows.
    """
    if device.type != "cuda":
        return None
    try:
        kernels = importlib.import_module("bench.kernels")
        index = torch.tensor([[[0, 1], [1, 2]]], device=device)
        found = kernels.band(torch.arange(3.0, device=device).view(1, 1, 3, 1), index, torch.ones_like(index) / 2, 2)
        good = found.flatten().tolist() == [0.5, 1.5]
    except Exception as error:  # a compiler's, a driver's or Triton's own
        good, reason = False, f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        reason = f"it gives {found.flatten().tolist()} for [0.5, 1.5]"
    if good:
        return kernels
    _log.warning("views are made without fused kernels, in more time: Triton does not run here (%s)", reason)
    return None
