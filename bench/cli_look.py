"""Commands that look closer: at a sweep's views before it runs, and at two configurations after it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli_data import DataRoot

if TYPE_CHECKING:
    from rich.console import Console

_MANY = "; may be repeated, or separated by commas."
FORMS = ("terminal", "md", "json")


def register(app: typer.Typer) -> None:
    """Add the commands to `bench`."""
    app.command()(views)
    app.command()(compare)


def views(
    sweep: Annotated[str, typer.Option("--sweep", help="A sweep's name, or the path of a TOML file.")],
    image: Annotated[list[Path] | None, typer.Option(help="A photograph to look at; may be repeated.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Or images of a dataset's training split; else of the sweep's own.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=20, help="How many images of the dataset.")] = 2,
    draws: Annotated[int, typer.Option(min=1, max=24, help="Random draws of each image at each value.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of images and of the draws.")] = 0,
    profile: Annotated[str | None, typer.Option(help="Which profile of the sweep; by default its first.")] = None,
    method: Annotated[str | None, typer.Option(help="Another method: a name, or a module path.")] = None,
    candidates: Annotated[
        str | None, typer.Option(help="Only these of the sweep's candidates, separated by commas.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set any field; may be repeated.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE.png", help="The picture's file; by default SWEEP-views.png.")
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Draw what a sweep's augmentations do over its search range, as a PNG, before anything is trained."""
    from bench.pictures.peek import peek
    from bench.request import requested_sweep

    loaded = requested_sweep(
        sweep, profile=profile, method=method, candidates=candidates, pretrain_on=dataset, settings=settings
    )
    done = peek(loaded, image or (), images=images, draws=draws, seed=seed, to=to, data_root=data_root)
    console = _console()
    for line in done:
        console.print(line, markup=False, soft_wrap=True)


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A configuration's name, SWEEP/NAME, or a trial's id.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other, likewise.")],
    out: Annotated[
        str, typer.Option("--out", help="Folder, or s3://... address, of the results.", envvar="BENCH_OUT")
    ] = "results",
    sweep: Annotated[str | None, typer.Option("--sweep", help="Only what this sweep found.")] = None,
    form: Annotated[str, typer.Option("--format", help="terminal, md or json.")] = "terminal",
    to: Annotated[Path | None, typer.Option("--to", help="Write to this file instead of the screen.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help=f"Only these datasets{_MANY}")] = None,
    protocol: Annotated[list[str] | None, typer.Option(help=f"Only these, such as knn or 'knn k=20'{_MANY}")] = None,
    metric: Annotated[list[str] | None, typer.Option(help=f"Instead of each dataset's headline metric{_MANY}")] = None,
) -> None:
    """Compare two configurations, paired over seeds and datasets: difference, interval, cost, what differs."""
    import sys

    from bench import mirror
    from bench.errors import BenchError, UnknownName
    from bench.results import contrast_text
    from bench.results.contrast import contrast
    from bench.results.selection import filters_for
    from bench.results.sides import find_side, read_sides

    if form not in FORMS:
        raise UnknownName("format", form, FORMS)
    reading = read_sides(mirror.opened(out, "ledger"), (first, second), sweep)
    if reading.frame.empty:
        raise BenchError(f"{out}: no results{f' of sweep {sweep!r}' if sweep else ''} to compare")
    filters = filters_for(reading.frame, dataset=dataset, protocol=protocol, metric=metric)
    found = contrast(find_side(reading.frame, first), find_side(reading.frame, second), filters)
    for problem in reading.problems:
        _console(stderr=True).print(f"could not be used: {problem}", style="yellow", markup=False, soft_wrap=True)
    if form == "terminal":
        _console(to).print(contrast_text.terminal(found))
        return
    text = contrast_text.markdown(found) if form == "md" else contrast_text.as_json(found)
    if to:
        to.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


def _console(to: Path | None = None, *, stderr: bool = False) -> "Console":
    from rich.console import Console

    if to:
        return Console(file=to.open("w", encoding="utf-8"), width=140, highlight=False)
    return Console(highlight=False, stderr=stderr)
