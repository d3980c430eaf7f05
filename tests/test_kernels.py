"""The kernels of the views, run by Triton's interpreter on the CPU, and compiled for GPUs that are not there."""

import logging
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from bench import fused
from tests.pretended import pretended

triton = pytest.importorskip("triton")


def test_interpreted_they_give_the_views_of_the_cpu():
    command = [sys.executable, "-m", "pytest", "-q", "tests/interpreted.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # looked at where a kernel is defined, and Triton's own are
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("capability", [80, 90])
def test_they_compile_for_a_gpu(capability):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bench import kernels

    floats = dict.fromkeys(("slots", "turn", "number", "means", "sums", "weight", "out"), "*fp32")
    types = floats | {"index": "*i64", "place": "*i64", "chosen": "*i1"}
    cases: list[tuple[Any, str, dict[str, Any]]] = [
        (kernels._band, "*u8", {"ACROSS": False, "UNIT": False}),
        (kernels._band, "*fp32", {"ACROSS": True, "UNIT": True}),
        (kernels._lumas, "*fp32", {}),
        *((kernels._change, "*fp32", {"KIND": kind}) for kind in ("jitter", "gray", "gamma", "solarize")),
    ]
    for kernel, pixels, settings in cases:
        settings["BLOCK"] = kernels.BLOCK
        names = kernel.arg_names
        signature = {n: "constexpr" if n in settings else ({"x": pixels} | types).get(n, "i32") for n in names}
        source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in settings.items()})
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


class Broken:
    """Kernels that fail, or give other numbers."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def band(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if self.error:
            raise self.error
        return x / 255 if x.dtype == torch.uint8 else x

    def jitter(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        return x + 1

    def change(self, x: torch.Tensor, kind: str, *_: Any) -> torch.Tensor:
        return x * (1 + (kind == "gamma"))


@pytest.fixture
def trying(monkeypatch):
    """Try a device with some kernels."""

    def tried(kernels: Broken) -> Any:
        fused.fused.cache_clear()
        monkeypatch.setitem(sys.modules, "bench.kernels", kernels)
        with pretended(monkeypatch):
            return fused.fused(torch.device("cuda", 0)), fused.fused(torch.device("cuda", 0))

    yield tried
    fused.fused.cache_clear()


@pytest.mark.parametrize(
    ("kernels", "reason"),
    [
        (Broken(RuntimeError("no C compiler\nPlease set CC")), "RuntimeError: no C compiler"),
        (Broken(AssertionError()), "AssertionError: "),
        (Broken(), "other numbers from jitter, gamma"),
    ],
)
def test_a_device_that_does_not_run_them_goes_without_and_says_so_once(kernels, reason, trying, caplog):
    with caplog.at_level(logging.WARNING):
        assert trying(kernels) == (None, None)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"views are made without fused kernels, in more time: Triton does not run here ({reason})"
    )


def test_that_there_is_no_memory_says_nothing_of_the_device(trying):
    with pytest.raises(torch.OutOfMemoryError):
        trying(Broken(torch.OutOfMemoryError("8 GiB")))


def test_a_cpu_has_none(caplog):
    assert fused.fused(torch.device("cpu")) is None
    assert not caplog.records
