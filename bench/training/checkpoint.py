"""Checkpoints: tensors in safetensors, the rest as JSON in its header. Loading one runs no code.

A checkpoint is one file, written whole beside the old one and then renamed over it: a kill at any moment leaves the old
or the new one, never a mixture. It carries a checksum, and the one before it may be kept: a file that the disk or the
network has damaged is known, and training goes on from the one before it.
"""

import json
import os
import re
import uuid
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from bench import mirror
from bench.errors import TrialFailed
from bench.patience import PASSING, patiently

FORMAT = 1


class Found(NamedTuple):
    """The newest checkpoint that is whole: its place in `versions`, its content, and what is wrong with newer ones."""

    number: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    problems: dict[Path, str]


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, keep: bool = False) -> None:
    """Write `tensors` and JSON-able `facts` to `path`, atomically; `keep`: what was there becomes the one before.

    Storage that is away for a while is waited for. Raises OSError; what was there before is then still there. Where
    results lie on a store, it gets those with `keep` only as often as that takes no more than a tenth of the time.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"format": FORMAT, **facts}, allow_nan=False)
    patiently(_write, path, held, {"bench": text, "crc32": _checksum(held, text)}, keep)


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str], keep: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors' own file is for this user alone, whatever the umask says
        with _system_errors(temporary):
            save_file(dict(tensors), temporary, dict(header))
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        mirror.publish(temporary, path, before=versions(path)[1] if keep else None, sparing=keep)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """Raise as OSError what safetensors says only in its error's text: which error of the system it was."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def versions(path: Path) -> tuple[Path, Path]:
    """The file of a checkpoint, and that of the one before it."""
    return path, path.with_name(f"{path.stem}.previous{path.suffix}")


def remove(path: Path) -> None:
    """Remove a checkpoint and the one before it."""
    mirror.remove(*versions(path))


def load(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote. Raises TrialFailed for a file that is not a whole checkpoint of this format.

    Raises OSError where storage stays away: the file may be whole.
    """
    try:
        tensors, text, checksum = patiently(_read, path)
        facts = json.loads(text)
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in PASSING:
            raise
        raise TrialFailed(f"{path}: not a readable checkpoint: {error}") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        found = facts.get("format") if isinstance(facts, dict) else None
        raise TrialFailed(f"{path}: checkpoint format {found}, this version reads {FORMAT}")
    if checksum not in ("", _checksum(tensors, text)):
        raise TrialFailed(f"{path}: not a readable checkpoint: its checksum does not fit, the file is damaged")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, facts


def _read(path: Path) -> tuple[dict[str, Tensor], str, str]:
    with _system_errors(path), safe_open(path, framework="pt", device="cpu") as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return tensors, header.get("bench", "{}"), header.get("crc32", "")  # older ones have no checksum


def newest(path: Path, device: str = "cpu") -> Found:
    """The newest of a checkpoint's two versions that is whole; number 2, without content, where none is."""
    problems: dict[Path, str] = {}
    for number, version in enumerate(versions(path)):
        if version.exists():
            try:
                return Found(number, *load(version, device), problems)
            except TrialFailed as error:
                problems[version] = str(error)
    return Found(len(versions(path)), {}, {}, problems)


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """CRC-32 over names, types, shapes, bytes and `text`; threads share the bytes of the tensors."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        sums = pool.map(_crc32, tensors.values())
        parts = [
            f"{name} {tensor.dtype} {tuple(tensor.shape)} {number}"
            for (name, tensor), number in zip(tensors.items(), sums, strict=True)
        ]
    return f"{zlib.crc32(chr(10).join([text, *sorted(parts)]).encode()):08x}"


def _crc32(tensor: Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)


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
