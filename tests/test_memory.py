"""Freed memory is kept while a trial runs and given back after it."""

import platform
import subprocess
import sys

import pytest

from bench import memory

PROGRAM = """
import resource, sys
from contextlib import nullcontext
from pathlib import Path
import torch
from bench import memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

with memory.kept() if sys.argv[1] == "kept" else nullcontext():
    blocks = [torch.ones(48 << 18) for _ in range(4)]  # 48 MiB each
    del blocks
    for _ in range(10):
        torch.ones(48 << 18)
    held, before = resident(), faults()
    for _ in range(10):
        torch.ones(48 << 18)
    print(faults() - before, held, end=" ")
print(resident())
"""


def measured(how: str) -> tuple[int, int, int]:
    """Page faults of ten more blocks of 48 MiB, and MiB resident after others were freed and at the end."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    faults, held, end = map(int, done.stdout.split())
    return faults, held, end


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_blocks_are_taken_again_without_faults_and_given_back_at_the_end():
    faults, held, end = measured("kept")
    plain, _, least = measured("plain")
    assert faults < plain / 5 + 500  # with pages of 4 KiB 0 and 122,880
    assert held > least + 150
    assert end < held - 150


def test_where_the_c_library_is_another_one_nothing_happens(monkeypatch):
    memory._glibc.cache_clear()
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with memory.kept():
        pass
    memory._glibc.cache_clear()
