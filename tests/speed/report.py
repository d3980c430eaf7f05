"""`bench report` over a million ledger rows in 20,000 files, before and after `bench compact`.

Writes a synthetic ledger through the functions that runs use (some minutes; BENCH_SPEED_LEDGER names a folder that
keeps it), times the commands in processes of their own and checks that compaction changes nothing that they print.
Processor seconds are shown as well: the clock says little on a busy machine.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.results.ledger import Ledger
from bench.results.schema import Measurement, Membership, Status, TrialFacts, rows_table
from tests.speed.figures import Figure, main

FILES, SWEEPS, CANDIDATES = 20_000, 8, 4
CONFIRMED = ["simclr", "moco", "rotation", "jigsaw", *(f"simclr without {part}" for part in "abcde"), "random"]
CLASSES = 10
METRICS = ("top1", "top5", "mean_per_class", "macro_f1", "weighted_f1")


def places(sweep: int, files: int) -> Iterator[tuple[Membership, int, str]]:
    """A sweep's trials: 4 draws in 5 are of the search, the rest confirm; each with its seed and configuration."""
    searched, ident = files * 4 // 5, digest("sweep", sweep)
    for number in range(searched):
        name, draw = CONFIRMED[number % CANDIDATES], number // CANDIDATES
        swept = {"gamma.low": draw / searched, "pretrain.lr": 1e-3 * (draw + 1), "flip": draw % 2 == 0}
        more: dict[str, Any] = {"draw": draw, "swept": swept}
        # The last tenth is an earlier version of the same sweep.
        owner = digest("old", sweep) if number >= searched * 9 // 10 else ident
        yield (
            Membership(sweep=f"sweep-{sweep}", sweep_id=owner, stage="search", configuration=name, **more),
            0,
            str(draw),
        )
    for number in range(files - searched):
        name, seed = CONFIRMED[number % len(CONFIRMED)], 1 + number // len(CONFIRMED)
        role: Any = "control" if name == "random" else "best" if name in CONFIRMED[:CANDIDATES] else "baseline"
        yield (
            Membership(sweep=f"sweep-{sweep}", sweep_id=ident, stage="confirm", configuration=name, role=role),
            seed,
            f"best of {name}",
        )


def digest(*parts: Any) -> str:
    """Sha256 of the parts as text."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def trial(sweep: int, place: Membership, seed: int, configuration: str) -> Any:
    """One trial's table: 60 rows in sweeps of five datasets, 48 in those of two with two protocols."""
    ident = digest(sweep, place.sweep_id, place.stage, place.configuration, seed, configuration)
    dice = random.Random(ident)
    status: Status = "failed" if dice.random() < 0.03 else "finished"
    status = "pruned" if place.stage == "search" and dice.random() < 0.05 else status
    names = [("linear", "")] if sweep % 2 else [("linear", ""), ("knn", "k=20")]
    datasets = [f"dataset{number}" for number in range(5 if sweep % 2 else 2)]
    config = {"method": place.configuration, "seed": seed, "draw": place.draw, "objective": "linear"}
    training = {"backbone": "resnet18", "image_size": 64, "epochs": 30, "batch_size": 128, "lr": 1e-3 * dice.random()}
    facts = TrialFacts(
        trial_id=ident,
        pretrain_id=digest("encoder", ident),
        membership=place,
        configuration_id=digest(sweep, place.configuration, configuration),
        method=place.configuration.split()[0],
        encoder="resnet18",
        seed=seed,
        status=status,
        config=config | {"training": training, "evaluate": [{"fingerprint": digest(name)} for name in datasets]},
        objective=dice.uniform(0.4, 0.7),
        error="TrialFailed: the loss is not finite at step 120" if status == "failed" else None,
        pretrain_dataset="leaves",
        pretext={"accuracy": dice.random(), "loss": dice.random()},
        epochs=30,
        epochs_planned=30,
        wall_seconds=dice.uniform(40, 60),
        device_seconds=dice.uniform(40, 60),
        images_per_second=dice.uniform(900, 1100),
        peak_memory_bytes=2**30 + dice.randrange(2**20),
        encoder_parameters=11_176_512,
        git_commit=digest("commit")[:40],
        git_dirty=False,
        versions={name: version(name) for name in ("torch", "numpy", "pyarrow")},
        device="cpu",
        host="worker-1",
    )
    rows = (
        [row for name in datasets for at in names for row in measured(dice, name, *at)] if status == "finished" else []
    )
    return rows_table(facts, rows)


def measured(dice: random.Random, dataset: str, protocol: str, variant: str) -> Iterator[Measurement]:
    """The rows of one protocol on one dataset: five metrics and a confusion matrix per split."""
    for split in ("val", "test"):
        at: Any = {"dataset": dataset, "protocol": protocol, "variant": variant, "split": split, "samples": 500}
        at |= {"dataset_fingerprint": digest(dataset), "chosen": {"strength": 10.0 ** dice.randrange(-3, 3)}}
        for metric in METRICS:
            value = dice.uniform(0.3, 0.8)
            headline = metric == "top1"
            yield Measurement(**at, metric=metric, value=value, headline=headline, low=value - 0.03, high=value + 0.03)
        counts = [dice.randrange(20) for _ in range(CLASSES**2)]
        each: Any = {name: [dice.random() for _ in range(CLASSES)] for name in ("precision", "recall", "f1")}
        classes = [f"class {number}" for number in range(CLASSES)]
        yield Measurement(**at, metric="confusion", value=None, confusion=counts, classes=classes, **each)


def write_sweep(out: Path, sweep: int, files: int) -> int:
    """Write one sweep's files; returns the number of rows."""
    os.fsync = lambda _: None  # what lies in the files is the same, and this is no measurement
    tables = [(trial(sweep, *place)) for place in places(sweep, files)]
    for table in tables:
        Ledger(out).write(table)
    return sum(table.num_rows for table in tables)


def make(out: Path, files: int) -> None:
    """Write the synthetic ledger, unless it is there."""
    if (out / "rows").exists():
        return
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(write_sweep, out, sweep, files // SWEEPS) for sweep in range(SWEEPS)]
        (out / "rows").write_text(str(sum(job.result() for job in jobs)))


def timed(*arguments: str) -> dict[str, Any]:
    """Run a command by itself: wall and processor seconds, peak memory in GiB, a digest of what it printed."""
    code = (
        "import resource, subprocess, sys, time, json\n"
        "start = time.perf_counter()\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)\n"
        "wall = time.perf_counter() - start\n"
        "use = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "text = done.stdout.decode() if not done.returncode else sys.exit(done.returncode)\n"
        "print(json.dumps([wall, use.ru_utime + use.ru_stime, use.ru_maxrss / 2**20, text]))"
    )
    full = [sys.executable, "-c", code, sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(full, stdout=subprocess.PIPE, text=True, check=True)
    wall, processor, memory, text = json.loads(done.stdout)
    return {"wall": wall, "cpu": processor, "memory": memory, "output": hashlib.sha256(text.encode()).hexdigest()}


def median(repeats: int, *arguments: str) -> dict[str, Any]:
    """The run of median wall time, after one that fills the file cache."""
    timed(*arguments)
    return sorted((timed(*arguments) for _ in range(repeats)), key=lambda run: run["wall"])[repeats // 2]


def figures(out: Path, repeats: int, when: str, goal: float) -> tuple[list[Figure], list[str]]:
    """Seconds and memory of the report, and a digest of what it printed of all sweeps, of one, and as JSON."""
    command = ("report", "--out", str(out))
    whole, one = median(repeats, *command), median(repeats, *command, "--sweep", "sweep-0")
    tree = timed(*command, "--format", "json")
    rows = f"{int((out / 'rows').read_text()):,} rows, {when}"
    said = f"{whole['cpu']:.1f} s of processor; one of {SWEEPS} sweeps {one['wall']:.1f} s, {one['memory']:.2f} GiB"
    name = f"`bench report`, {rows}"
    seconds = Figure(name, f"{whole['wall']:.1f} s, {said}", whole["wall"], "s", goal, lower=True)
    memory = Figure(f"{name}: memory", "peak of the process", whole["memory"], "GiB", 1.0, lower=True)
    return [seconds, memory], [run["output"] for run in (whole, one, tree)]


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """Over the files, then compacted; the files stay for another run."""
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(os.environ.get("BENCH_SPEED_LEDGER", scratch))
        kept.mkdir(parents=True, exist_ok=True)
        make(kept, FILES)
        loose, before = figures(kept, arguments.repeats, f"{FILES:,} files", 10.0)
        merged = Path(tempfile.mkdtemp(dir=kept))
        try:
            shutil.copytree(kept / "ledger", merged / "ledger", copy_function=os.link)
            shutil.copy(kept / "rows", merged / "rows")
            spent = timed("compact", "--out", str(merged))
            compacted, after = figures(merged, arguments.repeats, "compacted", 1.0)
        finally:
            shutil.rmtree(merged)
    if before != after:
        sys.exit("compaction changed what the report shows")
    took = f"{spent['wall']:.0f} s, {spent['cpu']:.0f} s of processor, {spent['memory']:.2f} GiB"
    return [
        *loose,
        *(replace(figure, measured=f"{figure.measured}; `bench compact` took {took}") for figure in compacted),
    ]


if __name__ == "__main__":
    main(measure, "`bench report` over a large ledger.", repeats=3)
