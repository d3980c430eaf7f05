"""What every speed measurement shares: one line of the table, and timing that is fair on a noisy machine.

Each module of this folder measures one subject against what users would pick instead, in one run, and gives `Figure`s:
`python -m tests.speed.NAME` prints them, `python -m tests.speed` (make speed) runs all and writes docs/PERFORMANCE.md.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Self

from bench import memory

Make = Callable[..., Callable[[], object]]


@dataclass(frozen=True)
class Figure:
    """One line of the table. `goal` is what `value` should reach: at least it, or at most with `lower`."""

    what: str
    measured: str  # what was compared with what, and both absolute figures
    value: float | None  # a ratio, seconds or a share; None where it could not be measured
    unit: str  # "x", "s", "GiB", "share"
    goal: float
    lower: bool = False

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        if self.value is None:
            return False
        return self.value <= self.goal if self.lower else self.value >= self.goal


@dataclass(frozen=True)
class Taken:
    """Seconds of several runs of one thing: by the clock, and of this process on its cores."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The median wall seconds of a run."""
        return statistics.median(self.wall)


def alternate(things: Mapping[str, Callable[[], object]], repeats: int, warm: int = 1) -> dict[str, Taken]:
    """Run the things in turn, `repeats` times after `warm` unmeasured rounds: a noisy neighbour meets them all.

    A thing that returns seconds says itself how long that part of it took which counts.
    """
    wall: dict[str, list[float]] = {name: [] for name in things}
    cpu: dict[str, list[float]] = {name: [] for name in things}
    for round_number in range(warm + repeats):
        for name, thing in things.items():
            start, busy = time.perf_counter(), time.process_time()
            counted = thing()
            if round_number >= warm:
                wall[name].append(counted if isinstance(counted, float) else time.perf_counter() - start)
                cpu[name].append(time.process_time() - busy)
    return {name: Taken(tuple(wall[name]), tuple(cpu[name])) for name in things}


class Apart:
    """A thing for `alternate` in a process of its own: what one does to its process is no help and no harm to others.

    `make(*arguments)` builds it there. With `kept` the process keeps freed memory, as every trial of ours does.
    """

    def __init__(self, make: Make, *arguments: object, kept: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        # Not a daemon: those may not have the loader processes that a peer starts.
        self._process = context.Process(target=_serve, args=(there, make, arguments, kept))
        self._process.start()
        there.close()

    def __call__(self) -> float:
        """The seconds of one run."""
        self._here.send(True)
        seconds: float = self._here.recv()  # EOFError: the process failed, and has said why
        return seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._here.close()  # which ends the other's waiting
        self._process.join()


def _serve(pipe: Connection, make: Make, arguments: tuple[object, ...], kept: bool) -> None:
    with memory.kept() if kept else nullcontext(), suppress(EOFError):
        thing = make(*arguments)
        while pipe.recv():
            start = time.perf_counter()
            counted = thing()
            pipe.send(counted if isinstance(counted, float) else time.perf_counter() - start)


def ratio(slow: Taken, fast: Taken) -> float:
    """How many times faster: the median over rounds of the two wall times of one round, so that drifts cancel."""
    return statistics.median(s / f for s, f in zip(slow.wall, fast.wall, strict=True))


def main(measure: Callable[[argparse.Namespace], Sequence[Figure]], description: str, repeats: int = 5) -> None:
    """The command line of one module: prints its figures for people, or as JSON for the whole table."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=repeats, help="measured rounds")
    parser.add_argument("--data", default="../shared/data/coffee_leaf_bracol", help="folder of photographs")
    parser.add_argument("--json", action="store_true", help="one JSON object per figure")
    arguments = parser.parse_args()
    for figure in measure(arguments):
        if arguments.json:
            print(json.dumps(asdict(figure)), flush=True)
        else:
            if figure.value is None:
                print(f"{figure.what}: not measured; {figure.measured}")
                continue
            sign = "<=" if figure.lower else ">="
            verdict = "met" if figure.met else "MISSED"
            goal = f"goal {sign} {figure.goal:g}: {verdict}"
            print(f"{figure.what}: {figure.value:.3g} {figure.unit} ({goal}); {figure.measured}")
    sys.stdout.flush()
