"""Checkpoints: tensors in safetensors, the rest as JSON in its header. Loading one runs no code.

A checkpoint is one file, written whole beside the old one and then renamed over it: a kill at any moment
leaves the old or the new one, never a mixture.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from bench.errors import TrialFailed

FORMAT = 1


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write `tensors` and JSON-able `facts` to `path`, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    header = {"bench": json.dumps({"format": FORMAT, **facts}, allow_nan=False)}
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary, header)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote. Raises TrialFailed for a file that is not a whole checkpoint of this format."""
    try:
        with safe_open(path, framework="pt", device=device) as file:
            facts = json.loads((file.metadata() or {}).get("bench", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise TrialFailed(f"{path}: not a readable checkpoint: {error}") from None
    if facts.get("format") != FORMAT:
        raise TrialFailed(f"{path}: checkpoint format {facts.get('format')}, this version reads {FORMAT}")
    return tensors, facts


def optimizer_tensors(optimizers: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    """Flatten optimiser states to `optimizer/NAME/PARAMETER/KEY`; rates and decays come from the trial."""
    return {
        f"optimizer/{name}/{index}/{key}": value
        for name, optimizer in optimizers.items()
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizers(optimizers: Mapping[str, Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of `optimizer_tensors` back."""
    for name, optimizer in optimizers.items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for path, tensor in tensors.items():
            kind, _, rest = path.partition("/")
            owner, _, key = rest.partition("/")
            if kind == "optimizer" and owner == name:
                index, _, field = key.partition("/")
                state.setdefault(int(index), {})[field] = _laid_out_as(parameters[int(index)], tensor)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    # Fused optimisers walk parameter and state side by side in memory: a channels-last parameter needs its
    # state in the same order, and a file has none.
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's parameters and buffers under `module/NAME`."""
    return {f"module/{name}": tensor for name, tensor in module.state_dict().items()}


def restore_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of `module_tensors` back; a missing or superfluous one is an error."""
    own = {name.removeprefix("module/"): value for name, value in tensors.items() if name.startswith("module/")}
    module.load_state_dict(own)
