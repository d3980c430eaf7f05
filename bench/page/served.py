"""Makes the page that a server shows: `python -m bench.page.served OUT NAME [--sweep SWEEP] [--pictures]`, to stdout.

A process of its own, at low priority: it may take as long and as much memory as a large ledger needs, and fail, while
the server goes on answering.
"""

import argparse
import os
import sys
from pathlib import Path

from bench.errors import BenchError

NICE = 10  # a sweep that runs on this machine goes first


def main() -> None:
    """Write the page to stdout; what is wrong is one line on stderr."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("name")
    parser.add_argument("--sweep")
    parser.add_argument("--pictures", action="store_true")
    asked = parser.parse_args()
    os.nice(NICE)
    try:
        page = make(asked.out, asked.name, asked.sweep, pictures=asked.pictures)
    except BenchError as error:
        sys.exit(" ".join(str(error).split()))
    sys.stdout.buffer.write(page.encode())


def make(out: Path, name: str, sweep: str | None, *, pictures: bool) -> str:
    """The page of `bench report --html`, which calls itself `name` and shows the live progress."""
    from bench.cache import cache_folder
    from bench.page.render import render_page
    from bench.results.exports import columns_for
    from bench.results.questions import sweep_records
    from bench.results.reading import read_shown

    reading = read_shown(out, sweep, columns_for("html"), every=True)
    return render_page(
        reading.frame,
        None if reading.frame.empty else sweep,  # a sweep without an ended trial is no error here
        out=out,
        cache=cache_folder() if pictures else None,
        records=sweep_records(out),
        problems=reading.problems,
        live=name,
    )


if __name__ == "__main__":
    main()
