"""A pretended GPU: what runs on "cuda" computes on the CPU, and is held to the rules of a device of its own.

A tensor there says that it lies on `cuda:0`. An operation on tensors of both sides is refused as CUDA refuses it, and
what makes the host wait for the device is counted: reading a value, shapes that depend on values, copies that block.
There are no gradients (autograd asks the driver for streams): a backward pass leaves zeros in their place, so that the
whole way of a trial is walked but nothing is learned. What a GPU computes, and how fast, only a GPU can tell.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

from bench import colour, resample
from bench.training import checkpoint

aten = torch.ops.aten
HERE, THERE = torch.device("cpu"), torch.device("cuda", 0)
PRETENDED = "pretended"  # its name
MEMORY = 1 << 34  # bytes
# Operations that take tensors of both sides.
_BETWEEN = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
# Operations whose result the host needs to go on; those that this project has met.
_WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
    aten.multinomial.default,
    aten.linalg_inv_ex.default,
    aten.linalg_cholesky_ex.default,
    aten._linalg_eigh.default,
    aten._linalg_svd.default,
}


class There(Tensor):
    """A tensor that lies on the pretended GPU; `here` holds its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        made: There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            device=THERE,
        )
        made.here = here
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.here})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of `pretended`")


class Device(TorchDispatchMode):
    """Runs every operation on the side where it belongs.

    `waits`: where the host waited for the device, how often; `operations` on the device, and the bytes `moved` by them:
    those of what each takes and gives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.operations = self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func._can_decompose():  # where gradients are off for good, operations come as they were asked for
            with self:
                return func.decompose(*args, **kwargs)
        flat = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        named = kwargs.get("device")
        target = torch.device(named) if named is not None else _side(func, flat)
        self._count(func, args, kwargs, flat, target)
        if func is aten._fused_sdp_choice.default:
            return 0  # by plain products, as everywhere
        if named is not None:
            kwargs["device"] = HERE
        kwargs.pop("pin_memory", None)
        out = func(*_taken(args), **_taken(kwargs))
        if target.type == "cuda":
            out = tree_map_only(Tensor, There, out)
        if target.type == "cuda" and not func.is_view:
            self.count(args, kwargs, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if _writes(func) else out

    def count(self, *values: Any) -> None:
        """An operation that takes and gives the tensors among `values`."""
        self.operations += 1
        self.moved += sum(value.nbytes for value in tree_flatten(values)[0] if isinstance(value, There))

    def _count(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], flat: list[Tensor], target: Any) -> None:
        there = any(isinstance(value, There) for value in flat)
        blocks = not (kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2]))
        crossing = func in _BETWEEN and len({target.type, *(value.device.type for value in flat)}) > 1
        indexed = func in _INDEXED and any(
            value is not None and (value.dtype == torch.bool or not isinstance(value, There)) for value in args[1]
        )
        if (there and (func in _WAITS or indexed)) or (crossing and blocks):
            self.wait(func)

    def wait(self, operation: object) -> None:
        """The host waits for the device."""
        self.waits[f"{operation} at {_place()}"] += 1


def _side(func: Any, flat: list[Tensor]) -> torch.device:
    """Where the result lies. Raises RuntimeError where one operation is given tensors of both sides."""
    there = [isinstance(value, There) for value in flat]
    if not any(there):
        return HERE
    if func in _BETWEEN:
        return flat[0].device
    strangers = [value for value in flat if not isinstance(value, There) and value.ndim > 0]
    if strangers and not (func in _INDEXED and there[0]):
        sizes = ", ".join(f"{value.device} {list(value.shape)}" for value in flat)
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} of {sizes}")
    return THERE


def _taken(values: Any) -> Any:
    return tree_map_only(There, lambda value: value.here, values)


def _writes(func: Any) -> bool:
    return bool(func._schema.is_mutable) or any(result.alias_info is not None for result in func._schema.returns)


def _place() -> str:
    """The line of this project that an operation was asked for at."""
    for frame in reversed(traceback.extract_stack()):
        if "/site-packages/" not in frame.filename and not frame.filename.endswith("/pretended.py"):
            return f"{frame.filename}:{frame.lineno}"
    return "?"


def _no_gradients(loss: Tensor, *_: Any, inputs: Sequence[Tensor] = (), **__: Any) -> None:
    assert loss.requires_grad
    for parameter in inputs:
        parameter.grad = torch.zeros_like(parameter)


class Kernels:
    """The kernels, which see no tensors but memory."""

    def __init__(self, kernels: Any, device: Device) -> None:
        self._kernels, self._device = kernels, device

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        def run(*arguments: Any, **settings: Any) -> Tensor:
            assert all(isinstance(value, There) for value in arguments if isinstance(value, Tensor))
            out = There(_aside(getattr(self._kernels, name), *_taken(arguments), **settings))
            self._device.count(arguments, out)
            if name == "jitter":  # looks at the pixels twice
                self._device.count(arguments)
            return out

        return run


def _tensor(data: Any, *, made: Callable[..., Tensor], device: Any = None, **how: Any) -> Tensor:
    """`torch.tensor`, which reaches no mode with its copy to the device."""
    return made(data, **how) if device is None else made(data, **how).to(device)


def _aside(operation: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    with _disable_current_modes():
        return operation(*arguments, **settings)


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch, kernels: Any = None) -> Iterator[Device]:
    """Have a GPU for a while, with the `kernels` of the views, interpreted, or without."""
    device = Device()
    with monkeypatch.context() as patch:
        for name, value in {
            "is_available": True,
            "device_count": 1,
            "is_bf16_supported": True,
            "get_device_name": PRETENDED,
            "max_memory_allocated": 1,
            "mem_get_info": (MEMORY, MEMORY),
            "reset_peak_memory_stats": None,
            "empty_cache": None,
            "get_rng_state": None,
            "set_rng_state": None,
            "_lazy_init": None,
        }.items():
            patch.setattr(torch.cuda, name, lambda *_, given=value, **__: given)
        patch.setattr(torch.cuda, "synchronize", lambda *_: device.wait("torch.cuda.synchronize"))
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(Tensor, "pin_memory", lambda tensor, *_: tensor)
        patch.setattr(Tensor, "backward", _no_gradients)
        patch.setattr(torch.backends.cudnn, "enabled", False)
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)  # no data of another device
        for module in (colour, resample):
            patch.setattr(module, "fused", lambda at: kernels and Kernels(kernels, device) if at == THERE else None)
        patch.setattr(torch, "tensor", partial(_tensor, made=torch.tensor))
        read = checkpoint._read
        patch.setattr(checkpoint, "_read", lambda path: _aside(read, path))  # storages have no place in a mode
        # For good, and without effect where no tensor says that it is there.
        torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]  # asks no driver which device is current
        with device:
            yield device
