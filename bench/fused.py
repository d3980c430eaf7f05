"""Whether a device runs the kernels of `kernels`; where not, torch's own operations do the same in more passes."""

import importlib
import logging
from functools import cache
from typing import Any

import torch

_log = logging.getLogger(__name__)


@cache
def fused(device: torch.device) -> Any:
    """The module `kernels` where `device` runs all of it, else None; tried once, on a picture that no kernel changes.

    Triton needs a GPU that it knows, and a C compiler with Python's headers to start a kernel. Raises
    torch.OutOfMemoryError, which says nothing of either.
    """
    if device.type != "cuda":
        return None
    try:
        kernels = importlib.import_module("bench.kernels")
        wrong = _changed(kernels, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler's, a driver's or Triton's own
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        if not wrong:
            return kernels
        reason = f"other numbers from {', '.join(wrong)}"
    _log.warning("views are made without fused kernels, in more time: Triton does not run here (%s)", reason)
    return None


def _changed(kernels: Any, device: torch.device) -> list[str]:
    """The kernels that change a dark gray picture where they should leave it as it is."""
    levels = torch.tensor([[0, 32], [64, 96]], dtype=torch.uint8, device=device).expand(1, 3, 2, 2)
    picture, one = levels / 255, torch.ones(1, device=device)
    index = torch.tensor([[[0], [1]]], device=device)
    chosen, order = torch.tensor([True], device=device), torch.zeros(1, dtype=torch.int64, device=device)
    slots = torch.tensor([[[1.0, 0, 0], [1, 1, 0], [1, 0, 1]]], device=device)
    found = {
        "down": kernels.band(levels, index, torch.full((1, 2, 1), 1 / 255, device=device), 2),
        "across": kernels.band(picture, index, torch.ones(1, 2, 1, device=device), 3, unit=True),
        "jitter": kernels.jitter(picture.clone(), slots, 0 * one, order, chosen),
        "gray": kernels.change(picture.clone(), "gray", chosen),
        "gamma": kernels.change(picture.clone(), "gamma", chosen, one),
        "solarize": kernels.change(picture.clone(), "solarize", chosen),
    }
    return [name for name, values in found.items() if not torch.allclose(values, picture, atol=1e-4)]
