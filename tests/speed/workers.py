"""Several workers: `bench run --workers 2` beside a hand-written TorchTrainer call, and how throughput scales from 1
to 2.

By hand: one process connects to Ray and calls `TorchTrainer(...).fit()` for the same jobs, one after another, with
the same training function in its workers: the least that a user of Ray Train would write.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.speed import sweeps
from tests.speed.figures import Figure, main

TRIALS = 4


def by_hand(sweep: Path, out: Path, seconds: "multiprocessing.Queue[list[float]]") -> None:
    """Run the jobs by Ray Train alone and send the moments at which they ended."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer, get_device

    def train(config: dict[str, str]) -> None:
        from bench.execution import run_job
        from bench.job import Job

        run_job(Job.model_validate_json(config["job"]), lambda report: ray.train.report(report), get_device())

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ends = []
    for job in sweeps.jobs(sweep, out):
        TorchTrainer(
            train,
            train_loop_config={"job": job.model_dump_json()},
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(storage_path=str(out / "train")),
        ).fit()
        ends.append(time.perf_counter())
    ray.shutdown()
    seconds.put(ends)


def measure(arguments: argparse.Namespace) -> Sequence[Figure]:
    """Seconds per two-worker trial, and images per second of one worker and of two."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [_launching(folder, arguments.repeats), _scaling(folder, arguments.data, arguments.repeats)]


def _launching(folder: Path, repeats: int) -> Figure:
    sweep = sweeps.write(folder, "leaves", trials=TRIALS, workers=2)
    pairs = []
    for repeat in range(repeats):
        sweeps.run(sweep, folder / f"run{repeat}", "--cpus", "2")
        ends = sweeps.trials(folder / f"run{repeat}")["finished_at"]
        ours = (ends.iloc[-1] - ends.iloc[0]).total_seconds() / (TRIALS - 1)
        pairs.append((ours, _hand(sweep, folder / f"hand{repeat}")))
    ours, theirs = sorted(pairs, key=lambda pair: pair[1] / pair[0])[len(pairs) // 2]
    return Figure(
        "per-trial overhead, Ray Train with two workers, against a hand-written TorchTrainer call",
        f"whole trial after the first: {ours:.1f} s by bench run, {theirs:.1f} s by hand",
        theirs / ours,
        "x",
        1,
    )


def _hand(sweep: Path, out: Path) -> float:
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[list[float]] = context.Queue()
    process = context.Process(target=by_hand, args=(sweep, out, queue))
    process.start()
    ends = queue.get(timeout=600)
    process.join()
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _scaling(folder: Path, data: str, repeats: int) -> Figure:
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(repeats):
        for workers in speeds:
            sweep = sweeps.write(
                folder, data, trials=1, epochs=3, workers=workers, size=64, batch=128, backbone="resnet18"
            )
            out = folder / f"scale{workers}-{repeat}"
            sweeps.run(sweep, out, "--cpus", "2")
            speeds[workers].append(float(sweeps.trials(out)["images_per_second"].iloc[0]))
    efficiency = sorted(two / one / 2 for one, two in zip(speeds[1], speeds[2], strict=True))[repeats // 2]
    shown = {workers: f"{sorted(found)[repeats // 2]:,.0f} images/s" for workers, found in speeds.items()}
    return Figure(
        "scaling from 1 to 2 workers of one thread each on 2 cores",
        f"ResNet-18 at 64 px, global batch 128: {shown[1]} with one, {shown[2]} with two",
        efficiency,
        "share",
        0.85,
    )


if __name__ == "__main__":
    main(measure, "several workers", repeats=3)
