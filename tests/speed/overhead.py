"""What `bench run` costs beyond the trials themselves: 20 one-worker trials, against the same jobs in a plain loop.

The loop calls `run_job` for the same draws in one process, so that what both share (training, evaluation, the
ledger's file) drops out. The first trial, in which Ray and its actor start, is left out of both.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.speed import sweeps
from tests.speed.figures import Figure, main

TRIALS = 20


def loop(sweep: Path, out: Path, seconds: "multiprocessing.Queue[list[float]]") -> None:
    """Run the jobs one after another and send the seconds of each."""
    import torch

    from bench.execution import run_job

    taken = []
    for job in sweeps.jobs(sweep, out):
        start = time.perf_counter()
        run_job(job, lambda _: None, torch.device("cpu"))
        taken.append(time.perf_counter() - start)
    seconds.put(taken)


def measure(arguments: argparse.Namespace) -> Sequence[Figure]:
    """Seconds per trial after the first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep = sweeps.write(folder, "leaves", trials=TRIALS)
        extra = []
        for repeat in range(arguments.repeats):
            sweeps.run(sweep, folder / f"run{repeat}", "--cpus", "1")
            ends = sweeps.trials(folder / f"run{repeat}")["finished_at"]
            each = (ends.iloc[-1] - ends.iloc[0]).total_seconds() / (TRIALS - 1)
            extra.append((each, _looped(sweep, folder / f"loop{repeat}")))
    best, alone = min(extra, key=lambda pair: pair[0] - pair[1])
    middle = sorted(run - looped for run, looped in extra)[len(extra) // 2]
    return [
        Figure(
            "per-trial overhead, one worker",
            f"{TRIALS} trials, after the first: {best:.2f} s each by bench run, {alone:.2f} s in a plain loop",
            middle,
            "s",
            0.5,
            lower=True,
        )
    ]


def _looped(sweep: Path, out: Path) -> float:
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[list[float]] = context.Queue()
    process = context.Process(target=loop, args=(sweep, out, queue))
    process.start()
    taken = queue.get(timeout=600)
    process.join()
    return sum(taken[1:]) / len(taken[1:])


if __name__ == "__main__":
    main(measure, "overhead per trial, one worker", repeats=3)
