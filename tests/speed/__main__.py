"""Run every speed measurement, each in a process of its own, and write the table of docs/PERFORMANCE.md.

python -m tests.speed [NAME ...]    (make speed)
"""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bench.plan import find_provenance
from tests.speed.figures import Figure

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "PERFORMANCE.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
HELPERS = ("__main__", "figures", "golden", "sweeps")
PACKAGES = ("torch", "torchvision", "ray", "lightly", "kornia", "scikit-learn", "pandas", "pyarrow", "pillow")


def main() -> None:
    """Measure what was asked for, or everything, and keep the lines of what was not measured now."""
    names = sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.py") if path.stem not in HELPERS)
    kept = _kept()
    for name in names:
        print(f"measuring {name}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", f"tests.speed.{name}", "--json"], stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            print(f"{name} failed with exit code {done.returncode}: its lines stay as they were", flush=True)
            continue
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                figure = Figure(**json.loads(line))
                kept[figure.what] = _row(figure)
                print(kept[figure.what], flush=True)
    _write(list(kept.values()))


def _row(figure: Figure) -> str:
    sign = "at most" if figure.lower else "at least"
    if figure.value is None:
        return f"| {figure.what} | not measured | {sign} {figure.goal:g} | | {figure.measured} | |"
    verdict = "met" if figure.met else "**missed**"
    machine = f"{find_provenance().git_commit[:7]}, {datetime.now(UTC):%Y-%m-%d}"
    return (
        f"| {figure.what} | {figure.value:.3g} {figure.unit} | {sign} {figure.goal:g} | {verdict} | "
        f"{figure.measured} | {machine} |"
    )


def _kept() -> dict[str, str]:
    """The lines of the page by what they measure."""
    if not PAGE.exists():
        return {}
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    return {row.split("|")[1].strip(): row for row in rows if not row.startswith("|---")}


def _write(rows: list[str]) -> None:
    head = "| what | measured | goal | | how | commit, day |\n|---|---:|---|---|---|---|"
    table = "\n".join([BEGIN, _machine(), "", head, *rows, END])
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + table + rest.partition(END)[2], encoding="utf-8")


def _machine() -> str:
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"Machine: {_processor()}, {os.cpu_count()} cores, {gpu}; Python {platform.python_version()}, "
        f"{', '.join(versions)}. Shared with other work: figures are medians of alternating rounds."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
