"""What a sweep costs: pruning, shared packs and reused actors, against every trial to its end with its own decoding.

The plain way is what a script per configuration does: each trial is a process of its own that decodes the images
anew and trains to the last epoch, two at a time on two cores. The draws are the same, and so must be the best
validation score. The images are the drawn leaves, written as files: their draws differ by tens of points, while on
small folders of photographs this encoder's draws differ by less than the noise of the validation split.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from bench.data.builtin import draw_split, find_family
from tests.speed import sweeps
from tests.speed.figures import Figure, main

TRIALS, EPOCHS, GRACE = 18, 27, 2
ONE = """
import sys, torch
from pathlib import Path
from tests.speed import sweeps
from bench.execution import run_job
sweep, out, draw = sys.argv[1:]
run_job(sweeps.jobs(Path(sweep), Path(out))[int(draw)], lambda report: None, torch.device("cpu"))
"""


def measure(arguments: argparse.Namespace) -> Sequence[Figure]:
    """Wall seconds of both."""
    found = []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as name:
            found.append(_once(Path(name), write_leaves(Path(name, "leaves"))))
    ours, plain, score, plain_score = sorted(found, key=lambda one: one[1] / one[0])[len(found) // 2]
    return [
        Figure(
            "sweep cost: ASHA, shared packs and reuse, against every trial to its end with its own decoding",
            f"{TRIALS} draws of {EPOCHS} epochs: {ours:.0f} s and {plain:.0f} s; best validation score "
            f"{100 * score:.1f} % and {100 * plain_score:.1f} %",
            plain / ours if score >= plain_score else 0.0,
            "x",
            3,
        )
    ]


def write_leaves(folder: Path) -> str:
    """The built-in leaves as a folder of PNG files, in split folders; returns its path."""
    classes = find_family("leaves").classes
    for split in ("unlabelled", "train", "val", "test"):
        pixels, labels = draw_split("leaves", split)
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            place = folder / split if label < 0 else folder / split / classes[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{number}.png")
    return str(folder)


def _once(folder: Path, data: str) -> tuple[float, float, float, float]:
    pruned = sweeps.write(folder, data, trials=TRIALS, epochs=EPOCHS, prune="asha", grace=GRACE, size=64, batch=128)
    plain = sweeps.write(folder, data, trials=TRIALS, epochs=EPOCHS, size=64, batch=128)
    ours = sweeps.run(pruned, folder / "ours", "--cpus", "2", cache=folder / "cache")
    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda draw: _one(plain, folder / "plain", draw), range(TRIALS)))
    return ours, time.perf_counter() - start, _best(folder / "ours"), _best(folder / "plain")


def _one(sweep: Path, out: Path, draw: int) -> None:
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"BENCH_CACHE": cache}
        subprocess.run([sys.executable, "-c", ONE, str(sweep), str(out), str(draw)], env=environment, check=True)


def _best(out: Path) -> float:
    frame = sweeps.trials(out)
    return float(frame[frame["status"] == "finished"]["objective"].max())


if __name__ == "__main__":
    main(measure, "cost of a sweep", repeats=1)
