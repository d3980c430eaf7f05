"""How soon the command line answers: `bench --help` and `bench list`, beside Python alone and the libraries they need.

Wall seconds are what a user waits; processor seconds are shown as well, since the clock says little on a busy machine.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.speed.figures import Figure, main

COMMANDS = {
    "python": ["-c", "pass"],
    "libraries": ["-c", "import typer, rich"],
    "bench --help": ["-m", "bench", "--help"],
    "bench list": ["-m", "bench", "list"],
}
GOALS = {"bench --help": 0.3, "bench list": 0.6}


def once(arguments: Sequence[str]) -> tuple[float, float]:
    """Wall seconds and processor seconds of one process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The median of the runs, taken in turn after one that fills the file cache."""
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for number in range(arguments.repeats + 1):
        for name, command in COMMANDS.items():
            found = once(command)
            runs[name] += [found] if number else []
    wall = {name: statistics.median(run[0] for run in found) for name, found in runs.items()}
    busy = {name: statistics.median(run[1] for run in found) for name, found in runs.items()}
    beside = f"python alone {wall['python']:.2f} s, with typer and rich imported {wall['libraries']:.2f} s"
    return [
        Figure(
            f"`{name}`",
            f"median of {arguments.repeats}: {wall[name]:.2f} s, of it {busy[name]:.2f} s of processor; {beside}",
            wall[name],
            "s",
            goal,
            lower=True,
        )
        for name, goal in GOALS.items()
    ]


if __name__ == "__main__":
    main(measure, "Start-up of the command line.", repeats=10)
