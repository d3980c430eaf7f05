"""The commands of `bench data`: what there is, where it lies, how to get it, and whether it is whole."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bench.data.pack import Pack
    from bench.data.shelf import Kept

FOUND = 1  # exit code of a check that found something
PIPED = 200  # columns where there is no terminal

app = typer.Typer(help="Datasets: list, show, fetch, check, pack, clean.", no_args_is_help=True)

DataRoot = Annotated[
    str | None,
    typer.Option(
        "--data-root", help="Folder or address where released datasets lie.", envvar="BENCH_DATA", metavar="FOLDER"
    ),
]
Name = Annotated[str, typer.Argument(help="A card's name or path, or a folder of images.")]


@app.command("list")
def list_(data_root: DataRoot = None) -> None:
    """List the datasets: classes, images per split, headline metric, and where each lies."""
    from bench.datasheet import listing

    console = _console()
    console.print(listing(data_root, console.width))


@app.command()
def show(name: Name, data_root: DataRoot = None) -> None:
    """Show all about one dataset: its card, options and archives, where it was looked for, its packs."""
    from bench.datasheet import sheet

    _console().print(sheet(name, data_root))


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A card's name or path.")],
    data_root: DataRoot = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Keep the downloaded archives once they are unpacked.")
    ] = False,
) -> None:
    """Show a release's terms, download it, verify its checksum and unpack it; or say what to do by hand."""
    import time

    from rich.console import Console

    from bench.fetching.fetch import fetch as carry_out
    from bench.fetching.fetch import plan_fetch
    from bench.transfer_display import intention, outcome, terms, watching

    console, began = Console(highlight=False), time.monotonic()
    plan = plan_fetch(name, data_root)
    for line in [plan.settled] if plan.settled else [*terms(plan), *intention(plan)]:
        console.print(line, markup=False, soft_wrap=True)
    if plan.settled:
        return
    try:
        with watching(console) as watch:
            fetched = carry_out(plan, watch, keep_archives=keep_archives)
    except KeyboardInterrupt:
        console.print("interrupted: what has come is kept, and the same command goes on from there", style="yellow")
        raise typer.Exit(130) from None
    for line in outcome(plan, fetched, time.monotonic() - began):
        console.print(line, markup=False, soft_wrap=True)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A card's name or path, or a folder or address of images.")],
    near: Annotated[bool, typer.Option("--near", help="Look for perceptual duplicates across splits too.")] = False,
    distance: Annotated[
        int,
        typer.Option(
            min=0,
            max=63,
            help="Bits of 64 in which the hashes of near duplicates may differ: 4 finds images that were saved again, "
            "resized or brightened; 10 also many that are merely alike.",
        ),
    ] = 4,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write every finding to FILE.csv or FILE.json.")
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Decode every image, and name all that are unreadable, missing, there twice, or in two splits.

    Nothing is changed. Exit code 0: nothing was found, 1: something was, 2: wrong input.
    """
    from bench.bar import packing
    from bench.checksheet import export, lists, require_format, summary, verdict
    from bench.data.check import check as look_through

    if to is not None:
        require_format(to)
    console = _console()
    with packing(console, name, "checking") as progress:
        findings = look_through(name, data_root, progress, distance=distance if near else None)
    console.print(summary(findings))
    for line in [*lists(findings), verdict(findings)]:
        console.print(line, soft_wrap=True)
    if to is not None:
        export(findings, to)
        console.print(f"{len(findings.found):,} rows are in {to}", markup=False, soft_wrap=True)
    if findings.faults:
        raise typer.Exit(FOUND)


@app.command()
def pack(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Cards' names or paths, or folders of images.")],
    image_size: Annotated[
        int, typer.Option(min=16, max=1024, help="Side of the views in px, a sweep's image_size.")
    ] = 224,
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many images are decoded at a time; else one per core.")
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Decode and resize every image once, now, so that the first run need not."""
    for name in names:
        _pack(_console(), name, image_size, processes, data_root)


@app.command()
def clean(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Only packs of these datasets; else everything.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    older: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Only what was not used for so many days.")
    ] = None,
    downloads: Annotated[
        bool, typer.Option("--downloads", help="Downloaded archives too; they take longest to get back.")
    ] = False,
    data_root: DataRoot = None,
) -> None:
    """Show the packs and whatever else is kept, and remove them: nothing without --yes or an answer in a terminal.

    All of it is made again where it is needed. Datasets are never touched, nor what is being built or fetched now.
    """
    import sys
    import time

    from bench.cache import cache_folder
    from bench.data.roots import data_root as root_of
    from bench.data.shelf import on_shelf
    from bench.shelfsheet import Wish, amount, check_names, shelf_table

    console, cache, now = _console(), cache_folder(), time.time()
    shelf, wish = on_shelf(cache, root_of(data_root)), Wish(tuple(names or ()), older, downloads)
    check_names(wish.names, shelf)
    console.print(f"cache: {cache}", style="dim", markup=False, soft_wrap=True)
    console.print(shelf_table(shelf, wish, now) if shelf else "nothing is kept")
    going = [kept for kept in shelf if not wish.stays(kept, now)]
    if not going:
        return
    if not yes and not sys.stdin.isatty():
        console.print("nothing was removed: --yes removes it")
    elif yes or typer.confirm(f"remove {amount(going)}?"):
        _remove(console, going)


def _pack(console: "Console", name: str, image_size: int, processes: int | None, data_root: str | None) -> None:
    """Build or open one pack, and say what is in it."""
    import time

    from bench.bar import packing
    from bench.cache import cache_folder
    from bench.data.dataset import resolve
    from bench.data.pack import open_pack, pack_size

    with console.status("reading the dataset"):
        source = resolve(name, data_root).source
    began = time.monotonic()
    built: list[int] = []
    with packing(console, source.name) as bar:

        def progress(done: int, total: int) -> None:
            built[:] = [total]
            bar(done, total)

        pack = open_pack(source, pack_size(image_size), cache_folder(), progress, processes)
    _tell_pack(console, pack, time.monotonic() - began if built else None)


def _tell_pack(console: "Console", pack: "Pack", seconds: float | None) -> None:
    """One line about a pack, built in `seconds` or there already, and one about each skipped file."""
    from rich.filesize import decimal

    from bench.datasheet import say

    count, _, height, width = pack.images.shape
    done = count + len(pack.skipped)
    rate = f"packed in {seconds:.1f} s ({done / max(seconds, 1e-3):,.0f} images/s)" if seconds else "packed already"
    what = f"{count:,} images of {width}x{height} px, {decimal(pack.images.nbytes)}, {len(pack.skipped)} skipped"
    console.print(say(f"{pack.name}: {rate}: {what}"), soft_wrap=True)
    for skipped in pack.skipped:
        console.print(say(f"  skipped {skipped.file}: {skipped.reason}", "yellow"), soft_wrap=True)


def _remove(console: "Console", going: "list[Kept]") -> None:
    from bench.data.shelf import remove
    from bench.datasheet import say
    from bench.shelfsheet import amount

    removed = []
    for kept in going:
        if remove(kept):
            removed.append(kept)
        else:
            console.print(say(f"{kept.path}: left, someone builds or fetches it now", "yellow"), soft_wrap=True)
    console.print(f"removed {amount(removed)}")


def _console() -> "Console":
    """In a pipe lines are as wide as a wide terminal's, so that nothing is cut for a reader that has no width."""
    import os

    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED
    return console
